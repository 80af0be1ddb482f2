-- Sets the HTTP status and the error of an answer on the routes of A2A. Runs after the transcoder,
-- instead of envelope.lua.
--
-- A2A writes an error as a google.rpc.Status (https://google.aip.dev/193). The server has put the
-- google.rpc.Status and the HTTP status into two headers, which the header_mutation filter removes.
-- The edge's own errors arrive with an envelope, and this filter rewrites it.

local ERROR = '{"error":{"code":%s,"status":"%s","message":"%s","details":['
  .. '{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"%s","domain":"evershell.ai"},'
  .. '{"@type":"type.googleapis.com/google.rpc.RequestInfo","requestId":"%s"}]}}'
-- The name of the gRPC code for HTTP statuses of the edge's own errors; UNKNOWN for all others.
local CODES = {
  ["400"] = "INVALID_ARGUMENT",
  ["404"] = "NOT_FOUND",
  ["405"] = "UNIMPLEMENTED",
  ["408"] = "DEADLINE_EXCEEDED",
  ["413"] = "INVALID_ARGUMENT",
  ["415"] = "INVALID_ARGUMENT",
  ["429"] = "RESOURCE_EXHAUSTED",
  ["500"] = "INTERNAL",
  ["503"] = "UNAVAILABLE",
  ["504"] = "DEADLINE_EXCEEDED",
}

local function answer(handle, status, body)
  -- Gets the headers again: reading the body makes the earlier object invalid.
  local headers = handle:headers()
  headers:replace(":status", status)
  headers:replace("content-type", "application/a2a+json")
  if status == "401" then
    headers:replace("www-authenticate", "Bearer")
  end
  if status == "503" and headers:get("x-should-retry") == nil then
    headers:replace("retry-after", "1")
  end
  handle:body(true):setBytes(body)
end

local function own_error(status, code, message, request_id)
  return ERROR:format(status, CODES[status] or "UNKNOWN", message, code:upper(), request_id)
end

-- The envelope of the edge's own error: the body or, if the request has the content type
-- application/grpc, the header grpc-message, which is percent-encoded.
local function find_envelope(handle, headers)
  local encoded = headers:get("grpc-message")
  if encoded ~= nil then
    return (encoded:gsub("%%(%x%x)", function(hex)
      return string.char(tonumber(hex, 16))
    end))
  end
  local body = handle:body(true)
  return body:getBytes(0, body:length())
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local grpc_status = headers:get("grpc-status")
  local set_status = headers:get("x-evershell-status")
  local status = set_status or headers:get(":status")
  local error = headers:get("x-evershell-error")
  if error ~= nil then
    answer(handle, status, error)
  elseif grpc_status ~= nil and grpc_status ~= "0" and set_status == nil then
    -- A worker's gRPC library refused the call. Its text may name internals and is dropped.
    local errors = handle:virtualHost():metadata()
    local rule = errors:get(grpc_status) or errors:get("13")
    local request_id = headers:get("x-request-id") or ""
    answer(handle, rule.status, own_error(rule.status, rule.code, rule.message, request_id))
  elseif status >= "400" then
    -- Every call of A2A can be repeated: a cancellation names its task, and a message has an id.
    headers:remove("x-should-retry")
    local code, message, request_id = find_envelope(handle, headers)
      :match('"code":"([%w_]+)","message":"(.*)","request_id":"([^"]*)"')
    -- The answer to HEAD has no body.
    if code ~= nil then
      answer(handle, status, own_error(status, code, message, request_id))
    end
  elseif headers:get("content-type") == "application/json" then
    headers:replace("content-type", "application/a2a+json")
  end
end
