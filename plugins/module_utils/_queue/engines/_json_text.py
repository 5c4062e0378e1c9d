# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lua that reads fields of a JSON text, and writes one anew, with no decoding of the rest: to decode and encode again
would change numbers, and turn empty lists into objects.
"""

from __future__ import annotations

FIELDS = """
local find, sub, byte, match = string.find, string.sub, string.byte, string.match
local function after_string(raw, at)
  at = at + 1
  while true do
    local stop = find(raw, '["\\\\]', at)
    if byte(raw, stop) == 34 then return stop + 1 end
    at = stop + 2
  end
end
local function after_value(raw, at)
  local first = byte(raw, at)
  if first == 34 then return after_string(raw, at) end
  if first ~= 91 and first ~= 123 then return find(raw, '[,%]}%s]', at) end
  local depth = 0
  while true do
    local stop = find(raw, '["%[%]{}]', at)
    local found = byte(raw, stop)
    if found == 34 then
      at = after_string(raw, stop)
    else
      depth = depth + ((found == 91 or found == 123) and 1 or -1)
      at = stop + 1
      if depth == 0 then return at end
    end
  end
end
-- of an object the texts of some fields, and where each begins
local function fields(raw, wanted)
  local found, begins, at = {}, {}, match(raw, '^%s*{%s*()')
  while byte(raw, at) == 34 do
    local past = after_string(raw, at)
    local key = sub(raw, at + 1, past - 2)
    at = match(raw, '^%s*:%s*()', past)
    past = after_value(raw, at)
    if wanted[key] then found[key], begins[key] = sub(raw, at, past - 1), at end
    at = match(raw, '^%s*,%s*()', past) or match(raw, '^%s*()}', past)
  end
  return found, begins
end
local function word(value) return value and cjson.decode('[' .. value .. ']')[1] end
"""

RENAMED = """
local function spot(raw, path)
  local text, offset = raw, 0
  for _, key in ipairs(path) do
    local found, begins = fields(text, {[key] = true})
    text, offset = found[key], offset + begins[key] - 1
  end
  return word(text), offset, offset + #text + 1
end
-- the same text with another name for what the path leads to, where it leads to one of these
local function renamed(raw, path, names)
  local ok, name, before, after = pcall(spot, raw, path)
  local other = ok and type(name) == 'string' and names[name]
  return other and sub(raw, 1, before) .. other .. sub(raw, after) or raw
end
"""
