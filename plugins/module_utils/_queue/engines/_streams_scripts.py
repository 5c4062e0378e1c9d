# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done inside Redis for streams: each script is one atomic step of bounded size.

Entries are moved as the fields that they are; of these only ``id`` and ``task`` are ever returned. What is parked lies
in ``backstep:streams:parked:<queue>`` (sorted set by the time in an entry's id; a member is that id, so written that
text sorts as ids do), its fields as one MessagePack in the hash ``<that>:entries``, and by owner why in ``<that>:why``.
A worker's counts lie in the hash ``backstep:streams:worker:<name>``, which the worker itself writes; where a canary
lies, in ``backstep:streams:canary:<id>``.
"""

from __future__ import annotations

OURS = "backstep:streams:"
GROUP = "workers"

_COMMON = """
-- name and enqueueing time of what was found wanted last, and of all that was moved
local task, at
local facts = {}
local function tell() facts[#facts + 1] = task or ''; facts[#facts + 1] = at or '' end
local function named(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end
-- whose entries these are: the stream's only group, or of several the one named 'workers'
local function group_of(queue)
  if redis.call('TYPE', queue).ok ~= 'stream' then return nil, 0 end
  local groups, found = redis.call('XINFO', 'GROUPS', queue), nil
  for _, flat in ipairs(groups) do
    local group = named(flat)
    if #groups == 1 or group.name == 'workers' then found = group end
  end
  return found, #groups
end
local function is_later(a, b)
  local am, an = string.match(a, '^(%d+)%-(%d+)$')
  local bm, bn = string.match(b, '^(%d+)%-(%d+)$')
  if am == bm then am, bm = an, bn end
  if #am ~= #bm then return #am > #bm end
  return am > bm
end
local function field(fields, name)
  for i = 1, #fields, 2 do if fields[i] == name and fields[i + 1] ~= '' then return fields[i + 1] end end
end
local function known_as(id, fields) return field(fields, 'id') or id end
local function is_wanted(id, fields, want)
  local known, since = known_as(id, fields), tonumber(string.match(id, '^%d+')) / 1000
  if string.sub(known, 1, #want.canary) == want.canary then return false end
  if want.ids and not want.ids[known] then return false end
  if want.after and since <= want.after then return false end
  if want.before and since >= want.before then return false end
  task, at = field(fields, 'task'), string.format('%.3f', since)
  return not want.tasks or (task and want.tasks[task] == true)
end
local function sortable(id)
  local at, number = string.match(id, '^(%d+)%-(%d+)$')
  return at .. '-' .. string.rep('0', 20 - #number) .. number
end
local function as_id(member) return (string.gsub(member, '%-0*(%d)', '-%1')) end
local function put_back(queue, fields) redis.call('XADD', queue, '*', unpack(fields)) end
local function keep(queue, id, fields)
  local parked = 'backstep:streams:parked:' .. queue
  redis.call('HSET', parked .. ':entries', sortable(id), cmsgpack.pack(fields))
  redis.call('ZADD', parked, string.match(id, '^%d+'), sortable(id))
end
"""

# ARGV: most entries to walk over, queues -> for each {groups, last delivered id, waiting, pending, id of the first that
# waits, parked}; -1 for what can't be told; a waiting of -2 has to be counted by COUNT.
# Redis' own lag is null after a deletion, and once the group has come past that, a number that is too high; so it is
# after unread entries were trimmed away (7.0). It is believed only where neither has happened.
STATES = (
    _COMMON
    + """
local found = {}
local most = tonumber(ARGV[1])
local function count(queue, from, to) return #redis.call('XRANGE', queue, from, to, 'COUNT', most + 1) end
local function count_waiting(queue, group, after)
  local length = redis.call('XLEN', queue)
  local before = count(queue, '-', after)
  if before <= most then return length - before end
  local waiting = count(queue, '(' .. after, '+')
  if waiting <= most then return waiting end
  local deleted = named(redis.call('XINFO', 'STREAM', queue))['max-deleted-entry-id']
  return deleted == '0-0' and type(group.lag) == 'number' and group.lag or -2
end
for i = 2, #ARGV do
  local queue = ARGV[i]
  local group, groups = group_of(queue)
  local after = group and group['last-delivered-id'] or '0-0'
  local waiting, pending, first = 0, 0, nil
  if groups > 0 and not group then
    waiting, pending = -1, -1
  elseif redis.call('TYPE', queue).ok == 'stream' then
    first = redis.call('XRANGE', queue, '(' .. after, '+', 'COUNT', 1)[1]
    waiting, pending = count_waiting(queue, group, after), group and group.pending or 0
  end
  local parked = redis.call('ZCARD', 'backstep:streams:parked:' .. queue)
  found[#found + 1] = {groups, after, waiting, pending, first and first[1] or '', parked}
end
return found
"""
)

# ARGV: queue, id, count -> {how many entries follow that id, at most count; the last one of them}.
COUNT = """
local entries = redis.call('XRANGE', ARGV[1], '(' .. ARGV[2], '+', 'COUNT', ARGV[3])
return {#entries, #entries > 0 and entries[#entries][1] or ARGV[2]}
"""

# ARGV: queue, id that they follow, count -> {entries seen, the last one's id, ids of the tasks}; the next task first.
LIST_WAITING = (
    _COMMON
    + """
local group = group_of(ARGV[1])
local after = ARGV[2]
if group and is_later(group['last-delivered-id'], after) then after = group['last-delivered-id'] end
local entries = redis.call('XRANGE', ARGV[1], '(' .. after, '+', 'COUNT', ARGV[3])
local ids = {}
for i, entry in ipairs(entries) do ids[i] = known_as(entry[1], entry[2]); after = entry[1] end
return {#entries, after, ids}
"""
)

# ARGV: queue, skip, count -> {members seen, ids}.
LIST_PARKED = (
    _COMMON
    + """
local parked = 'backstep:streams:parked:' .. ARGV[1]
local members = redis.call('ZRANGE', parked, ARGV[2], ARGV[2] + ARGV[3] - 1)
local ids = {}
for i, member in ipairs(members) do
  ids[i] = known_as(as_id(member), cmsgpack.unpack(redis.call('HGET', parked .. ':entries', member)))
end
return {#members, ids}
"""
)

# ARGV: queue, id that they follow, count -> {entries seen, the last one's id, flat list of id, task, consumer and
# milliseconds since it was delivered}; the first one delivered first.
LIST_PENDING = (
    _COMMON
    + """
local group, found, after = group_of(ARGV[1]), {}, ARGV[2]
if not group then return {0, after, found} end
local entries = redis.call('XPENDING', ARGV[1], group.name, '(' .. after, '+', ARGV[3])
for _, pending in ipairs(entries) do
  after = pending[1]
  local entry = redis.call('XRANGE', ARGV[1], after, after)[1]
  local fields = entry and entry[2] or {}
  for _, fact in ipairs({known_as(after, fields), field(fields, 'task') or '', pending[2], pending[3]}) do
    found[#found + 1] = fact
  end
end
return {#entries, after, found}
"""
)

# ARGV: queue -> flat list of name, milliseconds since it was last heard, and the id of the task that it holds.
CONSUMERS = (
    _COMMON
    + """
local group, found = group_of(ARGV[1]), {}
if not group then return found end
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', ARGV[1], group.name)) do
  local consumer, task = named(flat), ''
  if consumer.pending > 0 then
    local pending = redis.call('XPENDING', ARGV[1], group.name, '-', '+', 1, consumer.name)[1]
    local entry = redis.call('XRANGE', ARGV[1], pending[1], pending[1])[1]
    task = known_as(pending[1], entry and entry[2] or {})
  end
  for _, fact in ipairs({consumer.name, consumer.idle, task}) do found[#found + 1] = fact end
end
return found
"""
)

# ARGV: queue, selection, id that they follow, count -> {moved ids, the last seen one's id, entries seen, facts}.
PARK = (
    _COMMON
    + """
local queue, want, after = ARGV[1], cjson.decode(ARGV[2]), ARGV[3]
local group = group_of(queue)
-- what has been delivered meanwhile is its worker's
if group and is_later(group['last-delivered-id'], after) then after = group['last-delivered-id'] end
local entries = redis.call('XRANGE', queue, '(' .. after, '+', 'COUNT', ARGV[4])
local moved = {}
for _, entry in ipairs(entries) do
  if #moved >= want.limit then break end
  after = entry[1]
  if is_wanted(after, entry[2], want) then
    moved[#moved + 1] = known_as(after, entry[2]); tell()
    if not want.dry then
      keep(queue, after, entry[2])
      redis.call('HSET', 'backstep:streams:parked:' .. queue .. ':why', want.owner, want.reason)
      redis.call('XDEL', queue, after)
    end
  end
end
return {moved, after, #entries, facts}
"""
)

# ARGV: queue, selection, skip, count -> {moved ids, members seen, facts}. From the first one on, each to the end.
REPLAY_PARKED = (
    _COMMON
    + """
local queue, want = ARGV[1], cjson.decode(ARGV[2])
local parked = 'backstep:streams:parked:' .. queue
local members = redis.call('ZRANGE', parked, ARGV[3], ARGV[3] + ARGV[4] - 1)
local moved = {}
for _, member in ipairs(members) do
  if #moved >= want.limit then break end
  local fields = cmsgpack.unpack(redis.call('HGET', parked .. ':entries', member))
  if is_wanted(as_id(member), fields, want) then
    moved[#moved + 1] = known_as(as_id(member), fields); tell()
    if not want.dry then
      put_back(queue, fields)
      redis.call('ZREM', parked, member)
      redis.call('HDEL', parked .. ':entries', member)
      if redis.call('EXISTS', parked) == 0 then redis.call('DEL', parked .. ':why') end
    end
  end
end
return {moved, #members, facts}
"""
)

# ARGV: queue, {gone, to, dry}, id that they follow, count
# -> {entries seen, the last one's id, flat list of id, task and consumer}.
# An entry that was trimmed away while its worker held it can't be given back: nothing is left of it.
RECOVER = (
    _COMMON
    + """
local queue, want, after = ARGV[1], cjson.decode(ARGV[2]), ARGV[3]
local group, taken = group_of(queue), {}
if not group then return {0, after, taken} end
local entries = redis.call('XPENDING', queue, group.name, '(' .. after, '+', ARGV[4])
for _, pending in ipairs(entries) do
  after = pending[1]
  if want.gone[pending[2]] then
    local entry = redis.call('XRANGE', queue, after, after)[1]
    local fields = entry and entry[2] or {}
    local canary = field(fields, 'backstep_canary')
    if not want.dry then
      if entry and not canary then
        if want.to == 'waiting' then put_back(queue, fields) else keep(queue, after, fields) end
      end
      redis.call('XACK', queue, group.name, after)
      redis.call('XDEL', queue, after)
    end
    if entry and not canary then
      for _, fact in ipairs({known_as(after, fields), field(fields, 'task') or '', pending[2]}) do
        taken[#taken + 1] = fact
      end
    end
  end
end
return {#entries, after, taken}
"""
)

# ARGV: queue, names of dead workers (JSON) -> nothing. A consumer's pending entries would go with it.
BURY = (
    _COMMON
    + """
local group, gone = group_of(ARGV[1]), cjson.decode(ARGV[2])
if not group then return end
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', ARGV[1], group.name)) do
  local consumer = named(flat)
  if gone[consumer.name] and consumer.pending == 0 then
    redis.call('XGROUP', 'DELCONSUMER', ARGV[1], group.name, consumer.name)
    redis.call('DEL', 'backstep:streams:worker:' .. consumer.name)
  end
end
"""
)

# ARGV: queue, task, seconds, ids -> nothing.
SEND_CANARIES = """
for i = 4, #ARGV do
  local id = redis.call('XADD', ARGV[1], '*', 'id', ARGV[i], 'task', ARGV[2], 'backstep_canary', ARGV[i])
  local key = 'backstep:streams:canary:' .. ARGV[i]
  redis.call('HSET', key, 'queue', ARGV[1], 'entry', id)
  redis.call('EXPIRE', key, ARGV[3])
end
"""

_CANARY = (
    _COMMON
    + """
local function outcome(known)
  local place = named(redis.call('HGETALL', 'backstep:streams:canary:' .. known))
  if not place.queue then return 'gone', '' end
  local group = group_of(place.queue)
  if group then
    for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', place.queue, group.name)) do
      local worker = named(flat).name
      for _, state in ipairs({'finished', 'failed'}) do
        if redis.call('HEXISTS', 'backstep:streams:worker:' .. worker, state .. ':' .. known) == 1 then
          return state, worker, place
        end
      end
    end
    local pending = redis.call('XPENDING', place.queue, group.name, place.entry, place.entry, 1)[1]
    if pending then return 'executing', pending[2], place end
    if not is_later(place.entry, group['last-delivered-id']) then return 'gone', '', place end
  end
  if #redis.call('XRANGE', place.queue, place.entry, place.entry) == 0 then return 'gone', '', place end
  return 'waiting', '', place
end
"""
)

# ARGV: ids -> flat list of state and worker.
CANARIES = (
    _CANARY
    + """
local found = {}
for _, known in ipairs(ARGV) do
  local state, worker = outcome(known)
  found[#found + 1] = state; found[#found + 1] = worker
end
return found
"""
)

# ARGV: ids -> nothing. An executing canary is left to its end.
WITHDRAW = (
    _CANARY
    + """
for _, known in ipairs(ARGV) do
  local state, worker, place = outcome(known)
  if place and state ~= 'executing' then
    redis.call('XDEL', place.queue, place.entry)
    redis.call('DEL', 'backstep:streams:canary:' .. known)
    if worker ~= '' then redis.call('HDEL', 'backstep:streams:worker:' .. worker, state .. ':' .. known) end
  end
end
"""
)

# -> an error when a right is missing; any other answer is one. These commands take no stream that isn't there.
PROVE_READING = """
local asked = {
  {'XINFO', 'GROUPS', 'a'}, {'XINFO', 'STREAM', 'a'}, {'XINFO', 'CONSUMERS', 'a', 'b'},
  {'XPENDING', 'a', 'b', '-', '+', 1},
}
for _, command in ipairs(asked) do
  local answer = redis.pcall(unpack(command))
  if answer.err and string.find(answer.err, 'permission') then return answer end
end
return {}
"""

# ARGV: scratch name -> commands that were refused, with what was said. Leaves nothing behind.
PROVE_RIGHTS = """
local stream, hash, set = ARGV[1], 'backstep:streams:' .. ARGV[1], 'backstep:streams:parked:' .. ARGV[1]
local refused = {}
local function try(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then
    refused[#refused + 1] = string.lower((...)); refused[#refused + 1] = answer.err
  end
end
try('XGROUP', 'CREATE', stream, 'a', '0', 'MKSTREAM'); try('XADD', stream, '*', 'a', '1')
try('XACK', stream, 'a', '0-1'); try('XDEL', stream, '0-1'); try('XGROUP', 'DELCONSUMER', stream, 'a', 'b')
try('HSET', hash, 'a', '1'); try('HDEL', hash, 'b'); try('EXPIRE', hash, 10)
try('ZADD', set, 1, 'a'); try('ZREM', set, 'b')
for _, name in ipairs({stream, hash, set}) do redis.pcall('DEL', name) end
try('DEL', stream)
return refused
"""
