-- Refuses requests with a header that a worker's gRPC library cannot read, and removes the headers
-- of gRPC and the binary headers (x-name-bin) that the workers do not need.
--
-- The library answers INTERNAL to a call with such a header. From then on, it also refuses valid
-- values of this header from every caller: Envoy's connection to the worker refers to the header's
-- name by the index of the bad header. One bad grpc-timeout would make all later calls with a
-- deadline fail.

-- The headers of gRPC that the workers read, and the patterns that their values must match.
local READ = {
  ["grpc-timeout"] = {"^%d%d?%d?%d?%d?%d?%d?%d?[HMSmun]$"},
  ["grpc-encoding"] = {"^identity$", "^gzip$", "^deflate$"},
  ["grpc-accept-encoding"] = {""},
}

local function matches(value, patterns)
  for _, pattern in ipairs(patterns) do
    if value:find(pattern) then
      return true
    end
  end
  return false
end

local function is_base64(value)
  for part in (value .. ","):gmatch("([^,]*),") do
    local text = part:match("^%s*([%w+/]*)=?=?%s*$")
    if text == nil or #text % 4 == 1 then
      return false
    end
  end
  return true
end

-- Why the value is refused; nil if it is valid.
local function problem(name, value)
  if name:sub(-4) == "-bin" then
    return not is_base64(value) and " is not base64" or nil
  end
  return READ[name] and not matches(value, READ[name]) and " is not valid" or nil
end

function envoy_on_request(handle)
  local headers, unread = handle:headers(), nil
  for name, value in pairs(headers) do
    if name:sub(1, 5) == "grpc-" or name:sub(-4) == "-bin" then
      local why = problem(name, value)
      if why then
        -- Envoy's mappers (protos/replies.py) replace this status with 400, and add the error.
        handle:respond({[":status"] = "422"}, "the value of the header " .. name .. why)
        return
      end
      if not READ[name] then
        unread = unread or {}
        unread[#unread + 1] = name
      end
    end
  end
  for _, name in ipairs(unread or {}) do
    headers:remove(name)
  end
end
