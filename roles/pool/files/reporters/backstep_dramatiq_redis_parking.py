# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parks in Redis what a Dramatiq worker doesn't execute, as ``task_move`` does it, and reads what gates there are.

``backstep:dramatiq:gated:<actor>`` is a hash from the message id of what was parked for a gate to its order number.
Python 3.9, dramatiq and redis.
"""

from __future__ import annotations

import logging
from typing import Any

import redis
from backstep_dramatiq_parking import Parking
from backstep_gates import UNREADABLE
from dramatiq.common import q_name
from dramatiq.errors import DecodeError

_GATES = "backstep:dramatiq:book:gates"
# ARGV: queue as it was consumed, the same without ".DQ", broker id, Redis id, owner, reason, then of what a gate holds:
# the book of gates, task, its line, message id -> 1 when it isn't this process's any more, as it is parked; 0 when the
# line is another one now. Each comes behind those that were parked before.
_PARK = """
local key, acks = 'dramatiq:' .. ARGV[1], 'dramatiq:__acks__.' .. ARGV[3] .. '.' .. ARGV[1]
local parked, task = 'backstep:dramatiq:parked:' .. ARGV[2], ARGV[8]
local raw = redis.call('SISMEMBER', acks, ARGV[4]) == 1 and redis.call('HGET', key .. '.msgs', ARGV[4])
if not raw then return 1 end
if task and not string.find(raw, '^%s*{') then return redis.error_reply('ERR not JSON') end
if task and redis.call('HGET', ARGV[7], task) ~= ARGV[9] then return 0 end
local order = string.format('%.0f', redis.call('HINCRBY', parked .. ':order', '', 1))
local member = table.concat({order, ARGV[1] == ARGV[2] and 'waiting' or 'later', '', ARGV[4]}, '\0')
redis.call('ZADD', parked, order, member)
redis.call('HSET', parked .. ':messages', member, raw)
redis.call('HSET', parked .. ':why', ARGV[5], ARGV[6])
if task then redis.call('HSET', 'backstep:dramatiq:gated:' .. task, ARGV[10], order) end
redis.call('SREM', acks, ARGV[4])
redis.call('HDEL', key .. '.msgs', ARGV[4])
return 1
"""

# ARGV: queue as it was consumed, broker id, message as it is -> the Redis id of such a one that this process has taken.
_WHICH = """
for _, id in ipairs(redis.call('SMEMBERS', 'dramatiq:__acks__.' .. ARGV[2] .. '.' .. ARGV[1])) do
  if redis.call('HGET', 'dramatiq:' .. ARGV[1] .. '.msgs', id) == ARGV[3] then return id end
end
"""

_log = logging.getLogger(__name__)


class RedisParking(Parking):
    """Parks in the step in which a message ceases to be the process's, so that it is in one place all the time."""

    def before_worker_boot(self, broker: Any, worker: Any) -> None:
        """Keep no gates where the app's user may not see what they are: its tasks would wait for ever."""
        try:
            broker.client.hget(_GATES, "")
        except redis.exceptions.NoPermissionError:
            _log.warning("Backstep's gates aren't kept: the app's user in Redis may not read them.")
            self.keeps_gates = False
        super().before_worker_boot(broker, worker)

    def prepare(self, consumer: Any) -> None:
        if self.parks_unknown:
            consumer.__class__ = _skipping(type(consumer), self)

    def line(self, consumer: Any, task: str) -> bytes | str | None:
        found: bytes | str | None = consumer.broker.client.hget(_GATES, task)
        return found

    def park(self, consumer: Any, message: Any, whose: str, why: str, line: bytes | str | None = None) -> bool:
        gate = () if line is None else (_GATES, str(message.actor_name), line, str(message.message_id))
        return self._park(consumer, message.options["redis_message_id"], whose, why, *gate)

    def park_raw(self, consumer: Any, raw: bytes) -> str:
        broker, queue = consumer.broker, consumer.queue_name
        redis_id = broker.client.eval(_WHICH, 0, queue, broker.broker_id, raw)
        if redis_id is None:  # it is this process's no more
            return ""
        self._park(consumer, redis_id, self.worker, UNREADABLE)
        return redis_id.decode() if isinstance(redis_id, bytes) else str(redis_id)

    @staticmethod
    def _park(consumer: Any, redis_id: Any, *why: Any) -> bool:
        broker, queue = consumer.broker, consumer.queue_name
        return bool(broker.client.eval(_PARK, 0, queue, q_name(queue), broker.broker_id, redis_id, *why))


def _skipping(kind: type[Any], parking: RedisParking) -> type[Any]:
    """A kind of consumer that hands over what can be read. Dramatiq's own ends at what can't, with what it has fetched
    together with that, and its thread begins another one after three seconds (2.2).
    """

    class Consumer(kind):
        def __next__(self) -> Any:
            try:
                return super().__next__()
            except DecodeError as error:
                # Where it can't be parked, it stays this process's until that ends, and then comes back.
                parking.is_left_unread(self, error.data)
                return None

    return Consumer
