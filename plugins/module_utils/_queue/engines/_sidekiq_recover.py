# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gives back what workers of Sidekiq held that are gone.

A worker that is killed just when it has passed a failed task on to be retried leaves it in two places. So tasks that
are found among the retries or the dead are only let go of.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from ..engine import RecoveredTask
from . import _sidekiq_scripts as scripts
from ._redis import RedisLink, text
from ._redis_moves import BATCH
from ._sidekiq_workers import WORKERS, Held, held_by, registered

_AT_ONCE = 100

# ARGV: sorted set, ids (JSON, as keys), cursor, count -> {next cursor, those of the ids that are in it}.
_FIND = (
    scripts.READ
    + r"""
local wanted = cjson.decode(ARGV[2])
local page = redis.call('ZSCAN', ARGV[1], ARGV[3], 'COUNT', ARGV[4])
local found = {}
for i = 1, #page[2], 2 do
  local task = read(page[2][i])
  if task and wanted[task.id] then found[#found + 1] = task.id end
end
return {page[1], found}
"""
)

# ARGV: {to, gone, dry}, then for each task: worker, number, queue, id, what to do (return or drop) -> for each its new
# state, or "" when it was no longer held. A task of a worker that reports again is left to it.
_GIVE_BACK = (
    scripts.READ
    + r"""
local want = cjson.decode(ARGV[1])
local function write(...) return want.dry or redis.call(...) end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local function without(raw, names)
  local all, cuts = fields(raw), {}
  for _, name in ipairs(names) do if all[name] then cuts[#cuts + 1] = all[name] end end
  table.sort(cuts, function(one, other) return one[3] > other[3] end)
  for _, cut in ipairs(cuts) do
    local before, after = string.sub(raw, 1, cut[3] - 1), string.sub(raw, cut[2] + 1)
    -- the comma behind it, or else the one in front of it
    local rest, behind = string.gsub(after, '^%s*,%s*', '', 1)
    raw = behind == 1 and before .. rest or string.gsub(before, ',%s*$', '') .. after
  end
  return raw
end
-- What Sidekiq does with a failed task. One that may not be tried again is kept among the dead.
local function fail(raw, queue)
  local all = fields(raw)
  local retry, count = value_of(raw, all.retry), tonumber(value_of(raw, all.retry_count))
  local most = retry == 'true' and 25 or tonumber(retry) or 0
  local at, own = value_of(raw, all.created_at), all.retry_queue
  local stamped = count and 'retried_at' or 'failed_at'
  local stamp = type(at) == 'number' and at > 1e11 and string.format('%.0f', now * 1000) or string.format('%.6f', now)
  count = count and count + 1 or 0
  local noted = {
    '"queue":' .. (own and string.sub(raw, own[1], own[2]) or cjson.encode(queue)),
    '"error_class":"Backstep::Recovered"', '"error_message":"its worker is gone"',
    '"retry_count":' .. count, '"' .. stamped .. '":' .. stamp,
  }
  raw = without(raw, {'queue', 'error_class', 'error_message', 'retry_count', stamped})
  local body = string.match(raw, '^(.-)%s*}%s*$')
  raw = body .. (string.match(body, '{$') and '' or ',') .. table.concat(noted, ',') .. '}'
  if count < most then
    write('ZADD', 'retry', string.format('%.6f', now + count ^ 4 + 15), raw)
    return 'scheduled'
  end
  write('ZADD', 'dead', string.format('%.6f', now), raw)
  return 'dead'
end
local function find(name, number, queue, id)
  if number ~= '' then
    return string.match(redis.call('HGET', ours .. 'held:' .. name, number) or '', '^[%d%.]+%z.-%z(.*)$')
  end
  for _, raw in ipairs(redis.call('LRANGE', ours .. 'taken:' .. queue .. ':' .. name, 0, -1)) do
    if (read(raw) or {id = ''}).id == id then return raw end
  end
end
local function let_go(name, number, queue, raw)
  if number ~= '' then write('HDEL', ours .. 'held:' .. name, number)
  else write('LREM', ours .. 'taken:' .. queue .. ':' .. name, 1, raw) end
end
local states = {}
for i = 2, #ARGV, 5 do
  local name, number, queue, id, what = unpack(ARGV, i, i + 4)
  local gone = want.gone[name] or redis.call('EXISTS', ours .. 'worker:' .. name) == 0
  local raw = gone and find(name, number, queue, id)
  local state = ''
  if raw and what == 'return' then
    if want.to == 'waiting' or number == '' then
      write('SADD', 'queues', queue)
      write('RPUSH', 'queue:' .. queue, raw)
      state = 'waiting'
    else
      state = fail(raw, queue)
    end
  end
  if raw then let_go(name, number, queue, raw) end -- last: a step that is refused before leaves the task where it is
  states[#states + 1] = state
end
return states
"""
)

