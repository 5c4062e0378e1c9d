# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done inside Redis about what Dramatiq's processes hold: seen, taken back, forgotten. Atomic and bounded."""

from __future__ import annotations

from ._dramatiq_scripts import READ

# ARGV: queue, skip, count (of processes that have a heartbeat) -> {now, time of the next task or "", tasks that wait in
# the list, are due later, are dead, are parked, processes seen, then for each process that holds something: broker id,
# its heartbeat, {worker, beat, timeout, ended}, how many it holds for later, {Redis id, note of its beginning or "",
# id, task, time of enqueueing, then those of the next one}}.
LOOK = (
    READ
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
    READ
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
    READ
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
