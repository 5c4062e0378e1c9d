# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a Celery worker on Redis parks a task that it has taken: in the same step in which it ceases to be its own."""

from __future__ import annotations

import json
import logging
from typing import Any

from backstep_celery_unknown import WHY, NotParked

# ARGV: queue, hash and sorted set of what is unacknowledged, delivery tag, bytes as they are held, list, bytes for the
# list, id, owner, reason -> 1 when it is parked. Each comes behind those that were parked before.
_PARK = """
local parked = 'backstep:celery:parked:' .. ARGV[1]
if redis.call('HGET', ARGV[2], ARGV[4]) ~= ARGV[5] then return 0 end
local order = redis.call('HINCRBY', parked .. ':order', '', 1)
local member = table.concat({string.format('%.0f', order), ARGV[6], ARGV[8]}, '\\0')
redis.call('ZADD', parked, order, member)
redis.call('HSET', parked .. ':messages', member, ARGV[7])
redis.call('HSET', parked .. ':why', ARGV[9], ARGV[10])
redis.call('HDEL', ARGV[2], ARGV[4])
redis.call('ZREM', ARGV[3], ARGV[4])
return 1
"""

_log = logging.getLogger(__name__)


def park(_consumer: Any, message: Any, known: str, worker: str) -> bool:
    """Whether a task is parked; if not, it stays unacknowledged, and comes back.

    :raises NotParked: it doesn't come from Redis.
    """
    channel, tag = message.channel, message.delivery_tag
    if not hasattr(channel, "unacked_key"):
        raise NotParked
    try:
        with channel.conn_or_acquire() as client:
            stored = client.hget(channel.unacked_key, tag)
            held, _exchange, queue = json.loads(stored)
            target = channel._q_for_pri(queue, channel._get_message_priority(held, reverse=False))
            places = (queue, channel.unacked_key, channel.unacked_index_key, tag)
            return bool(client.eval(_PARK, 0, *places, stored, target, json.dumps(held), known, worker, WHY))
    except Exception as error:  # noqa: BLE001  # whatever it is, the worker goes on
        # Only its kind: the text could hold the broker's password.
        _log.warning("A task that this release doesn't know can't be parked now: %s", type(error).__name__)
        return False
