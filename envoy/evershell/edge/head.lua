-- Answers HEAD like GET, without the body, on the routes that support HEAD. The transcoder has no
-- binding for HEAD: the worker receives a GET, and the body of its answer is dropped. Envoy passes
-- an answer to envelope.lua first, then to this filter.

local NAMESPACE = "evershell.edge"

function envoy_on_request(handle)
  local headers = handle:headers()
  if headers:get(":method") == "HEAD" then
    headers:replace(":method", "GET")
    handle:streamInfo():dynamicMetadata():set(NAMESPACE, "head", true)
  end
end

function envoy_on_response(handle)
  local metadata = handle:streamInfo():dynamicMetadata():get(NAMESPACE)
  if metadata ~= nil and metadata["head"] then
    -- Drops the body and keeps the headers, including the content length.
    for chunk in handle:bodyChunks() do
      chunk:setBytes("")
    end
  end
end
