# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a Celery worker on Redis parks a task that it has taken: in the same step in which it ceases to be its own."""

from __future__ import annotations

import json
import logging
from typing import Any

from backstep_celery_unknown import NotParked, Way, Why

_BOOK = "backstep:celery:book:gates"
# ARGV: queue, hash and sorted set of what is unacknowledged, delivery tag, bytes as they are held, list, bytes for the
# list, id, owner, reason, name of a gate or "", its line -> 1 when it is parked. Each comes behind those that were
# parked before.
_PARK = """
local parked = 'backstep:celery:parked:' .. ARGV[1]
if redis.call('HGET', ARGV[2], ARGV[4]) ~= ARGV[5] then return 0 end
if ARGV[11] ~= '' and redis.call('HGET', 'backstep:celery:book:gates', ARGV[11]) ~= ARGV[12] then return 0 end
local order = redis.call('HINCRBY', parked .. ':order', '', 1)
local mark = string.format('%.0f', order)
local member = table.concat({mark, ARGV[6], ARGV[8]}, '\\0')
redis.call('ZADD', parked, order, member)
redis.call('HSET', parked .. ':messages', member, ARGV[7])
redis.call('HSET', parked .. ':why', ARGV[9], ARGV[10])
if ARGV[11] ~= '' then redis.call('HSET', 'backstep:celery:gated:' .. ARGV[11], ARGV[8], mark) end
redis.call('HDEL', ARGV[2], ARGV[4])
redis.call('ZREM', ARGV[3], ARGV[4])
return 1
"""

_log = logging.getLogger(__name__)


class RedisWay(Way):
    """Of a worker whose broker is Redis."""

    def park(self, consumer: Any, message: Any, known: str, why: Why) -> bool:
        """Park a task, or leave it unacknowledged; then it comes back.

        :raises NotParked: it doesn't come from Redis.
        """
        channel, tag = message.channel, message.delivery_tag
        if not _is_of_redis(channel):
            raise NotParked
        try:
            with channel.conn_or_acquire() as client:
                stored = client.hget(channel.unacked_key, tag)
                held, _exchange, queue = json.loads(stored)
                target = channel._q_for_pri(queue, channel._get_message_priority(held, reverse=False))
                places = (queue, channel.unacked_key, channel.unacked_index_key, tag)
                return bool(client.eval(_PARK, 0, *places, stored, target, json.dumps(held), known or tag, *why))
        except Exception as error:  # noqa: BLE001  # whatever it is, the worker goes on
            # Only its kind: the text could hold the broker's password.
            _log.warning("Task %s can't be parked now (%s): %s", known, why.reason, type(error).__name__)
            return False

    def can_read_gates(self, consumer: Any) -> bool:
        """Whether Redis doesn't refuse. One that doesn't answer is asked again for each task."""
        from redis.exceptions import NoPermissionError

        channel = consumer.connection.default_channel
        try:
            return _is_of_redis(channel) and self._ask(channel, "") is None
        except NoPermissionError:
            return False
        except Exception as error:  # noqa: BLE001  # whatever it is, the worker goes on
            _log.warning("Which gates there are isn't known yet: %s", type(error).__name__)
            return True

    def line(self, message: Any, task: str) -> bytes | str | None:
        """What the book says now."""
        return self._ask(message.channel, task)

    def _ask(self, channel: Any, task: str) -> Any:
        with channel.conn_or_acquire() as client:
            return client.hget(_BOOK, task)


def _is_of_redis(channel: Any) -> bool:
    return hasattr(channel, "unacked_key")
