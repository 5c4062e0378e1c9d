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

OURS = "backstep:dramatiq:"

_READ = """
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
local function fields(raw, wanted)
  local found, at = {}, match(raw, '^%s*{%s*()')
  while byte(raw, at) == 34 do
    local past = after_string(raw, at)
    local key = sub(raw, at + 1, past - 2)
    at = match(raw, '^%s*:%s*()', past)
    past = after_value(raw, at)
    if wanted[key] then found[key] = sub(raw, at, past - 1) end
    at = match(raw, '^%s*,%s*()', past) or match(raw, '^%s*()}', past)
  end
  return found
end
local function word(value) return value and cjson.decode('[' .. value .. ']')[1] end
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
-- place: waiting, later or dead; nil for what is no message as Dramatiq writes them by default
local function read(raw, place)
  if not raw then return nil end
  local ok, found = pcall(read_envelope, raw, place)
  return ok and found or nil
end
local function base(queue, place)
  return 'dramatiq:' .. queue .. (place == 'later' and '.DQ' or place == 'dead' and '.XQ' or '')
end
"""

_SELECT = (
    _READ
    + """
local queue, want = ARGV[1], cjson.decode(ARGV[2])
local parked = 'backstep:dramatiq:parked:' .. queue
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
# seen}. From the last task forward: what is taken and added meanwhile makes us see one twice, never miss one.
PARK = (
    _SELECT
    + """
local skip, count, place = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local key = base(queue, place)
local function next_order()
  local orders = parked .. ':order'
  if redis.call('HEXISTS', orders, want.owner) == 0 then
    -- a later call's numbers are all larger, and within a call they fall, since it walks from the last task forward
    redis.call('HSET', orders, want.owner, redis.call('HINCRBY', orders, '', 1000000000))
  end
  return redis.call('HINCRBY', orders, want.owner, -1)
end
local ids = place == 'dead' and redis.call('ZRANGE', key, -(skip + count), -(skip + 1))
  or redis.call('LRANGE', key, -(skip + count), -(skip + 1))
local moved, states = {}, {}
for i = #ids, 1, -1 do
  if #moved >= want.limit then break end
  local raw = redis.call('HGET', key .. '.msgs', ids[i])
  local found = read(raw, place)
  if is_wanted(found) then
    moved[#moved + 1], states[#states + 1] = found.id, found.state
    if not want.dry then
      local order, score = next_order(), ''
      if place == 'dead' then
        score = redis.call('ZSCORE', key, ids[i])
        redis.call('ZREM', key, ids[i])
      else
        redis.call('LSET', key, -(skip + #ids - i + 1), 'backstep-moved')
      end
      redis.call('HDEL', key .. '.msgs', ids[i])
      local member = table.concat({string.format('%.0f', order), place, score, ids[i]}, '\\0')
      redis.call('ZADD', parked, order, member)
      redis.call('HSET', parked .. ':messages', member, raw)
      redis.call('HSET', parked .. ':why', want.owner, want.reason)
    end
  end
end
if place ~= 'dead' and #moved > 0 and not want.dry then
  local near_end = skip < redis.call('LLEN', key) / 2
  redis.call('LREM', key, near_end and -#moved or #moved, 'backstep-moved')
end
return {moved, states, #ids}
"""
)

_PARKED = (
    _SELECT
    + """
local function read_parked(member)
  local place, id = match(member, '^%-?%d+%z(.-)%z.-%z(.*)$')
  local raw = redis.call('HGET', parked .. ':messages', member)
  return read(raw, place), raw, place, id
end
"""
)

# ARGV: queue, selection, skip, count, highest order -> {moved ids, their states now, entries seen}.
# From the last one forward, each to where workers take from: cut short anywhere, the order is right.
REPLAY_PARKED = (
    _PARKED
    + """
local members = redis.call('ZREVRANGEBYSCORE', parked, ARGV[5], '-inf', 'LIMIT', ARGV[3], ARGV[4])
local moved, states = {}, {}
for _, member in ipairs(members) do
  if #moved >= want.limit then break end
  local found, raw, place, id = read_parked(member)
  if is_wanted(found) then
    if place == 'dead' then place, found.state = 'waiting', 'waiting' end
    moved[#moved + 1], states[#states + 1] = found.id, found.state
    if not want.dry then
      redis.call('ZREM', parked, member)
      redis.call('HDEL', parked .. ':messages', member)
      if redis.call('EXISTS', parked) == 0 then redis.call('DEL', parked .. ':why') end
      redis.call('HSET', base(queue, place) .. '.msgs', id, raw)
      redis.call('LPUSH', base(queue, place), id)
    end
  end
end
return {moved, states, #members}
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
  if is_wanted((read_parked(member))) then
    matches = matches + 1
    last = redis.call('ZSCORE', parked, member)
  end
end
return {matches, last, #members}
"""
)

# ARGV: queue, selection, skip, count -> {moved ids, entries seen}. The oldest first, each behind what waits.
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
    moved[#moved + 1] = found.id
    if not want.dry then
      redis.call('ZREM', dead, id)
      redis.call('HDEL', dead .. '.msgs', id)
      redis.call('HSET', waiting .. '.msgs', id, raw)
      redis.call('RPUSH', waiting, id)
    end
  end
end
return {moved, #ids}
"""
)

# ARGV: queue, place (waiting, dead or parked), skip, count -> {entries seen, ids}; the next one, or the oldest, first.
LIST_TASKS = (
    _READ
    + """
local queue, place, skip, count = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local key, messages = base(queue, place), base(queue, place) .. '.msgs'
if place == 'parked' then
  key = 'backstep:dramatiq:parked:' .. queue
  messages = key .. ':messages'
end
local entries = redis.call(place == 'waiting' and 'LRANGE' or 'ZRANGE', key, skip, skip + count - 1)
local ids = {}
for _, entry in ipairs(entries) do
  local found = read(redis.call('HGET', messages, entry), place)
  if found then ids[#ids + 1] = found.id end
end
return {#entries, ids}
"""
)

# ARGV: queue, cursor, count -> {next cursor, ids, states} of what is due later, in a list or in a worker's memory.
LIST_LATER = (
    _READ
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

# ARGV: queue, skip, count (of processes that have a heartbeat) -> {now, time of the next task or "", tasks that wait in
# the list, are due later, are dead, are parked, processes seen, then for each process that holds something: broker id,
# its heartbeat, {worker, beat, timeout, ended}, how many it holds for later, {Redis id, note of its beginning or "",
# id, task, time of enqueueing, then those of the next one}}.
LOOK = (
    _READ
    + """
local queue, skip, count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local key, messages = base(queue), base(queue) .. '.msgs'
local next_id = redis.call('LINDEX', key, 0)
local next_one = next_id and read(redis.call('HGET', messages, next_id), 'waiting')
local members = redis.call('ZRANGE', 'dramatiq:__heartbeats__', skip, skip + count - 1, 'WITHSCORES')
local time = redis.call('TIME')
local answer = {
  time[1] .. '.' .. string.format('%06d', time[2]), next_one and next_one.at or '',
  redis.call('LLEN', key), redis.call('HLEN', base(queue, 'later') .. '.msgs'),
  redis.call('ZCARD', base(queue, 'dead')), redis.call('ZCARD', 'backstep:dramatiq:parked:' .. queue), #members / 2
}
for i = 1, #members, 2 do
  local broker = members[i]
  local acks = 'dramatiq:__acks__.' .. broker .. '.' .. queue
  local taken, later = redis.call('SMEMBERS', acks), redis.call('SCARD', acks .. '.DQ')
  if #taken > 0 or later > 0 then
    local facts = {}
    for _, id in ipairs(taken) do
      local raw = redis.call('HGET', messages, id)
      if raw then
        local found = read(raw, 'waiting') or {id = id, task = '', at = ''}
        local note = redis.call('HGET', 'backstep:dramatiq:executing:' .. broker, id)
        local task = type(found.task) == 'string' and found.task or ''
        for _, fact in ipairs({id, note or '', found.id, task, found.at}) do facts[#facts + 1] = fact end
      end
    end
    local process = redis.call('HMGET', 'backstep:dramatiq:process:' .. broker, 'worker', 'beat', 'timeout', 'ended')
    for field = 1, 4 do process[field] = process[field] or '' end
    for _, part in ipairs({broker, members[i + 1], process, later, facts}) do answer[#answer + 1] = part end
  end
end
return answer
"""
)

# ARGV: queue, broker id, cursor, count -> {next cursor, {Redis id, id, task, time, state, then those of the next one}}
# of what it holds for later.
HELD_FOR_LATER = (
    _READ
    + """
local acks = 'dramatiq:__acks__.' .. ARGV[2] .. '.' .. ARGV[1] .. '.DQ'
local page = redis.call('SSCAN', acks, ARGV[3], 'COUNT', ARGV[4])
local facts = {}
for _, id in ipairs(page[2]) do
  local raw = redis.call('HGET', base(ARGV[1], 'later') .. '.msgs', id)
  if raw then
    local found = read(raw, 'later') or {id = id, task = '', at = '', state = 'scheduled'}
    local task = type(found.task) == 'string' and found.task or ''
    for _, fact in ipairs({id, found.id, task, found.at, found.state}) do facts[#facts + 1] = fact end
  end
end
return {page[1], facts}
"""
)

# ARGV: queue, then for each: broker id, its heartbeat if it must be what it was or "", place to take it from (waiting
# or later), place for it (waiting, later or dead), Redis id -> Redis ids that were taken back, of which the first given
# comes first.
TAKE_BACK = (
    _READ
    + """
local queue, taken, time = ARGV[1], {}, redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
for i = #ARGV - 4, 2, -5 do
  local broker, beat, from, to, id = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local source, target = base(queue, from), base(queue, to)
  local acks = 'dramatiq:__acks__.' .. broker .. '.' .. queue .. (from == 'later' and '.DQ' or '')
  local silent = beat == '' or redis.call('ZSCORE', 'dramatiq:__heartbeats__', broker) == beat
  if silent and redis.call('SREM', acks, id) == 1 then
    local raw = redis.call('HGET', source .. '.msgs', id)
    if raw then
      taken[#taken + 1] = id
      if to == 'dead' then
        redis.call('HDEL', source .. '.msgs', id)
        redis.call('HSET', target .. '.msgs', id, raw)
        redis.call('ZADD', target, now, id)
      else
        redis.call('LPUSH', target, id)
      end
    end
  end
end
return taken
"""
)

# ARGV: broker id. Forgets a process that holds nothing in the queues that it had; only its reporter's keys.
FORGET = """
local process = 'backstep:dramatiq:process:' .. ARGV[1]
local queues = redis.call('HGET', process, 'queues') or ''
for queue in string.gmatch(queues, '[^,]+') do
  local acks = 'dramatiq:__acks__.' .. ARGV[1] .. '.' .. queue
  if redis.call('SCARD', acks) + redis.call('SCARD', acks .. '.DQ') > 0 then return end
end
redis.call('DEL', process, 'backstep:dramatiq:executing:' .. ARGV[1])
redis.call('ZREM', 'backstep:dramatiq:processes', ARGV[1])
"""

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
