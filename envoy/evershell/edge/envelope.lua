-- Sets the HTTP status and the error envelope of an answer. Runs after the transcoder.
--
-- A success costs a few look-ups: its grpc-status is in the trailers, which this filter does not
-- read. There is no function for requests, so Envoy runs no Lua for them.
-- An error of the service arrives without a body: the worker has put the envelope and its HTTP
-- status into two headers. The header_mutation filter, which sees answers after this one, removes
-- these headers.

-- The status and the envelope of an error for which the server has set no envelope.
local function find_envelope(handle, headers, grpc_status, status)
  if status ~= nil then
    -- Envoy refused a request with the content type application/grpc: the envelope is in
    -- grpc-message, percent-encoded. The answer to HEAD has no envelope.
    local envelope = (headers:get("grpc-message") or ""):gsub("%%(%x%x)", function(hex)
      return string.char(tonumber(hex, 16))
    end)
    return status, envelope
  end
  -- A worker's gRPC library refused the call before the service received it. The envelope is
  -- derived from the gRPC status, by default from 13 (INTERNAL). The library's text may name
  -- internals and is dropped.
  local errors = handle:virtualHost():metadata()
  local rule = errors:get(grpc_status) or errors:get("13")
  local envelope = '{"error":{"code":"%s","message":"%s","request_id":"%s"}}'
  return rule.status, envelope:format(rule.code, rule.message, headers:get("x-request-id") or "")
end

-- Matches an envelope with the transcoder's error about an invalid value in a query. Captures the
-- envelope without its closing braces, the field, and the error.
local INVALID_VALUE =
  '^(.*"message":"[^"]-: ([%w_.]+): (invalid value .*)","request_id":"[^"]*")}}%s*$'

-- The same for the transcoder's error about a query parameter that the method does not have.
local UNKNOWN_FIELD =
  '^(.*"message":"[^:]*: Could not find field \\"([%w_.-]+)\\" in .*","request_id":"[^"]*")}}%s*$'

-- Adds the invalid field of a query to `details.fields`.
local function name_invalid_field(handle)
  local body = handle:body()
  if body ~= nil then
    local answer = body:getBytes(0, body:length())
    local envelope, field, text = answer:match(INVALID_VALUE)
    if field == nil then
      envelope, field = answer:match(UNKNOWN_FIELD)
      text = "unknown field"
    end
    if field ~= nil then
      body:setBytes(('%s,"details":{"fields":{"%s":"%s"}}}}\n'):format(envelope, field, text))
    end
  end
end

-- Tells the caller whether to repeat a call that failed without an answer from the service. The
-- service's own answers already say this. The metadata of the route says whether the call can be
-- repeated.
local function advise(handle, headers, status)
  local repeatable = handle:metadata():get("repeatable")
  if repeatable == false then
    headers:replace("x-should-retry", "false")
  elseif repeatable and status == "503" then
    headers:remove("x-should-retry")
    headers:replace("retry-after", "1")
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local grpc_status = headers:get("grpc-status")
  local status = headers:get("x-evershell-status")

  if grpc_status == nil or grpc_status == "0" then
    if headers:get(":status") >= "400" then
      advise(handle, headers, headers:get(":status"))
    end
    if headers:get(":status") == "200" then
      status = status or handle:metadata():get("success_status")
      if status ~= nil and status ~= "200" then
        headers:replace(":status", status)
      end
    elseif headers:get(":status") == "400" then
      name_invalid_field(handle)
    end
    return
  end

  local envelope = headers:get("x-evershell-error")
  if envelope == nil then
    status, envelope = find_envelope(handle, headers, grpc_status, status)
    advise(handle, headers, status)
  end
  headers:replace(":status", status)
  headers:replace("content-type", "application/json")
  if status == "401" then
    headers:replace("www-authenticate", "Bearer")
  end
  if envelope ~= "" then
    handle:body(true):setBytes(envelope)
  end
end
