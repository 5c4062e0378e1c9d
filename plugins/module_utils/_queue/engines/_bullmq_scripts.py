# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done inside Redis for BullMQ: each script is one atomic step of bounded size.

Keys are BullMQ's (checked against bullmq 6.7) and our own under ``backstep:bullmq:``. A job's hash stays where it is,
whatever is done with its id; its data is never read. Our own keys, per queue: ``parked:<q>`` (sorted set of ids, by
order), ``parked:<q>:from`` (hash: id to where it came from, with its score there), ``parked:<q>:order`` (hash: the
order numbers given out), ``parked:<q>:why`` (hash: by owner why).
"""

from __future__ import annotations

# A list takes in at its head and gives out at its tail. Of a queue that a person has paused, BullMQ 5 overwrites `wait`
# with `paused` when it is resumed, and 6 appends `paused` to it: only what lies in `paused` is safe with both.
COMMON = """
local queue = ARGV[1]
local base, parked = 'bull:' .. queue .. ':', 'backstep:bullmq:parked:' .. queue
-- name and enqueueing time of what was found wanted last, and of all that was moved
local task, at
local facts = {}
local function tell() facts[#facts + 1] = task or ''; facts[#facts + 1] = at or '' end
local function is_paused() return redis.call('HEXISTS', base .. 'meta', 'paused') == 1 end
local function wake() if not is_paused() then redis.call('ZADD', base .. 'marker', 0, '0') end end
local function wait_list() return is_paused() and base .. 'paused' or base .. 'wait' end
local function is_retry(id) return (tonumber(redis.call('HGET', base .. id, 'atm') or '') or 0) > 0 end
local function delay_until(id, score)
  redis.call('ZADD', base .. 'delayed', score, id)
  if is_paused() then return end
  local first = redis.call('ZRANGE', base .. 'delayed', 0, 0, 'WITHSCORES')
  redis.call('ZADD', base .. 'marker', tonumber(first[2]) / 4096, '1')
end
-- to the end of those that wait
local function enqueue(id)
  local priority = tonumber(redis.call('HGET', base .. id, 'priority') or '') or 0
  if priority > 0 then
    local count = redis.call('INCR', base .. 'pc')
    redis.call('ZADD', base .. 'prioritized', priority * 4294967296 + count % 4294967296, id)
  else
    redis.call('LPUSH', wait_list(), id)
  end
  wake()
end
local function revive(id)
  redis.call('HDEL', base .. id, 'finishedOn', 'processedOn', 'failedReason')
  local parent = redis.call('HGET', base .. id, 'parentKey')
  if parent and redis.call('EXISTS', parent) == 1 then
    local known = redis.call('ZREM', parent .. ':unsuccessful', base .. id)
      + redis.call('HDEL', parent .. ':failed', base .. id)
    if known > 0 then redis.call('SADD', parent .. ':dependencies', base .. id) end
  end
  enqueue(id)
end
local function is_wanted(id, want)
  if string.sub(id, 1, #want.canary) == want.canary then return false end
  if want.ids and not want.ids[id] then return false end
  local job = redis.call('HMGET', base .. id, 'name', 'timestamp')
  if not job[1] then return false end
  local known = tonumber(job[2] or '')
  if want.after and not (known and known > want.after * 1000) then return false end
  if want.before and not (known and known < want.before * 1000) then return false end
  task, at = job[1], known and string.format('%.3f', known / 1000)
  return not want.tasks or want.tasks[job[1]] == true
end
"""

# ARGV: queues -> for each {waiting, delayed, active, those of them without a lock, failed, waiting-children, parked,
# time of the next one in milliseconds or ""}.
STATES = """
local found = {}
for _, queue in ipairs(ARGV) do
  local base = 'bull:' .. queue .. ':'
  local stuck, active = 0, redis.call('LRANGE', base .. 'active', 0, -1)
  for _, id in ipairs(active) do stuck = stuck + 1 - redis.call('EXISTS', base .. id .. ':lock') end
  local following = redis.call('LINDEX', base .. 'wait', -1) or redis.call('LINDEX', base .. 'paused', -1)
    or redis.call('ZRANGE', base .. 'prioritized', 0, 0)[1]
  found[#found + 1] = {
    redis.call('LLEN', base .. 'wait') + redis.call('LLEN', base .. 'paused')
      + redis.call('ZCARD', base .. 'prioritized'),
    redis.call('ZCARD', base .. 'delayed'), #active, stuck, redis.call('ZCARD', base .. 'failed'),
    redis.call('ZCARD', base .. 'waiting-children'),
    redis.call('ZCARD', 'backstep:bullmq:parked:' .. queue),
    following and redis.call('HGET', base .. following, 'timestamp') or '',
  }
end
return found
"""

# ARGV: queue, place, skip, count -> {entries seen, flat list of id and "1" when it is a retry}; the next one first.
LIST = (
    COMMON
    + """
local place, skip, count = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local entries, found = {}, {}
if place == 'parked' then
  entries = redis.call('ZRANGE', parked, skip, skip + count - 1)
elseif place == 'wait' or place == 'paused' then
  local turned = redis.call('LRANGE', base .. place, -(skip + count), -(skip + 1))
  for i = #turned, 1, -1 do entries[#entries + 1] = turned[i] end
else
  entries = redis.call('ZRANGE', base .. place, skip, skip + count - 1)
end
for _, id in ipairs(entries) do
  found[#found + 1] = id
  found[#found + 1] = place == 'delayed' and is_retry(id) and '1' or ''
end
return {#entries, found}
"""
)

# ARGV: queue -> flat list of id, task, worker, start in milliseconds, and "1" when it has no lock; the oldest first.
ACTIVE = (
    COMMON
    + """
local active, found = redis.call('LRANGE', base .. 'active', 0, -1), {}
for i = #active, 1, -1 do
  local job = redis.call('HMGET', base .. active[i], 'name', 'pb', 'processedOn')
  local locked = redis.call('EXISTS', base .. active[i] .. ':lock') == 1
  for _, fact in ipairs({active[i], job[1] or '', job[2] or '', job[3] or '', locked and '' or '1'}) do
    found[#found + 1] = fact
  end
end
return found
"""
)

# ARGV: queue, selection, skip, count, place -> {moved ids, their states, entries seen, facts}.
# From where new ones come in: we may see an entry twice, and never miss one that no worker takes.
PARK = (
    COMMON
    + """
local want, skip, count, place = cjson.decode(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local key, is_list = base .. place, place == 'wait' or place == 'paused'
local function next_order()
  local orders = parked .. ':order'
  if redis.call('HEXISTS', orders, want.owner) == 0 then
    -- a later call's numbers are all larger, and within a call they fall, since it walks from the last task forward
    redis.call('HSET', orders, want.owner, redis.call('HINCRBY', orders, '', 1000000000))
  end
  return redis.call('HINCRBY', orders, want.owner, -1)
end
local function state_of(id)
  if place == 'delayed' then return is_retry(id) and 'retrying' or 'scheduled' end
  return place == 'failed' and 'dead' or 'waiting'
end
local entries = redis.call(is_list and 'LRANGE' or 'ZREVRANGE', key, skip, skip + count - 1)
local moved, states = {}, {}
for i, id in ipairs(entries) do
  if #moved >= want.limit then break end
  local state = state_of(id)
  if want.states[state] and is_wanted(id, want) then
    moved[#moved + 1], states[#states + 1] = id, state; tell()
    if not want.dry then
      local score = is_list and '' or redis.call('ZSCORE', key, id)
      if is_list then redis.call('LSET', key, skip + i - 1, 'backstep-moved') else redis.call('ZREM', key, id) end
      redis.call('ZADD', parked, next_order(), id)
      redis.call('HSET', parked .. ':from', id, place .. ':' .. score)
      redis.call('HSET', parked .. ':why', want.owner, want.reason)
    end
  end
end
if is_list and #moved > 0 and not want.dry then
  local near_head = skip < redis.call('LLEN', key) / 2
  redis.call('LREM', key, near_head and #moved or -#moved, 'backstep-moved')
end
return {moved, states, #entries, facts}
"""
)

# ARGV: queue, selection, skip, count, highest order -> {moved ids, their states now, vanished ids, entries seen,
# facts}.
# From the last one forward, each to where workers take from: cut short anywhere, the order is right.
REPLAY_PARKED = (
    COMMON
    + """
local want = cjson.decode(ARGV[2])
local ids = redis.call('ZREVRANGEBYSCORE', parked, ARGV[5], '-inf', 'LIMIT', ARGV[3], ARGV[4])
local moved, states, vanished = {}, {}, {}
local function forget(id)
  redis.call('ZREM', parked, id)
  redis.call('HDEL', parked .. ':from', id)
  if redis.call('EXISTS', parked) == 0 then redis.call('DEL', parked .. ':why') end
end
for _, id in ipairs(ids) do
  if #moved >= want.limit then break end
  if redis.call('EXISTS', base .. id) == 0 then
    vanished[#vanished + 1] = id
    if not want.dry then forget(id) end
  elseif is_wanted(id, want) then
    local place, score = string.match(redis.call('HGET', parked .. ':from', id), '^([^:]*):(.*)$')
    moved[#moved + 1] = id; tell()
    states[#states + 1] = place ~= 'delayed' and 'waiting' or is_retry(id) and 'retrying' or 'scheduled'
    if not want.dry then
      forget(id)
      if place == 'delayed' then
        delay_until(id, score)
      elseif place == 'prioritized' then
        redis.call('ZADD', base .. place, score, id); wake()
      elseif place == 'failed' then
        revive(id)
      else
        redis.call('RPUSH', wait_list(), id); wake()
      end
    end
  end
end
return {moved, states, vanished, #ids, facts}
"""
)

# ARGV: queue, selection, skip, count -> {matches, order of the last match, entries seen}. Oldest first; only reads.
FIND_LIMIT = (
    COMMON
    + """
local want = cjson.decode(ARGV[2])
local ids = redis.call('ZRANGE', parked, ARGV[3], ARGV[3] + ARGV[4] - 1)
local matches, last = 0, ''
for _, id in ipairs(ids) do
  if matches >= want.limit then break end
  if is_wanted(id, want) then matches = matches + 1; last = redis.call('ZSCORE', parked, id) end
end
return {matches, last, #ids}
"""
)

# ARGV: queue, selection, skip, count -> {moved ids, entries seen, facts}. The one that failed first comes first.
REPLAY_DEAD = (
    COMMON
    + """
local want = cjson.decode(ARGV[2])
local ids, moved = redis.call('ZRANGE', base .. 'failed', ARGV[3], ARGV[3] + ARGV[4] - 1), {}
for _, id in ipairs(ids) do
  if #moved >= want.limit then break end
  if is_wanted(id, want) then
    moved[#moved + 1] = id; tell()
    if not want.dry then redis.call('ZREM', base .. 'failed', id); revive(id) end
  end
end
return {moved, #ids, facts}
"""
)

# ARGV: queue, {gone, to, dry, why, canary} -> flat list of id, task, worker and new state.
# The one that began first comes first again. BullMQ's own count of how often a task stalled isn't touched: the second
# time it would fail the task.
RECOVER = (
    COMMON
    + """
local want, taken = cjson.decode(ARGV[2]), {}
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function put_first(id)
  local priority = tonumber(redis.call('HGET', base .. id, 'priority') or '') or 0
  if priority > 0 then
    redis.call('ZADD', base .. 'prioritized', priority * 4294967296, id)
  else
    redis.call('RPUSH', wait_list(), id)
  end
  wake()
  return 'waiting'
end
local function seconds_to_wait(opts, attempt)
  local backoff = opts.backoff
  if type(backoff) == 'number' then return backoff end
  local delay = type(backoff) == 'table' and tonumber(backoff.delay) or 0
  return backoff and backoff.type == 'exponential' and delay * 2 ^ (attempt - 1) or delay
end
local function treat_as_failed(id, dry)
  local ok, opts = pcall(cjson.decode, redis.call('HGET', base .. id, 'opts') or '{}')
  if not ok then opts = {} end
  local attempt = (tonumber(redis.call('HGET', base .. id, 'atm') or '') or 0) + 1
  local again = attempt < (tonumber(opts.attempts) or 1)
  local delay = again and seconds_to_wait(opts, attempt) or 0
  if not dry then
    redis.call('HSET', base .. id, 'atm', attempt, 'failedReason', want.why)
    if not again then
      redis.call('HSET', base .. id, 'finishedOn', now)
      redis.call('ZADD', base .. 'failed', now, id)
    elseif delay > 0 then
      redis.call('HSET', base .. id, 'delay', delay)
      delay_until(id, string.format('%.0f', (now + delay) * 4096))
    else
      enqueue(id)
    end
  end
  return not again and 'dead' or delay > 0 and 'scheduled' or 'waiting'
end
for _, id in ipairs(redis.call('LRANGE', base .. 'active', 0, -1)) do
  local job = redis.call('HMGET', base .. id, 'name', 'pb')
  local worker = job[2] or ''
  if want.gone[worker] or redis.call('EXISTS', base .. id .. ':lock') == 0 then
    if not want.dry then
      redis.call('LREM', base .. 'active', 1, id)
      redis.call('SREM', base .. 'stalled', id)
      redis.call('DEL', base .. id .. ':lock')
    end
    if string.sub(id, 1, #want.canary) == want.canary then
      if not want.dry then redis.call('DEL', base .. id) end
    elseif job[1] then
      local state = 'waiting'
      if want.to == 'dead' then state = treat_as_failed(id, want.dry) elseif not want.dry then put_first(id) end
      for _, fact in ipairs({id, job[1], worker, state}) do taken[#taken + 1] = fact end
    end
  end
end
return taken
"""
)

# ARGV: queue, task, seconds, ids -> "" or "paused" when a person has paused the queue, and nothing was sent.
SEND_CANARIES = (
    COMMON
    + """
if is_paused() then return 'paused' end
local clock = redis.call('TIME')
local lives = '{"age":' .. ARGV[3] .. '}'
local opts = '{"attempts":1,"removeOnComplete":' .. lives .. ',"removeOnFail":' .. lives .. '}'
for i = 4, #ARGV do
  redis.call('HSET', base .. ARGV[i], 'name', ARGV[2], 'data', '{}', 'opts', opts, 'delay', 0, 'priority', 0,
    'timestamp', string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000)))
  redis.call('RPUSH', base .. 'wait', ARGV[i])
end
wake()
return ''
"""
)

_CANARY = """
local function outcome(queue, id)
  local base = 'bull:' .. queue .. ':'
  local worker = redis.call('HGET', base .. id, 'pb') or ''
  if redis.call('ZSCORE', base .. 'completed', id) then return 'finished', worker end
  if redis.call('ZSCORE', base .. 'failed', id) then return 'failed', worker end
  if redis.call('EXISTS', base .. id) == 0 then return 'gone', '' end
  if redis.call('EXISTS', base .. id .. ':lock') == 1 then return 'executing', worker end
  return 'waiting', ''
end
"""

# ARGV: then for each canary queue and id -> flat list of state and worker.
CANARIES = (
    _CANARY
    + """
local found = {}
for i = 1, #ARGV, 2 do
  local state, worker = outcome(ARGV[i], ARGV[i + 1])
  found[#found + 1] = state; found[#found + 1] = worker
end
return found
"""
)

# ARGV: queue, ids -> nothing. An executing canary is left to its end, after which BullMQ removes it.
WITHDRAW = (
    _CANARY
    + """
local base = 'bull:' .. ARGV[1] .. ':'
for i = 2, #ARGV do
  local state = outcome(ARGV[1], ARGV[i])
  if state ~= 'executing' then
    redis.call('LREM', base .. 'wait', -1, ARGV[i])
    redis.call('LREM', base .. 'paused', -1, ARGV[i])
    redis.call('ZREM', base .. 'completed', ARGV[i])
    redis.call('ZREM', base .. 'failed', ARGV[i])
    redis.call('DEL', base .. ARGV[i], base .. ARGV[i] .. ':logs')
  end
end
"""
)

# ARGV: scratch name -> commands that were refused, with what was said. Leaves nothing behind.
PROVE_RIGHTS = """
local base, ours = 'bull:' .. ARGV[1] .. ':', 'backstep:bullmq:parked:' .. ARGV[1]
local job, list, set, members = base .. 'a', base .. 'wait', base .. 'failed', base .. 'stalled'
local refused = {}
local function try(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then
    refused[#refused + 1] = string.lower((...)); refused[#refused + 1] = answer.err
  end
end
try('HSET', job, 'a', '1'); try('HDEL', job, 'b'); try('HINCRBY', ours .. ':order', 'a', 1)
try('RPUSH', list, 'a'); try('LPUSH', list, 'b'); try('LSET', list, 0, 'c'); try('LREM', list, 0, 'd')
try('ZADD', set, 1, 'a'); try('ZREM', set, 'b'); try('ZADD', ours, 1, 'a'); try('SADD', members, 'a')
try('SREM', members, 'b'); try('INCR', base .. 'pc'); try('TIME')
for _, name in ipairs({job, list, set, members, base .. 'pc', ours, ours .. ':order'}) do redis.pcall('DEL', name) end
try('DEL', job)
return refused
"""
