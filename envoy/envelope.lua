-- Turns the answer of the control plane, as the transcoder leaves it, into what the public API promises.
--
-- A success costs one look for `grpc-status` (a success has it in its trailers, which do not pass here), one for the status and one
-- for whether the caller wants the headers alone.
-- An error arrives as headers alone: the server has put the whole envelope and its HTTP status into two of them. The headers that
-- are read here are removed by the header_mutation filter, which runs after this one on the way out.

-- Nobody has put the envelope into a header.
local function refused(handle, headers, grpc_status, status)
  if status ~= nil then
    -- Envoy refused a request that called itself application/grpc: the envelope is in grpc-message, escaped as gRPC does it.
    -- To HEAD there is none.
    local envelope = (headers:get("grpc-message") or ""):gsub("%%(%x%x)", function(hex)
      return string.char(tonumber(hex, 16))
    end)
    return status, envelope
  end
  -- A worker's gRPC library refused the call before the service could say anything; its text stays inside.
  local errors = handle:virtualHost():metadata()
  local rule = errors:get(grpc_status) or errors:get("13")
  if rule.retry_after ~= "" then
    headers:replace("retry-after", rule.retry_after)
  end
  local envelope = '{"error":{"code":"%s","message":"%s","request_id":"%s"}}'
  return rule.status, envelope:format(rule.code, rule.message, headers:get("x-request-id") or "")
end

local NAMESPACE = "evershell.edge"

-- The transcoder binds no HEAD: the control plane is asked as with GET, and what it says is left out of the answer.
function envoy_on_request(handle)
  local headers = handle:headers()
  if headers:get(":method") == "HEAD" and handle:metadata():get("has_head") then
    headers:replace(":method", "GET")
    handle:streamInfo():dynamicMetadata():set(NAMESPACE, "head", true)
  end
end

local function wants_headers_alone(handle)
  local noted = handle:streamInfo():dynamicMetadata():get(NAMESPACE)
  return noted ~= nil and noted["head"]
end

-- Matches an envelope with the transcoder's error about an invalid value. Captures: up to the field, the field, the error, the rest.
local UNREADABLE = '^(.*"message":"[^"]-: )([%w_.%[%]]+): (invalid value .*)(","request_id":"[^"]*")}}%s*$'

local function reason_of(text)
  local seconds = text:match("Invalid data type for duration, value is (%-?[%d.]+) for type")
  if seconds ~= nil or text:find("Invalid data type for duration", 1, true) or text:find("Illegal duration format", 1, true) then
    return 'a duration is a string that ends in s, such as \\"' .. (seconds or "10") .. 's\\"'
  end
  return text
end

-- Adds the field to `details.fields`, and explains the format of a duration.
local function explain_unreadable(handle)
  local body = handle:body()
  if body == nil then
    return
  end
  local before, field, text, after = body:getBytes(0, body:length()):match(UNREADABLE)
  if field ~= nil then
    local reason = reason_of(text)
    body:setBytes(('%s%s: %s%s,"details":{"fields":{"%s":"%s"}}}}\n'):format(before, field, reason, after, field, reason))
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local grpc_status = headers:get("grpc-status")
  local status = headers:get("x-evershell-status")

  if grpc_status == nil or grpc_status == "0" then
    -- What Envoy answers by itself has its status already.
    if headers:get(":status") == "200" then
      status = status or handle:metadata():get("success_status")
      if status ~= nil and status ~= "200" then
        headers:replace(":status", status)
      end
    elseif headers:get(":status") == "400" and not wants_headers_alone(handle) then
      explain_unreadable(handle)
    end
    if wants_headers_alone(handle) then
      -- The headers go out as they are, the content length too.
      for chunk in handle:bodyChunks() do
        chunk:setBytes("")
      end
    end
    return
  end

  local envelope = headers:get("x-evershell-error")
  if envelope == nil then
    status, envelope = refused(handle, headers, grpc_status, status)
  end
  headers:replace(":status", status)
  headers:replace("content-type", "application/json")
  if status == "401" then
    headers:replace("www-authenticate", "Bearer")
  end
  if wants_headers_alone(handle) then
    headers:replace("content-length", tostring(#envelope))
  elseif envelope ~= "" then
    handle:body(true):setBytes(envelope)
  end
end
