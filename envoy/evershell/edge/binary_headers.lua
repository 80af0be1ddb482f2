-- Refuses requests with a binary header, x-name-bin, whose value is not base64, and removes the
-- others, which the workers do not read.
--
-- A worker's gRPC library answers INTERNAL to such a value. It then also refuses valid values of
-- the same header, from any caller, because Envoy's connection to the worker refers to the name
-- by the index of the bad header.

local function is_base64(value)
  for part in (value .. ","):gmatch("([^,]*),") do
    local text = part:match("^%s*([%w+/]*)=?=?%s*$")
    if text == nil or #text % 4 == 1 then
      return false
    end
  end
  return true
end

function envoy_on_request(handle)
  local headers, names = handle:headers(), nil
  for name, value in pairs(headers) do
    if name:sub(-4) == "-bin" then
      if not is_base64(value) then
        -- The status selects the answer to a call of gRPC (protos/replies.py). REST gets 400.
        handle:respond({[":status"] = "422"}, "the value of the header " .. name .. " is not base64")
        return
      end
      names = names or {}
      names[#names + 1] = name
    end
  end
  for _, name in ipairs(names or {}) do
    headers:remove(name)
  end
end
