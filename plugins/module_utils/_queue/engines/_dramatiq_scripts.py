# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done inside Redis for Dramatiq: each script is one atomic step of bounded size.

Keys are Dramatiq's own (read in its ``dispatch.lua``, 2.2, and tried). A queue is a list of Redis ids with the messages
in a hash beside it; ``<queue>.DQ`` is one for what is due later, ``<queue>.XQ`` a sorted set of dead ones. What a
process has taken is in ``__acks__.<broker id>.<queue>``. Everything that gives back checks an id off there in the same
step, as Dramatiq's own maintenance does, so that nothing comes back twice, whoever is first.

Messages are moved as the bytes that they are. Of their JSON only the envelope's own fields are read; arguments are
stepped over, never decoded. What is parked lies in ``backstep:dramatiq:parked:<queue>`` (sorted set by order; a member
is order, place, score and Redis id), with its bytes in the hash ``<that>:messages``; ``<that>:order`` gives out order
numbers, ``<that>:why`` tells by owner why. What the workers' reporters write is told in ``backstep_dramatiq.py``.
"""

from __future__ import annotations

from ._json_text import FIELDS, RENAMED

OURS = "backstep:dramatiq:"

# What other scripts read messages with.
READ = (
    FIELDS
    + """
local ENVELOPE = {message_id = true, actor_name = true, message_timestamp = true, options = true}
local function read_envelope(raw, place)
  local given = fields(raw, ENVELOPE)
  local found = {id = word(given.message_id), task = word(given.actor_name), at = given.message_timestamp or ''}
  if place == 'later' then
    local retries = fields(given.options or '{}', {retries = true}).retries
    found.state = (tonumber(retries) or 0) > 0 and 'retrying' or 'scheduled'
  else
    found.state = place
  end
  return type(found.id) == 'string' and found or nil
end
-- As Dramatiq's own encoder writes it, short and with these fields first and last, a message is read much faster.
local function read_fast(raw, place)
  if place == 'later' and find(raw, '"retries"', 1, true) then return nil end
  local task = match(raw, '^{"queue_name":"[^"\\\\]*","actor_name":"([^"\\\\]*)","args":%[')
  local id, at = match(sub(raw, -160), ',"message_id":"([^"\\\\]*)","message_timestamp":(%d+)}$')
  return task and id and {id = id, task = task, at = at, state = place == 'later' and 'scheduled' or place}
end
-- place: waiting, later or dead; nil for what is no message as Dramatiq writes them by default
local function read(raw, place)
  if not raw then return nil end
  local fast = read_fast(raw, place)
  if fast then return fast end
  local ok, found = pcall(read_envelope, raw, place)
  return ok and found or nil
end
-- What is parked and can't be read is known by its Redis id.
local function read_kept(raw, member)
  local place, id = match(member, '^%-?%d+%z(.-)%z.-%z(.*)$')
  local found = read(raw, place)
  if raw and not found then found = {id = id, state = place == 'later' and 'scheduled' or place} end
  return found, place, id
end
local function base(queue, place)
  return 'dramatiq:' .. queue .. (place == 'later' and '.DQ' or place == 'dead' and '.XQ' or '')
end
"""
)

_SELECT = (
    READ
    + """
