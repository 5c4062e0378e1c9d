# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done inside Redis for Sidekiq's queues: each script is one atomic step of bounded size.

Keys are Sidekiq's (the same in 6.4, 7.3 and 8.1): a queue is the list ``queue:<q>`` (pushed at its head, popped at its
tail); ``schedule``, ``retry`` and ``dead`` are sorted sets that all queues share. Payloads are moved as the bytes that
they are, into the new place before they leave the old one: a step that is refused half way loses nothing. Of their
fields only the outermost are looked at, and arguments are skipped unread. What is parked lies in
``backstep:sidekiq:parked:<queue>`` (sorted set by order; a member is order, place, score and id), with its bytes in the
hash ``<that>:messages``; ``<that>:order`` gives out order numbers, ``<that>:why`` tells by owner why.
"""

from __future__ import annotations

OURS = "backstep:sidekiq:"

READ = r"""
local ours = 'backstep:sidekiq:'
local function string_end(raw, at)
  at = at + 1
  while true do
    at = string.find(raw, '["\\]', at)
    if not at or string.byte(raw, at) == 34 then return at end
    at = at + 2
  end
end
local function value_end(raw, at)
  local first = string.byte(raw, at)
  if first == 34 then return string_end(raw, at) end
  if first ~= 91 and first ~= 123 then return select(2, string.find(raw, '^[^,%]}%s]+', at)) end
  local depth = 0
  while at do
    at = string.find(raw, '["%[%]{}]', at)
    local found = at and string.byte(raw, at)
    if found == 34 then at = string_end(raw, at)
    elseif found == 91 or found == 123 then depth = depth + 1
    elseif found then
      depth = depth - 1
      if depth == 0 then return at end
    end
    at = at and at + 1
  end
end
-- The outermost fields: where the value of each begins and ends, and where the field does.
local function fields(raw)
  local found, at = {}, string.match(raw, '^%s*{()')
  while at do
    local key = string.match(raw, '^[%s,]*()"', at)
    local key_end = key and string_end(raw, key)
    local value = key_end and string.match(raw, '^%s*:%s*()', key_end + 1)
    if not value then break end
    local value_end = value_end(raw, value)
    if not value_end then return {} end
    found[string.sub(raw, key + 1, key_end - 1)] = {value, value_end, key}
    at = value_end + 1
  end
  return found
end
local function value_of(raw, field)
  local found = field and string.sub(raw, field[1], field[2]) or 'null'
  if string.byte(found) ~= 34 then return tonumber(found) or found end
  if not string.find(found, '\\', 1, true) then return string.sub(found, 2, -2) end
  local ok, decoded = pcall(cjson.decode, '[' .. found .. ']')
  return ok and decoded[1] or found
end
-- Since version 8 some times are milliseconds.
local function seconds(at) return type(at) == 'number' and (at > 1e11 and at / 1000 or at) or nil end
local function read(raw)
  local all = fields(raw)
  local id = all.jid and value_of(raw, all.jid)
  if type(id) ~= 'string' then return nil end
  return {
    id = id, task = value_of(raw, all.wrapped or all.class), queue = value_of(raw, all.queue),
    at = seconds(value_of(raw, all.enqueued_at)) or seconds(value_of(raw, all.created_at)),
  }
end
"""

_SELECT = (
    READ
    + r"""
