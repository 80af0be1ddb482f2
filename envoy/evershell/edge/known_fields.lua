-- Refuses a JSON body with a field that the request does not have, which the transcoder would drop.
--
-- Only for the routes of methods for which a field that is dropped would do harm: without its
-- filter, a cancellation of some tasks would be one of all. The metadata of the route has the fields,
-- as nested tables; true stands for a value in which no names are checked, and the name * for all
-- other names.
--
-- Reads the body as it passes and never holds it back: the worker gets the headers at once, and can
-- refuse a bad credential. An unknown name and everything after it is replaced by something that is
-- no JSON, which the transcoder answers with 400. envelope.lua then names the field.

local NAMESPACE = "evershell.edge"
-- Longer than any field's name. Longer names are cut off.
local MAX_NAME_BYTES = 100

-- Finds names of fields in the parts of a body. The transcoder also accepts names without quotes and
-- strings in single quotes.
local Scan = {}
Scan.__index = Scan

function Scan.new(fields)
  -- `open` has the objects and arrays around the current place, with the fields of each object.
  -- `next` has those of the value that follows.
  -- `quote` is the quote of the current string. `is_escaped` says that its next byte is escaped.
  return setmetatable(
    {open = {}, next = fields, awaits_name = false, quote = nil, is_escaped = false},
    Scan
  )
end

-- Takes a name. Returns it if the object does not have such a field.
function Scan:take_name(name)
  self.awaits_name = false
  local fields = self.open[#self.open].fields
  self.next = fields[name] or fields["*"]
  if self.next == nil then
    return name
  end
end

function Scan:open_one(kind)
  table.insert(self.open, {kind = kind, fields = self.next})
  self:expect_name()
end

-- In an object whose names are not checked, they are read like other strings.
function Scan:expect_name()
  local current = self.open[#self.open]
  self.awaits_name = current ~= nil and current.kind == "{" and type(current.fields) == "table"
end

-- Continues a string. Returns the place after the part that was read.
function Scan:skip_string(text, at)
  local found = text:find("[\\" .. self.quote .. "]", at)
  if found == nil then
    return #text + 1
  end
  if text:sub(found, found) == "\\" then
    -- An escape may be cut off at the end of the part.
    self.is_escaped = found == #text
    return found + 2
  end
  self.quote = nil
  return found + 1
end

-- The name at this place, and the place after it; nil if the part ends before the name does.
local function name_at(text, at)
  local quote = text:match("^[\"']", at)
  if quote ~= nil then
    -- A name with an escape is not known.
    return text:match("^([^" .. quote .. "]*)" .. quote .. "()", at + 1)
  end
  local name, after = text:match("^([^%s:{}%[%],\"']+)()", at)
  if after ~= nil and after > #text then
    return nil
  end
  return name, after
end

-- Reads a part. Returns the number of bytes that are known to be good, and the name of an unknown
-- field that follows them, if there is one.
function Scan:read(text)
  local at = 1
  if self.is_escaped then
    self.is_escaped, at = false, 2
  end
  while at <= #text do
    if self.quote ~= nil then
      at = self:skip_string(text, at)
    else
      at = text:find(self.awaits_name and "[^%s,]" or "[{}%[%],\"']", at)
      if at == nil then
        return #text
      end
      local char = text:sub(at, at)
      if self.awaits_name and char ~= "}" then
        local name, after = name_at(text, at)
        if name == nil then
          if #text - at < MAX_NAME_BYTES then
            return at - 1
          end
          name = text:sub(at + 1)
        end
        local unknown = self:take_name(name)
        if unknown ~= nil then
          return at - 1, unknown
        end
        at = after
      else
        if char == "{" or char == "[" then
          self:open_one(char)
        elseif char == "}" or char == "]" then
          table.remove(self.open)
          self.awaits_name = false
        elseif char == "," then
          -- Each element of an array has the fields of the array.
          local current = self.open[#self.open]
          self.next = current and current.fields
          self:expect_name()
        else
          self.quote = char
        end
        at = at + 1
      end
    end
  end
  return #text
end

function envoy_on_request(handle)
  local fields = handle:metadata():get("fields")
  if fields == nil then
    return
  end
  local scan = Scan.new(fields)
  -- A name that is not complete is passed on with the next part.
  local held = ""
  local unknown
  for chunk in handle:bodyChunks() do
    if unknown ~= nil then
      chunk:setBytes("")
    else
      local text = held .. chunk:getBytes(0, chunk:length())
      local good
      good, unknown = scan:read(text)
      held = text:sub(good + 1)
      if unknown ~= nil then
        local name = unknown:sub(1, MAX_NAME_BYTES):gsub("[^%w_.-]", "?")
        handle:streamInfo():dynamicMetadata():set(NAMESPACE, "unknown_field", name)
        chunk:setBytes(text:sub(1, good) .. "!")
      else
        chunk:setBytes(text:sub(1, good))
      end
    end
  end
end
