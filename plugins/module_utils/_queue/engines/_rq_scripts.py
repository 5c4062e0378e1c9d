# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done inside Redis for RQ: each script is one atomic step of bounded size.

Keys are RQ's (checked against rq 2.12) and our own under ``backstep:rq:``. Payloads are never read here: a task's
name comes from the plain-text description that RQ writes, or is told by the caller.

Our own keys, per queue: ``parked:<q>`` (sorted set of ids, by order), ``parked:<q>:from`` (hash: id to where it
came from), ``parked:<q>:order`` (hash: the order numbers given out). A crash between two scripts leaves all of these
consistent.
"""

from __future__ import annotations

OURS = "backstep:rq:"
PAUSE_MARK = b"backstep:"

_SELECT = """
-- name and enqueueing time of what was found wanted last, and of all that was moved
local task, at
local facts = {}
local function tell() facts[#facts + 1] = task or ''; facts[#facts + 1] = at or '' end
local function job_key(id) return 'rq:job:' .. id end
local function is_wanted(id, want, unnamed)
  if string.sub(id, 1, #want.canary) == want.canary then return false end
  if want.ids and not want.ids[id] then return false end
  local job = redis.call('HMGET', job_key(id), 'description', 'enqueued_at', 'created_at', 'started_at', 'repeats_left')
  if not job[3] then return false end
  at = job[2]
  if not at or at == '' then at = job[3] end
  if want.after and at <= want.after then return false end
  if want.before and at >= want.before then return false end
  if want.retries ~= nil and want.retries ~= ((job[4] or '') ~= '' and not job[5]) then return false end
  task = string.match(job[1] or '', '^([%w_]+%.[%w_%.]+)%(')
  if want.tasks and not task then unnamed[#unnamed + 1] = id; return false end
  return not want.tasks or want.tasks[task] == true
end
local function hold(id)
  local left = redis.call('PTTL', job_key(id))
  if left > 0 then
    for _, key in ipairs({job_key(id), job_key(id) .. ':dependents', 'rq:job::' .. id .. ':dependencies'}) do
      redis.call('PERSIST', key)
    end
  end
  return left
end
local function let_go(id, left)
  if left > 0 then
    for _, key in ipairs({job_key(id), job_key(id) .. ':dependents', 'rq:job::' .. id .. ':dependencies'}) do
      redis.call('PEXPIRE', key, left)
    end
  end
end
-- what RQ's requeue does to a job, list entry included
local function enqueue(id, queue, front, now)
  local key = job_key(id)
  redis.call('HSET', key, 'status', 'queued', 'origin', queue, 'enqueued_at', now,
    'started_at', '', 'ended_at', '', 'exc_info', '')
  local ttl = tonumber(redis.call('HGET', key, 'ttl') or '') or 0
  if ttl > 0 then let_go(id, ttl * 1000) end
  redis.call('SADD', 'rq:queues', 'rq:queue:' .. queue)
  redis.call(front and 'LPUSH' or 'RPUSH', 'rq:queue:' .. queue, id)
end
"""

_PARK = (
    _SELECT
    + """
local queue, want = ARGV[1], cjson.decode(ARGV[2])
local parked = 'backstep:rq:parked:' .. queue
local function next_order()
  local orders = parked .. ':order'
  if redis.call('HEXISTS', orders, want.owner) == 0 then
    -- a later call's numbers are all larger, and within a call they fall, since it walks from the last task forward
    redis.call('HSET', orders, want.owner, redis.call('HINCRBY', orders, '', 1000000000))
  end
  return redis.call('HINCRBY', orders, want.owner, -1)
end
local function put(id, state, score)
  redis.call('ZADD', parked, next_order(), id)
  redis.call('HSET', parked .. ':from', id, cjson.encode({state = state, score = score, left = hold(id),
    owner = want.owner, reason = want.reason, at = redis.call('TIME')[1]}))
end
"""
)

_REROUTE = (
    _SELECT
    + """
local queue, want = ARGV[1], cjson.decode(ARGV[2])
local function put(id, state, score)
  redis.call('HSET', job_key(id), 'origin', want.target)
  redis.call('SADD', 'rq:queues', 'rq:queue:' .. want.target)
  if state == 'waiting' then
    redis.call('LPUSH', 'rq:queue:' .. want.target, id)
  else
    redis.call('ZADD', 'rq:' .. ARGV[5] .. ':' .. want.target, score, id)
  end
end
"""
)

# ARGV: queue, selection, skip (entries at the tail to pass over), count
# -> {moved ids, entries seen, unnamed ids, facts}.
# From the tail: what workers pop and producers push meanwhile makes us see an entry twice, never miss one.
_WALK_WAITING = """
local list, skip, count = 'rq:queue:' .. queue, tonumber(ARGV[3]), tonumber(ARGV[4])
local ids = redis.call('LRANGE', list, -(skip + count), -(skip + 1))
local moved, unnamed = {}, {}
for i = #ids, 1, -1 do
  if #moved >= want.limit then break end
  if is_wanted(ids[i], want, unnamed) then
    moved[#moved + 1] = ids[i]; tell()
    if not want.dry then
      redis.call('LSET', list, -(skip + #ids - i + 1), 'backstep-moved')
      put(ids[i], 'waiting', '')
    end
  end
end
if #moved > 0 and not want.dry then
  local near_tail = skip < redis.call('LLEN', list) / 2
  redis.call('LREM', list, near_tail and -#moved or #moved, 'backstep-moved')
end
return {moved, #ids, unnamed, facts}
"""
PARK_WAITING = _PARK + _WALK_WAITING
REROUTE_WAITING = _REROUTE + _WALK_WAITING

# ARGV: queue, selection, cursor, count, registry -> {next cursor, moved ids, unnamed ids, facts}.
# A scan returns each member that is there from its start to its end, whatever is added or removed meanwhile.
_WALK_REGISTRY = """
local registry = 'rq:' .. ARGV[5] .. ':' .. queue
local page = redis.call('ZSCAN', registry, ARGV[3], 'COUNT', ARGV[4])
local moved, unnamed = {}, {}
for i = 1, #page[2], 2 do
  local id, score = page[2][i], page[2][i + 1]
  if #moved < want.limit and is_wanted(id, want, unnamed) then
    moved[#moved + 1] = id; tell()
    if not want.dry and redis.call('ZREM', registry, id) == 1 then
      put(id, ARGV[5] == 'failed' and 'dead' or 'scheduled', score)
    end
  end
end
return {page[1], moved, unnamed, facts}
"""
PARK_REGISTRY = _PARK + _WALK_REGISTRY
REROUTE_REGISTRY = _REROUTE + _WALK_REGISTRY

# ARGV: queue, selection, cursor, count -> {next cursor, moved ids, unnamed ids, facts}.
REPLAY_DEAD = (
    _SELECT
    + """
local queue, want = ARGV[1], cjson.decode(ARGV[2])
local page = redis.call('ZSCAN', 'rq:failed:' .. queue, ARGV[3], 'COUNT', ARGV[4])
local moved, unnamed = {}, {}
for i = 1, #page[2], 2 do
  local id = page[2][i]
  if #moved < want.limit and is_wanted(id, want, unnamed) then
    moved[#moved + 1] = id; tell()
    if not want.dry and redis.call('ZREM', 'rq:failed:' .. queue, id) == 1 then enqueue(id, queue, false, want.now) end
  end
end
return {page[1], moved, unnamed, facts}
"""
)

# ARGV: queue, selection, skip, count, highest order -> {moved ids, their states now, entries seen, unnamed, vanished,
# facts}.
# From the last one forward, each to the head of the queue: cut short anywhere, the order is right.
REPLAY_PARKED = (
    _SELECT
    + """
local queue, want = ARGV[1], cjson.decode(ARGV[2])
local parked = 'backstep:rq:parked:' .. queue
local ids = redis.call('ZREVRANGEBYSCORE', parked, ARGV[5], '-inf', 'LIMIT', ARGV[3], ARGV[4])
local moved, states, unnamed, vanished = {}, {}, {}, {}
for _, id in ipairs(ids) do
  if #moved >= want.limit then break end
  if redis.call('EXISTS', job_key(id)) == 0 then
    vanished[#vanished + 1] = id
    if not want.dry then redis.call('ZREM', parked, id); redis.call('HDEL', parked .. ':from', id) end
  elseif is_wanted(id, want, unnamed) then
    local from = cjson.decode(redis.call('HGET', parked .. ':from', id))
    moved[#moved + 1] = id; tell()
    states[#states + 1] = from.state == 'scheduled' and 'scheduled' or 'waiting'
    if not want.dry then
      redis.call('ZREM', parked, id); redis.call('HDEL', parked .. ':from', id)
      let_go(id, from.left)
      if from.state == 'scheduled' then
        redis.call('ZADD', 'rq:scheduled:' .. queue, from.score, id)
        redis.call('SADD', 'rq:queues', 'rq:queue:' .. queue)
      elseif from.state == 'dead' then
        enqueue(id, queue, false, want.now)
      else
        redis.call('SADD', 'rq:queues', 'rq:queue:' .. queue)
        redis.call('LPUSH', 'rq:queue:' .. queue, id)
      end
    end
  end
end
return {moved, states, #ids, unnamed, vanished, facts}
"""
)

# ARGV: queue, selection, skip, count -> {matches, order of the last match, entries seen}. Oldest first; only reads.
FIND_LIMIT = (
    _SELECT
    + """
local want = cjson.decode(ARGV[2])
local parked = 'backstep:rq:parked:' .. ARGV[1]
local ids = redis.call('ZRANGE', parked, ARGV[3], ARGV[3] + ARGV[4] - 1)
local matches, last = 0, ''
for _, id in ipairs(ids) do
  if matches >= want.limit then break end
  if is_wanted(id, want, {}) then matches = matches + 1; last = redis.call('ZSCORE', parked, id) end
end
return {matches, last, #ids}
"""
)

# ARGV: queue, cursor, count -> {next cursor, owners of what is parked, each once}.
LIST_OWNERS = """
local page = redis.call('HSCAN', 'backstep:rq:parked:' .. ARGV[1] .. ':from', ARGV[2], 'COUNT', ARGV[3])
local known, owners = {}, {}
for i = 2, #page[2], 2 do
  local owner = cjson.decode(page[2][i]).owner
  if owner and not known[owner] then known[owner] = true; owners[#owners + 1] = owner end
end
return {page[1], owners}
"""

# ARGV: queue, first rank, count -> {entries seen, how many are retries}. A retry has been started before; so has a task
# that repeats by itself, which has repeats_left.
COUNT_RETRYING = """
local ids = redis.call('ZRANGE', 'rq:scheduled:' .. ARGV[1], ARGV[2], ARGV[2] + ARGV[3] - 1)
local retries = 0
for _, id in ipairs(ids) do
  local job = redis.call('HMGET', 'rq:job:' .. id, 'started_at', 'repeats_left')
  if job[1] and job[1] ~= '' and not job[2] then retries = retries + 1 end
end
return {#ids, retries}
"""

# ARGV: owner, seconds, dry -> {held or kept or taken, owner, since, milliseconds left, value of the pause}
PAUSE = """
local lease = redis.call('HMGET', 'backstep:rq:pause', 'owner', 'since')
local paused = redis.call('GET', 'rq:suspended')
if lease[1] and lease[1] ~= ARGV[1] then
  return {'held', lease[1], lease[2], redis.call('PTTL', 'backstep:rq:pause'), paused or ''}
end
local how = lease[1] and paused and 'kept' or 'taken'
if ARGV[3] == '' then
  if not lease[1] then
    redis.call('HSET', 'backstep:rq:pause', 'owner', ARGV[1], 'since', redis.call('TIME')[1])
  end
  redis.call('EXPIRE', 'backstep:rq:pause', ARGV[2])
  -- a person's pause has no mark of ours, and is left alone
  if not paused or string.sub(paused, 1, 9) == 'backstep:' then
    redis.call('SET', 'rq:suspended', 'backstep:' .. ARGV[1], 'EX', ARGV[2])
  end
end
return {how, ARGV[1], '', 0, paused or ''}
"""

# ARGV: owner, dry -> {held or none or ended, owner, since, milliseconds left}
RESUME = """
local lease = redis.call('HMGET', 'backstep:rq:pause', 'owner', 'since')
if not lease[1] then return {'none', '', '', 0} end
if lease[1] ~= ARGV[1] then return {'held', lease[1], lease[2], redis.call('PTTL', 'backstep:rq:pause')} end
if ARGV[2] == '' then
  redis.call('DEL', 'backstep:rq:pause')
  local paused = redis.call('GET', 'rq:suspended')
  if paused and string.sub(paused, 1, 9) == 'backstep:' then redis.call('DEL', 'rq:suspended') end
end
return {'ended', lease[1], lease[2], 0}
"""

# ARGV: queue, {gone, to, now, dry, result} -> flat list of id, worker, new state, "1" when it had been started.
# Does what RQ's own cleanup of StartedJobRegistry and of the intermediate queue does, without its waiting times. While
# RQ itself cleans this queue, what has expired is left to it.
RECOVER = (
    _SELECT
    + """
local queue, want = ARGV[1], cjson.decode(ARGV[2])
local now, taken, held = tonumber(redis.call('TIME')[1]), {}, {}
local wip, intermediate = 'rq:wip:' .. queue, 'rq:queue:' .. queue .. ':intermediate'
local function enqueue_dependents(id)
  for _, dependent in ipairs(redis.call('SMEMBERS', job_key(id) .. ':dependents')) do
    local job = redis.call('HMGET', job_key(dependent),
      'allow_dependency_failures', 'origin', 'status', 'enqueue_at_front')
    local met = job[1] == '1' and job[3] ~= 'canceled'
    for _, other in ipairs(redis.call('SMEMBERS', 'rq:job::' .. dependent .. ':dependencies')) do
      local status = redis.call('HGET', job_key(other), 'status')
      if status and status ~= 'finished' and status ~= 'failed' then met = false end
    end
    if met then
      redis.call('ZREM', 'rq:deferred:' .. job[2], dependent)
      redis.call('SREM', job_key(id) .. ':dependents', dependent)
      enqueue(dependent, job[2], job[4] == '1', want.now)
    end
  end
end
local function fail(id)
  local key, results = job_key(id), 'rq:results:' .. id
  local given = tonumber(redis.call('HGET', key, 'failure_ttl') or '')
  local ttl = (given and given ~= 0) and given or 31536000
  redis.call('HSET', key, 'status', 'failed')
  redis.call('ZADD', 'rq:failed:' .. queue, ttl < 0 and ttl or now + ttl, id)
  redis.call('XADD', results, 'MAXLEN', 10, '*', 'type', 2, 'worker_name', '', 'exc_string', want.result)
  if ttl > 0 then redis.call('PERSIST', key); redis.call('EXPIRE', key, ttl); let_go(id, ttl * 1000) end
  if given and given > 0 then redis.call('EXPIRE', results, given) end
  enqueue_dependents(id)
  return 'dead'
end
local function treat_as_failed(id)
  local key = job_key(id)
  local job = redis.call('HMGET', key, 'retries_left', 'retry_intervals', 'enqueue_at_front_on_retry')
  local left = tonumber(job[1] or '') or 0
  if left <= 0 then return fail(id) end
  redis.call('HSET', key, 'retries_left', left - 1)
  local intervals = job[2] and cjson.decode(job[2]) or {}
  local interval = intervals[math.max(#intervals - left, 0) + 1] or 0
  if interval <= 0 then enqueue(id, queue, job[3] == '1', want.now); return 'waiting' end
  redis.call('HSET', key, 'status', 'scheduled')
  redis.call('ZADD', 'rq:scheduled:' .. queue, now + interval, id)
  return 'scheduled'
end
local function take(id, worker, to)
  local status = redis.call('HGET', job_key(id), 'status')
  if not want.dry then redis.call('LREM', intermediate, 0, id) end
  if not status then return end
  local state = to
  if not want.dry then
    if to == 'dead' then state = treat_as_failed(id) else enqueue(id, queue, true, want.now) end
  end
  for _, fact in ipairs({id, worker, state, status == 'started' and '1' or ''}) do taken[#taken + 1] = fact end
end
local cleaning = redis.call('EXISTS', 'rq:clean_registries:' .. queue) == 1
local claims = redis.call('ZRANGE', wip, 0, -1, 'WITHSCORES')
for i = 1, #claims, 2 do
  local id, execution = string.match(claims[i], '^([^:]*):?(.*)$')
  local worker = redis.call('HGET', 'rq:execution:' .. claims[i], 'worker_name')
    or redis.call('HGET', job_key(id), 'worker_name') or ''
  held[id] = true
  if want.gone[worker] or (tonumber(claims[i + 1]) < now and not cleaning) then
    if want.dry or redis.call('ZREM', wip, claims[i]) == 1 then
      if not want.dry then
        redis.call('DEL', 'rq:execution:' .. claims[i])
        redis.call('ZREM', 'rq:executions:' .. id, execution)
      end
      take(id, worker, want.to)
    end
  end
end
-- A popped task that no worker has claimed yet: only a live worker that is neither busy nor suspended can be about to,
-- unless it has been proven (want.nobodys) that none is.
local claimants = false
for _, key in ipairs(redis.call('SMEMBERS', 'rq:workers:' .. queue)) do
  local state = redis.call('HGET', key, 'state')
  if state and state ~= 'busy' and state ~= 'suspended' and not want.gone[string.sub(key, 11)] then claimants = true end
end
for _, id in ipairs(redis.call('LRANGE', intermediate, 0, -1)) do
  if not held[id] then
    local seen = intermediate .. ':first_seen:' .. id
    local since = tonumber(redis.call('GET', seen) or '')
    if want.nobodys[id] or not claimants or (since and now - since > 60) then
      if not want.dry then redis.call('DEL', seen) end
      take(id, '', 'waiting')
    elseif not since and not want.dry then
      redis.call('SET', seen, now, 'NX', 'EX', 86400)
    end
  end
end
return taken
"""
)

# ARGV: queue, id -> nothing. An executing canary is left to its time to live.
WITHDRAW = """
local queue, id = ARGV[1], ARGV[2]
local key = 'rq:job:' .. id
local job = redis.call('HMGET', key, 'status', 'worker_name')
local waiting = redis.call('LREM', 'rq:queue:' .. queue, 1, id) == 1
local ended = job[1] == 'finished' or job[1] == 'failed'
if ended and job[2] then
  redis.call('HINCRBY', 'backstep:rq:canaries:' .. job[2], job[1], 1)
  redis.call('EXPIRE', 'backstep:rq:canaries:' .. job[2], 86400)
end
if waiting or ended then
  redis.call('ZREM', 'rq:finished:' .. queue, id)
  redis.call('ZREM', 'rq:failed:' .. queue, id)
  redis.call('DEL', key, 'rq:results:' .. id)
end
"""

# ARGV: scratch name -> commands that were refused, with what was said. Leaves nothing behind.
PROVE_RIGHTS = """
local base = ARGV[1]
local job, list, set, key = 'rq:job:' .. base, 'rq:queue:' .. base, 'rq:wip:' .. base, 'backstep:rq:' .. base
local refused = {}
local function try(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then
    refused[#refused + 1] = string.lower((...)); refused[#refused + 1] = answer.err
  end
end
try('HSET', job, 'a', '1'); try('HDEL', job, 'b'); try('HMGET', job, 'a'); try('HINCRBY', key, 'a', 1)
try('RPUSH', list, 'a'); try('LPUSH', list, 'b'); try('LSET', list, 0, 'c'); try('LREM', list, 0, 'c')
try('LRANGE', list, 0, 0); try('LLEN', list); try('SADD', 'rq:queues', 'rq:queue:' .. base)
try('SREM', 'rq:queues', 'rq:queue:' .. base)
try('ZADD', set, 1, 'a'); try('ZREM', set, 'b'); try('ZSCAN', set, 0); try('ZREVRANGEBYSCORE', set, 1, 0)
try('ZSCORE', set, 'a'); try('PTTL', job); try('PERSIST', job); try('PEXPIRE', job, 1000); try('EXPIRE', job, 10)
try('EXISTS', job); try('TIME'); try('GET', 'rq:suspended'); try('SET', key .. ':s', '1', 'EX', 10)
try('XADD', 'rq:results:' .. base, '*', 'a', '1')
for _, name in ipairs({job, list, set, key, key .. ':s', 'rq:results:' .. base}) do redis.pcall('DEL', name) end
try('DEL', job)
return refused
"""
