# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done inside Redis for Celery: each script is one atomic step of bounded size.

Messages are moved as the bytes that they are. They are decoded to be looked at, never to be written again. What is
parked lies in ``backstep:celery:parked:<queue>`` (sorted set by order; a member is order, list and id), with its bytes
in the hash ``<that>:messages``; ``<that>:order`` gives out order numbers, ``<that>:why`` tells by owner why.
"""

from __future__ import annotations

from ._json_text import FIELDS, RENAMED

OURS = "backstep:celery:"

_SELECT = """
local null = cjson.null
local function read(raw)
  local ok, message = pcall(cjson.decode, raw)
  if not ok or type(message) ~= 'table' then return nil end
  local headers = type(message.headers) == 'table' and message.headers or {}
  local properties = type(message.properties) == 'table' and message.properties or {}
  local found = {id = headers.id, task = headers.task, state = 'waiting'}
  for _, id in ipairs({'correlation_id', 'delivery_tag'}) do
    if type(found.id) ~= 'string' or found.id == '' then found.id = properties[id] end
  end
  if headers.eta and headers.eta ~= null then
    found.state = (tonumber(headers.retries) or 0) > 0 and 'retrying' or 'scheduled'
  end
  return type(found.id) == 'string' and found or nil
end
-- name and enqueueing time of all that was moved
local facts = {}
local function tell(found)
  facts[#facts + 1] = type(found.task) == 'string' and found.task or ''
  facts[#facts + 1] = '' -- Celery doesn't note it
end
local function is_wanted(found, want)
  if not found or string.sub(found.id, 1, #want.canary) == want.canary then return false end
  if want.states and not want.states[found.state] then return false end
  if want.ids and not want.ids[found.id] then return false end
  return not want.tasks or (type(found.task) == 'string' and want.tasks[found.task] == true)
end
"""

# ARGV: queue, selection, skip (entries at the head to pass over), count, list
# -> {moved ids, their states, entries seen, facts}.
# From the head, where producers push: we may see an entry twice, and never miss one that a worker doesn't take.
_ARGUMENTS = """
local queue, want, skip, count, list = ARGV[1], cjson.decode(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
"""
_WALK = """
local entries = redis.call('LRANGE', list, skip, skip + count - 1)
local moved, states = {}, {}
for i, raw in ipairs(entries) do
  if #moved >= want.limit then break end
  local found = read(raw)
  if is_wanted(found, want) then
    moved[#moved + 1], states[#states + 1] = found.id, found.state; tell(found)
    if not want.dry then
      redis.call('LSET', list, skip + i - 1, 'backstep-moved')
      put(found.id, raw)
    end
  end
end
if #moved > 0 and not want.dry then
  local near_head = skip < redis.call('LLEN', list) / 2
  redis.call('LREM', list, near_head and #moved or -#moved, 'backstep-moved')
end
return {moved, states, #entries, facts}
"""
PARK = (
    _SELECT
    + _ARGUMENTS
    + """
local parked = 'backstep:celery:parked:' .. queue
local function next_order()
  local orders = parked .. ':order'
  if redis.call('HEXISTS', orders, want.owner) == 0 then
    -- a later call's numbers are all larger, and within a call they fall, since it walks from the last task forward
    redis.call('HSET', orders, want.owner, redis.call('HINCRBY', orders, '', 1000000000))
  end
  return redis.call('HINCRBY', orders, want.owner, -1)
end
local function put(id, raw)
  local order = next_order()
  local member = string.format('%.0f', order) .. '\\0' .. list .. '\\0' .. id
  redis.call('ZADD', parked, order, member)
  redis.call('HSET', parked .. ':messages', member, raw)
  redis.call('HSET', parked .. ':why', want.owner, want.reason)
end
"""
    + _WALK
)

# The same; each keeps its priority, and goes to where workers take from.
REROUTE = (
    _SELECT
    + FIELDS
    + RENAMED
    + _ARGUMENTS
    + """
local function put(id, raw)
  local named = renamed(raw, {'properties', 'delivery_info', 'routing_key'}, {[queue] = want.named})
  redis.call('RPUSH', want.target .. sub(list, #queue + 1), named)
end
"""
    + _WALK
)

_PARKED = (
    _SELECT
    + """
local queue, want = ARGV[1], cjson.decode(ARGV[2])
local parked = 'backstep:celery:parked:' .. queue
local function origin(member) return string.match(member, '^%-?%d+%z(.-)%z(.*)$') end
"""
)

# ARGV: queue, selection, skip, count, highest order -> {moved ids, their states now, entries seen, facts}.
# From the last one forward, each to where workers take from: cut short anywhere, the order is right.
REPLAY_PARKED = (
    _PARKED
    + """
local members = redis.call('ZREVRANGEBYSCORE', parked, ARGV[5], '-inf', 'LIMIT', ARGV[3], ARGV[4])
local moved, states = {}, {}
for _, member in ipairs(members) do
  if #moved >= want.limit then break end
  local raw = redis.call('HGET', parked .. ':messages', member)
  local found = read(raw)
  if is_wanted(found, want) then
    moved[#moved + 1], states[#states + 1] = found.id, found.state; tell(found)
    if not want.dry then
      redis.call('ZREM', parked, member)
      redis.call('HDEL', parked .. ':messages', member)
      if redis.call('EXISTS', parked) == 0 then redis.call('DEL', parked .. ':why') end
      redis.call('RPUSH', (origin(member)), raw)
    end
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
for _, member in ipairs(members) do
  if matches >= want.limit then break end
  if is_wanted(read(redis.call('HGET', parked .. ':messages', member)), want) then
    matches = matches + 1
    last = redis.call('ZSCORE', parked, member)
  end
end
return {matches, last, #members}
"""
)

# ARGV: list, skip (entries at the tail to pass over), count -> {entries seen, ids, states}; the next task first.
LIST_TASKS = (
    _SELECT
    + """
local skip, count = tonumber(ARGV[2]), tonumber(ARGV[3])
local entries = redis.call('LRANGE', ARGV[1], -(skip + count), -(skip + 1))
local ids, states = {}, {}
for i = #entries, 1, -1 do
  local found = read(entries[i])
  if found then ids[#ids + 1] = found.id; states[#states + 1] = found.state end
end
return {#entries, ids, states}
"""
)

# ARGV: then for each message: tag, bytes as they are held, list, bytes for the list -> tags put back.
RESTORE = """
local restored = {}
for i = 1, #ARGV, 4 do
  if redis.call('HGET', 'unacked', ARGV[i]) == ARGV[i + 1] then
    redis.call('HDEL', 'unacked', ARGV[i])
    redis.call('ZREM', 'unacked_index', ARGV[i])
    redis.call('RPUSH', ARGV[i + 2], ARGV[i + 3])
    restored[#restored + 1] = ARGV[i]
  end
end
return restored
"""

# ARGV: queue, list of the canary, key of the bindings, its binding there, key of its worker's counts or "", how it has
# ended -> nothing. Only the first to withdraw it counts it.
WITHDRAW = """
local message = redis.call('LINDEX', ARGV[2], -1)
if not message then return end
redis.call('LREM', ARGV[1], -1, message)
redis.call('DEL', ARGV[2])
redis.call('SREM', ARGV[3], ARGV[4])
if ARGV[5] ~= '' then
  redis.call('HINCRBY', ARGV[5], ARGV[6], 1)
  redis.call('EXPIRE', ARGV[5], 86400)
end
"""

# ARGV: scratch name -> commands that were refused, with what was said. Leaves nothing behind.
PROVE_RIGHTS = """
local list, hash, set = ARGV[1], 'backstep:celery:' .. ARGV[1], 'backstep:celery:parked:' .. ARGV[1]
local refused = {}
local function try(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then
    refused[#refused + 1] = string.lower((...)); refused[#refused + 1] = answer.err
  end
end
try('RPUSH', list, 'a'); try('LSET', list, 0, 'b'); try('LREM', list, 0, 'c'); try('LRANGE', list, 0, 0)
try('LLEN', list); try('LPOS', list, 'b'); try('EXPIRE', list, 10)
try('HSET', hash, 'a', '1'); try('HGET', hash, 'a'); try('HEXISTS', hash, 'a'); try('HINCRBY', hash, 'a', 1)
try('HDEL', hash, 'b'); try('ZADD', set, 1, 'a'); try('ZREM', set, 'b'); try('ZSCORE', set, 'a')
try('ZREVRANGEBYSCORE', set, 1, 0); try('SADD', set .. 's', 'a'); try('SREM', set .. 's', 'b'); try('EXISTS', set)
for _, name in ipairs({list, hash, set, set .. 's'}) do redis.pcall('DEL', name) end
try('DEL', list)
return refused
"""
