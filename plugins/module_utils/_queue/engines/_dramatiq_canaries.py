# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Canary tasks of Dramatiq: sent, followed by what the workers' reporters write of them, and taken back."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from ..engine import CANARY_PREFIX, CanaryOutcome
from ._dramatiq_messages import canary
from ._redis import RedisLink, text
from ._redis_moves import BATCH

# Reporters are heard of every two seconds.
HEARD_OF_SECONDS = 20

# ARGV: queue, seconds, then for each: id, message. In front of the queue.
_SEND = """
for i = 3, #ARGV, 2 do
  local canary = 'backstep:dramatiq:canary:' .. ARGV[i]
  redis.call('HSET', canary, 'queue', ARGV[1], 'state', 'waiting')
  redis.call('EXPIRE', canary, ARGV[2])
  redis.call('HSET', 'dramatiq:' .. ARGV[1] .. '.msgs', ARGV[i], ARGV[i + 1])
  redis.call('LPUSH', 'dramatiq:' .. ARGV[1], ARGV[i])
end
"""

# ARGV: id of a canary, how many of the next tasks it is looked for among, seconds -> {state, worker}. One that a
# process has taken is as good as gone, and another is sent, when every thread of that process is at work, or when it
# has not been heard of for so many seconds or never: it would lie there while the worker that it is for is idle.
_OUTCOME = """
local canary = 'backstep:dramatiq:canary:' .. ARGV[1]
local queue, state, worker = unpack(redis.call('HMGET', canary, 'queue', 'state', 'worker'))
if not queue then return {'gone', ''} end
if state ~= 'waiting' then return {state, worker or ''} end
local key = 'dramatiq:' .. queue
if redis.call('HEXISTS', key .. '.XQ.msgs', ARGV[1]) == 1 then return {'failed', ''} end
if redis.call('HEXISTS', key .. '.msgs', ARGV[1]) == 0 then return {'gone', ''} end
if redis.call('LPOS', key, ARGV[1], 'MAXLEN', ARGV[2]) then return {'waiting', ''} end
local since = redis.call('TIME')[1] - ARGV[3]
local live = redis.call('ZREVRANGEBYSCORE', 'backstep:dramatiq:processes', '+inf', since, 'LIMIT', 0, 1000)
for _, broker in ipairs(live) do
  if redis.call('SISMEMBER', 'dramatiq:__acks__.' .. broker .. '.' .. queue, ARGV[1]) == 1 then
    local threads = tonumber(redis.call('HGET', 'backstep:dramatiq:process:' .. broker, 'threads') or '')
    local busy = redis.call('HLEN', 'backstep:dramatiq:executing:' .. broker)
    return {threads and busy < threads and 'waiting' or 'gone', ''}
  end
end
return {'gone', ''}
"""

# ARGV: queue, id of a canary. One that executes runs to its end, and is acknowledged to nobody.
_WITHDRAW = """
local key = 'dramatiq:' .. ARGV[1]
redis.call('LREM', key, 1, ARGV[2])
redis.call('HDEL', key .. '.msgs', ARGV[2])
redis.call('ZREM', key .. '.XQ', ARGV[2])
redis.call('HDEL', key .. '.XQ.msgs', ARGV[2])
redis.call('DEL', 'backstep:dramatiq:canary:' .. ARGV[2])
"""


def send(link: RedisLink, queue: str, task: str, count: int, seconds: int) -> list[str]:
    """As ``Engine.send_canary``."""
    ids = [f"{CANARY_PREFIX}{uuid.uuid4().hex}" for _number in range(count)]
    now = float(link.ask("TIME")[0])
    messages = [canary(known_as, task, queue, now, seconds, redis_message_id=known_as) for known_as in ids]
    link.run(_SEND, queue, seconds, *[part for pair in zip(ids, messages) for part in pair])
    return ids


def outcomes(link: RedisLink, ids: Sequence[str]) -> list[CanaryOutcome]:
    """As ``Engine.canaries``."""
    found = []
    for known_as in ids:
        state, worker = link.run(_OUTCOME, known_as, BATCH, HEARD_OF_SECONDS)
        found.append(CanaryOutcome(known_as, text(state), text(worker) or None))
    return found


def withdraw(link: RedisLink, queue: str, ids: Sequence[str]) -> None:
    """As ``Engine.withdraw``."""
    for known_as in ids:
        link.run(_WITHDRAW, queue, known_as)