# ARGV: key of the workers, then workers -> nothing. Sidekiq's own registration goes too. One that holds more stays
# known.
_BURY = r"""
local ours = 'backstep:sidekiq:'
for i = 2, #ARGV do
  local name = ARGV[i]
  local left = redis.call('EXISTS', ours .. 'held:' .. name) == 1
  local worker = ours .. 'worker:' .. name
  local identity = redis.call('HGET', worker, 'identity')
  if identity and identity ~= '' then
    redis.call('SREM', 'processes', identity)
    redis.call('DEL', identity, identity .. ':work', identity .. ':workers', identity .. '-signals')
  end
  for _, queue in ipairs(redis.call('SMEMBERS', 'queues')) do
    left = left or redis.call('EXISTS', ours .. 'taken:' .. queue .. ':' .. name) == 1
  end
  redis.call('DEL', worker)
  if not left then redis.call('ZREM', ARGV[1], name) end
end
"""


def recover(
    link: RedisLink, queues: Sequence[str], workers_gone: Collection[str], to: str, dry_run: bool
) -> list[RecoveredTask]:
    """As ``Engine.recover``."""
    there = registered(link)
    names = dict.fromkeys((*there.names, *workers_gone))
    gone = [name for name in names if name in workers_gone or name not in there.facts]
    mine = [held for held in held_by(link, gone, queues) if held.queue in queues]
    passed_on = _passed_on(link, [held.id for held in mine if held.number and not held.is_canary])
    want = json.dumps({"to": to, "gone": dict.fromkeys(workers_gone, True), "dry": dry_run})
    states = _give_back(link, want, mine, passed_on)
    for first in range(0, 0 if dry_run else len(gone), _AT_ONCE):
        link.run(_BURY, WORKERS, *gone[first : first + _AT_ONCE])
    return [
        RecoveredTask(held.id, held.task, held.queue, held.worker if held.number else None, state, bool(held.number))
        for held, state in zip(mine, states)
        if state
    ]


def _passed_on(link: RedisLink, ids: Sequence[str]) -> set[str]:
    """Those of the tasks that Sidekiq has already noted as failed."""
    found: set[str] = set()
    wanted = json.dumps(dict.fromkeys(ids, True))
    for key in ("retry", "dead") if ids else ():
        for (some,) in link.pages(_FIND, key, wanted, count=BATCH):
            found.update(map(text, some))
    return found


def _give_back(link: RedisLink, want: str, tasks: Sequence[Held], passed_on: Collection[str]) -> list[str]:
    """The new state of each; "" when it was dropped, or is no longer held. The first of them is to be taken next."""
    states: list[str] = []
    backwards = list(reversed(tasks))
    for first in range(0, len(backwards), _AT_ONCE):
        arguments: list[str] = []
        for held in backwards[first : first + _AT_ONCE]:
            dropped = held.is_canary or (held.number and held.id in passed_on)
            arguments += [held.worker, held.number, held.queue, held.id, "drop" if dropped else "return"]
        states += map(text, link.run(_GIVE_BACK, want, *arguments))
    return states[::-1]