local queue, want = ARGV[1], cjson.decode(ARGV[2])
local parked = 'backstep:dramatiq:parked:' .. queue
-- name and enqueueing time of all that was moved
local facts = {}
local function tell(found)
  facts[#facts + 1] = type(found.task) == 'string' and found.task or ''
  facts[#facts + 1] = tonumber(found.at) and string.format('%.3f', found.at / 1000) or ''
end
local function is_wanted(found)
  if not found or sub(found.id, 1, #want.canary) == want.canary then return false end
  if want.states and not want.states[found.state] then return false end
  if want.ids and not want.ids[found.id] then return false end
  local at = tonumber(found.at)
  if want.after and not (at and at > want.after) then return false end
  if want.before and not (at and at < want.before) then return false end
  return not want.tasks or (type(found.task) == 'string' and want.tasks[found.task] == true)
end
"""
)

# ARGV: queue, selection, skip (entries at the far end to pass over), count, place -> {moved ids, their states, entries
# seen, facts}. From the last task forward: what is taken and added meanwhile makes us see one twice, never miss one.
_TAKE = (
    _SELECT
    + """
local skip, count, place = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local key = base(queue, place)
local far, near = -(skip + count), -(skip + 1)
local ids = place == 'dead' and redis.call('ZRANGE', key, far, near) or redis.call('LRANGE', key, far, near)
local raws = #ids > 0 and redis.call('HMGET', key .. '.msgs', unpack(ids)) or {}
local moved, states, taken, places = {}, {}, {}, {}
for i = #ids, 1, -1 do
  if #moved >= want.limit then break end
  local found = read(raws[i], place)
  if is_wanted(found) then
    moved[#moved + 1], states[#states + 1] = found.id, found.state; tell(found)
    taken[#taken + 1], places[#places + 1] = ids[i], i
  end
end
if #moved == 0 or want.dry then return {moved, states, #ids, facts} end
"""
)
_AWAY = """
redis.call('HDEL', key .. '.msgs', unpack(taken))
if place == 'dead' then
  redis.call('ZREM', key, unpack(taken))
elseif skip == 0 and #moved == #ids then
  redis.call('LTRIM', key, 0, -(#ids + 1))
else
  for _, i in ipairs(places) do redis.call('LSET', key, -(skip + #ids - i + 1), 'backstep-moved') end
  local near_end = skip < redis.call('LLEN', key) / 2
  redis.call('LREM', key, near_end and -#moved or #moved, 'backstep-moved')
end
return {moved, states, #ids, facts}
"""
PARK = (
    _TAKE
    + """
local orders, members, messages = parked .. ':order', {}, {}
if redis.call('HEXISTS', orders, want.owner) == 0 then
  -- a later call's numbers are all larger, and within a call they fall, since it walks from the last task forward
  redis.call('HSET', orders, want.owner, redis.call('HINCRBY', orders, '', 1000000000))
end
local order = redis.call('HINCRBY', orders, want.owner, -#moved) + #moved
for n, id in ipairs(taken) do
  local number = string.format('%.0f', order - n)
  local score = place == 'dead' and redis.call('ZSCORE', key, id) or ''
  local member = table.concat({number, place, score, id}, '\\0')
  members[2 * n - 1], members[2 * n] = number, member
  messages[2 * n - 1], messages[2 * n] = member, raws[places[n]]
end
redis.call('ZADD', parked, unpack(members))
redis.call('HSET', parked .. ':messages', unpack(messages))
redis.call('HSET', parked .. ':why', want.owner, want.reason)
"""
    + _AWAY
)

# The same; each keeps its Redis id, and what is waiting goes first in the other queue.
REROUTE = (
    _TAKE
    + RENAMED
    + """
local to, messages = base(want.target, place), {}
local names = {[queue] = want.named, [queue .. '.DQ'] = string.sub(want.named, 1, -2) .. '.DQ"'}
for n, id in ipairs(taken) do
  messages[2 * n - 1], messages[2 * n] = id, renamed(raws[places[n]], {'queue_name'}, names)
  if place == 'dead' then redis.call('ZADD', to, redis.call('ZSCORE', key, id), id) end
end
redis.call('HSET', to .. '.msgs', unpack(messages))
if place ~= 'dead' then redis.call('LPUSH', to, unpack(taken)) end
"""
    + _AWAY
)

_PARKED = (
    _SELECT
    + """
local function read_parked(members)
  local raws = #members > 0 and redis.call('HMGET', parked .. ':messages', unpack(members)) or {}
  local i = 0
  return function()
    i = i + 1
    if not members[i] then return nil end
    local found, place, id = read_kept(raws[i], members[i])
    return members[i], is_wanted(found) and found or nil, raws[i], place, id
  end
end
"""
)

# ARGV: queue, selection, skip, count, highest order -> {moved ids, their states now, entries seen, facts}.
# From the last one forward, each to where workers take from: cut short anywhere, the order is right.
REPLAY_PARKED = (
    _PARKED
    + """
local members = redis.call('ZREVRANGEBYSCORE', parked, ARGV[5], '-inf', 'LIMIT', ARGV[3], ARGV[4])
local moved, states, taken = {}, {}, {}
local lists, messages = {waiting = {}, later = {}}, {waiting = {}, later = {}}
for member, found, raw, place, id in read_parked(members) do
  if #moved >= want.limit then break end
  if found then
    if place == 'dead' then place, found.state = 'waiting', 'waiting' end
    moved[#moved + 1], states[#states + 1], taken[#taken + 1] = found.id, found.state, member; tell(found)
    table.insert(lists[place], id)
    table.insert(messages[place], id)
    table.insert(messages[place], raw)
  end
end
if #moved == 0 or want.dry then return {moved, states, #members, facts} end
redis.call('ZREM', parked, unpack(taken))
redis.call('HDEL', parked .. ':messages', unpack(taken))
if redis.call('EXISTS', parked) == 0 then redis.call('DEL', parked .. ':why') end
for place, ids in pairs(lists) do
  if #ids > 0 then
    redis.call('HSET', base(queue, place) .. '.msgs', unpack(messages[place]))
    redis.call('LPUSH', base(queue, place), unpack(ids))
  end
end
return {moved, states, #members, facts}
"""
)

# ARGV: queue, selection, skip, count -> {matches, order of the last match, entries seen}. Oldest first; only reads.
FIND_LIMIT = (
    _PARKED
    + """
local members = redis.call('ZRANGE', parked, ARGV[3], ARGV[3] + ARGV[4] - 1)
local matches, last = 0, ''
for member, found in read_parked(members) do
  if matches >= want.limit then break end
  if found then
    matches = matches + 1
    last = redis.call('ZSCORE', parked, member)
  end
end
return {matches, last, #members}
"""
)

# ARGV: queue, selection, skip, count -> {moved ids, entries seen, facts}. The oldest first, each behind what waits.
REPLAY_DEAD = (
    _SELECT
    + """
local dead, waiting = base(queue, 'dead'), base(queue)
local ids = redis.call('ZRANGE', dead, ARGV[3], ARGV[3] + ARGV[4] - 1)
local moved = {}
for _, id in ipairs(ids) do
  if #moved >= want.limit then break end
  local raw = redis.call('HGET', dead .. '.msgs', id)
  local found = read(raw, 'dead')
  if is_wanted(found) then
    moved[#moved + 1] = found.id; tell(found)
    if not want.dry then
      redis.call('ZREM', dead, id)
      redis.call('HDEL', dead .. '.msgs', id)
      redis.call('HSET', waiting .. '.msgs', id, raw)
      redis.call('RPUSH', waiting, id)
    end
  end
end
return {moved, #ids, facts}
"""
)

# ARGV: queue, place (waiting, dead or parked), skip, count -> {entries seen, ids}; the next one, or the oldest, first.
LIST_TASKS = (
    READ
    + """
local queue, place, skip, count = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local key, messages = base(queue, place), base(queue, place) .. '.msgs'
if place == 'parked' then
  key = 'backstep:dramatiq:parked:' .. queue
  messages = key .. ':messages'
end
local entries = redis.call(place == 'waiting' and 'LRANGE' or 'ZRANGE', key, skip, skip + count - 1)
local raws = #entries > 0 and redis.call('HMGET', messages, unpack(entries)) or {}
local ids = {}
for i = 1, #entries do
  local found = place == 'parked' and read_kept(raws[i], entries[i]) or read(raws[i], place)
  if found then ids[#ids + 1] = found.id end
end
return {#entries, ids}
"""
)

# ARGV: queue, cursor, count -> {next cursor, ids, states} of what is due later, in a list or in a worker's memory.
LIST_LATER = (
    READ
    + """
local page = redis.call('HSCAN', base(ARGV[1], 'later') .. '.msgs', ARGV[2], 'COUNT', ARGV[3])
local ids, states = {}, {}
for i = 2, #page[2], 2 do
  local found = read(page[2][i], 'later')
  if found then ids[#ids + 1] = found.id; states[#states + 1] = found.state end
end
return {page[1], ids, states}
"""
)

# ARGV: scratch name -> commands that were refused, with what was said. Leaves nothing behind.
PROVE_RIGHTS = """
local list, hash, set = 'dramatiq:' .. ARGV[1], 'backstep:dramatiq:' .. ARGV[1], 'dramatiq:' .. ARGV[1] .. '.XQ'
local refused = {}
local function try(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then
    refused[#refused + 1] = string.lower((...)); refused[#refused + 1] = answer.err
  end
end
try('RPUSH', list, 'a'); try('LPUSH', list, 'a'); try('LSET', list, 0, 'b'); try('LREM', list, 0, 'c')
try('LPOS', list, 'b'); try('HSET', hash, 'a', '1'); try('HGET', hash, 'a'); try('HEXISTS', hash, 'a')
try('HINCRBY', hash, 'a', 1); try('HDEL', hash, 'b'); try('EXPIRE', hash, 10); try('ZADD', set, 1, 'a')
try('ZREM', set, 'b'); try('ZSCORE', set, 'a'); try('ZREVRANGEBYSCORE', set, 1, 0); try('ZREVRANGE', set, 0, 0)
try('SREM', list .. '.acks', 'b'); try('SISMEMBER', list .. '.acks', 'b'); try('EXISTS', set)
for _, name in ipairs({list, hash, set}) do redis.pcall('DEL', name) end
try('DEL', list)
return refused
"""