local queue, want = ARGV[1], cjson.decode(ARGV[2])
local parked = ours .. 'parked:' .. queue
-- name and enqueueing time of all that was moved
local facts = {}
local function tell(found)
  facts[#facts + 1] = type(found.task) == 'string' and found.task or ''
  facts[#facts + 1] = found.at and string.format('%.6f', found.at) or ''
end
local function is_wanted(found, want)
  if not found or string.sub(found.id, 1, #want.canary) == want.canary then return false end
  if want.ids and not want.ids[found.id] then return false end
  if want.after and not (found.at and found.at > want.after) then return false end
  if want.before and not (found.at and found.at < want.before) then return false end
  return not want.tasks or (type(found.task) == 'string' and want.tasks[found.task] == true)
end
-- What is parked, and the place and score that it comes back to. What can't be read has the id that its worker gave it.
local function parked_task(member)
  local raw = redis.call('HGET', parked .. ':messages', member)
  local place, score, id = string.match(member, '^%-?%d+%z(.-)%z(.-)%z(.*)$')
  return raw and (read(raw) or {id = id}), raw, place, score
end
"""
)

_PARK = (
    _SELECT
    + r"""
local function put(raw, id, place, score)
  local orders = parked .. ':order'
  if redis.call('HEXISTS', orders, want.owner) == 0 then
    -- a later call's numbers are all larger, and within a call they fall, since it walks from the last task forward
    redis.call('HSET', orders, want.owner, redis.call('HINCRBY', orders, '', 1000000000))
  end
  local order = string.format('%.0f', redis.call('HINCRBY', orders, want.owner, -1))
  local member = table.concat({order, place, score, id}, '\0')
  redis.call('ZADD', parked, order, member)
  redis.call('HSET', parked .. ':messages', member, raw)
  redis.call('HSET', parked .. ':why', want.owner, want.reason)
end
"""
)

_REROUTE = (
    _SELECT
    + r"""
local function put(raw, id, place, score)
  local named = fields(raw).queue
  if named and value_of(raw, named) == queue then
    raw = string.sub(raw, 1, named[1] - 1) .. want.named .. string.sub(raw, named[2] + 1)
  end
  if place == 'waiting' then
    redis.call('SADD', 'queues', want.target)
    redis.call('RPUSH', 'queue:' .. want.target, raw)
  else
    redis.call('ZADD', ARGV[5], score, raw)
  end
end
"""
)

# ARGV: queue, selection, skip (entries at the head to pass over), count -> {moved ids, entries seen, facts}.
# From the head, where producers push: we may see an entry twice, and never miss one that a worker doesn't take.
_WALK_WAITING = r"""
local list, skip = 'queue:' .. queue, tonumber(ARGV[3])
local entries = redis.call('LRANGE', list, skip, skip + ARGV[4] - 1)
local moved = {}
for i, raw in ipairs(entries) do
  if #moved >= want.limit then break end
  local found = read(raw)
  if is_wanted(found, want) then
    moved[#moved + 1] = found.id; tell(found)
    if not want.dry then
      put(raw, found.id, 'waiting', '')
      redis.call('LSET', list, skip + i - 1, 'backstep-moved')
    end
  end
end
if #moved > 0 and not want.dry then
  local near_head = skip < redis.call('LLEN', list) / 2
  redis.call('LREM', list, near_head and #moved or -#moved, 'backstep-moved')
end
return {moved, #entries, facts}
"""
PARK_WAITING = _PARK + _WALK_WAITING
REROUTE_WAITING = _REROUTE + _WALK_WAITING

# ARGV: queue, selection, cursor, count, sorted set, state -> {next cursor, moved ids, facts}.
# A scan returns each member that is there from its start to its end, whatever is added or removed meanwhile.
_WALK_SET = r"""
local page = redis.call('ZSCAN', ARGV[5], ARGV[3], 'COUNT', ARGV[4])
local moved = {}
for i = 1, #page[2], 2 do
  local raw = page[2][i]
  local found = #moved < want.limit and read(raw)
  if found and found.queue == queue and is_wanted(found, want) then
    moved[#moved + 1] = found.id; tell(found)
    if not want.dry and redis.call('ZSCORE', ARGV[5], raw) then
      put(raw, found.id, ARGV[6], page[2][i + 1])
      redis.call('ZREM', ARGV[5], raw)
    end
  end
end
return {page[1], moved, facts}
"""
PARK_SET = _PARK + _WALK_SET
REROUTE_SET = _REROUTE + _WALK_SET

# ARGV: queue, selection, cursor, count -> {next cursor, moved ids, facts}. Each goes to the end of its queue.
REPLAY_DEAD = (
    _SELECT
    + r"""
local page = redis.call('ZSCAN', 'dead', ARGV[3], 'COUNT', ARGV[4])
local moved = {}
for i = 1, #page[2], 2 do
  local raw = page[2][i]
  local found = #moved < want.limit and read(raw)
  if found and found.queue == queue and is_wanted(found, want) then
    moved[#moved + 1] = found.id; tell(found)
    if not want.dry and redis.call('ZSCORE', 'dead', raw) then
      redis.call('SADD', 'queues', queue)
      redis.call('LPUSH', 'queue:' .. queue, raw)
      redis.call('ZREM', 'dead', raw)
    end
  end
end
return {page[1], moved, facts}
"""
)

# ARGV: queue, selection, skip, count, highest order -> {moved ids, their states now, entries seen, facts}.
# From the last one forward, waiting ones each to where workers pop: cut short anywhere, the order is right.
REPLAY_PARKED = (
    _SELECT
    + r"""
local members = redis.call('ZREVRANGEBYSCORE', parked, ARGV[5], '-inf', 'LIMIT', ARGV[3], ARGV[4])
local sets = {scheduled = 'schedule', retrying = 'retry'}
local moved, states = {}, {}
for _, member in ipairs(members) do
  if #moved >= want.limit then break end
  local found, raw, place, score = parked_task(member)
  if is_wanted(found, want) then
    moved[#moved + 1], states[#states + 1] = found.id, sets[place] and place or 'waiting'; tell(found)
    if not want.dry then
      if sets[place] then
        redis.call('ZADD', sets[place], score, raw)
      else
        redis.call('SADD', 'queues', queue)
        redis.call(place == 'dead' and 'LPUSH' or 'RPUSH', 'queue:' .. queue, raw)
      end
      redis.call('ZREM', parked, member)
      redis.call('HDEL', parked .. ':messages', member)
      if redis.call('EXISTS', parked) == 0 then redis.call('DEL', parked .. ':why') end
    end
  end
end
return {moved, states, #members, facts}
"""
)

# ARGV: queue, selection, skip, count -> {matches, order of the last match, entries seen}. Oldest first; only reads.
FIND_LIMIT = (
    _SELECT
    + r"""
local members = redis.call('ZRANGE', parked, ARGV[3], ARGV[3] + ARGV[4] - 1)
local matches, last = 0, ''
for _, member in ipairs(members) do
  if matches >= want.limit then break end
  if is_wanted((parked_task(member)), want) then
    matches = matches + 1
    last = redis.call('ZSCORE', parked, member)
  end
end
return {matches, last, #members}
"""
)

# ARGV: queue, skip (entries at the tail to pass over), count -> {entries seen, ids}; the next task first.
LIST_WAITING = (
    READ
    + r"""
local skip = tonumber(ARGV[2])
local entries = redis.call('LRANGE', 'queue:' .. ARGV[1], -(skip + ARGV[3]), -(skip + 1))
local ids = {}
for i = #entries, 1, -1 do
  local found = read(entries[i])
  if found then ids[#ids + 1] = found.id end
end
return {#entries, ids}
"""
)

# ARGV: sorted set, skip, count -> {entries seen, ids, their queues}; the first that is due first.
LIST_SET = (
    READ
    + r"""
local entries = redis.call('ZRANGE', ARGV[1], ARGV[2], ARGV[2] + ARGV[3] - 1)
local ids, queues = {}, {}
for _, raw in ipairs(entries) do
  local found = read(raw)
  if found then ids[#ids + 1], queues[#queues + 1] = found.id, tostring(found.queue) end
end
return {#entries, ids, queues}
"""
)

# ARGV: queues -> for each: waiting, when the next one was enqueued or "", parked.
COUNT = (
    READ
    + r"""
local counts = {}
for i, queue in ipairs(ARGV) do
  local found = read(redis.call('LINDEX', 'queue:' .. queue, -1) or '')
  counts[i] = {
    redis.call('LLEN', 'queue:' .. queue), found and found.at and string.format('%.6f', found.at) or '',
    redis.call('ZCARD', ours .. 'parked:' .. queue),
  }
end
return counts
"""
)

# ARGV: scratch name -> commands that were refused, with what was said. Leaves nothing behind.
PROVE_RIGHTS = r"""
local list, other, hash = 'queue:' .. ARGV[1], 'backstep:sidekiq:taken:' .. ARGV[1], 'backstep:sidekiq:' .. ARGV[1]
local set, names = 'backstep:sidekiq:parked:' .. ARGV[1], 'backstep:sidekiq:names:' .. ARGV[1]
local refused = {}
local function try(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then
    refused[#refused + 1] = string.lower((...)); refused[#refused + 1] = answer.err
  end
end
try('RPUSH', list, 'a'); try('LPUSH', list, 'b'); try('LSET', list, 0, 'c'); try('LREM', list, 0, 'd')
try('LRANGE', list, 0, 0); try('LINDEX', list, 0); try('LLEN', list); try('LPOS', list, 'c'); try('RPUSH', other, 'a')
try('HSET', hash, 'a', '1'); try('HGET', hash, 'a'); try('HMGET', hash, 'a'); try('HGETALL', hash)
try('HEXISTS', hash, 'a'); try('HINCRBY', hash, 'a', 1); try('HDEL', hash, 'b'); try('HLEN', hash)
try('ZADD', set, 1, 'a'); try('ZREM', set, 'b'); try('ZSCORE', set, 'a'); try('ZSCAN', set, 0)
try('ZREVRANGEBYSCORE', set, 1, 0); try('ZREM', 'schedule', ARGV[1]); try('ZREM', 'retry', ARGV[1])
try('ZREM', 'dead', ARGV[1]); try('SADD', names, 'a'); try('SREM', names, 'b'); try('SREM', 'queues', ARGV[1])
try('SREM', 'processes', ARGV[1]); try('EXISTS', set); try('EXPIRE', list, 10); try('TIME')
for _, name in ipairs({list, other, hash, set, names}) do redis.pcall('DEL', name) end
try('DEL', list)
return refused
"""
