# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has a Celery worker park tasks that it doesn't know: Celery rejects them, which on Redis destroys them.

After a release is taken back, whoever is still ahead of it goes on enqueueing such tasks. They are parked as
``task_move`` parks them, in the same step in which they cease to be the worker's, and are put back like all others. The
app isn't changed; in ``pool_env``, ``PARK_UNKNOWN_TASKS: "no"`` leaves Celery its own way.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

from celery import bootsteps, current_app

_CANARY = "backstep-canary-"
# ARGV: queue, hash and sorted set of what is unacknowledged, delivery tag, bytes as they are held, list, bytes for the
# list, id, owner, reason -> 1 when it is parked. Each comes behind those that were parked before.
_PARK = """
local parked = 'backstep:celery:parked:' .. ARGV[1]
if redis.call('HGET', ARGV[2], ARGV[4]) ~= ARGV[5] then return 0 end
local order = redis.call('HINCRBY', parked .. ':order', '', 1000000000)
local member = table.concat({string.format('%.0f', order), ARGV[6], ARGV[8]}, '\\0')
redis.call('ZADD', parked, order, member)
redis.call('HSET', parked .. ':messages', member, ARGV[7])
redis.call('HSET', parked .. ':why', ARGV[9], ARGV[10])
redis.call('HDEL', ARGV[2], ARGV[4])
redis.call('ZREM', ARGV[3], ARGV[4])
return 1
"""

_log = logging.getLogger(__name__)


class Parking(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery tells no types
    """Takes the place of what the consumer does with a task that nobody has registered."""

    worker = ""

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        reject = consumer.on_unknown_task

        def park(body: Any, message: Any, error: Exception) -> Any:
            known = str((message.headers or {}).get("id") or "")
            if known.startswith(_CANARY) or not hasattr(message.channel, "unacked_key"):
                return reject(body, message, error)
            # One that can't be parked stays unacknowledged, and comes back.
            if _park(message, known, self.worker):
                message.ack_log_error(_log, consumer.connection_errors)
                _log.error("Task %s is parked: this release knows no %s.", known, (message.headers or {}).get("task"))
            return None

        consumer.on_unknown_task = park


def _park(message: Any, known: str, worker: str) -> bool:
    channel, tag = message.channel, message.delivery_tag
    try:
        with channel.conn_or_acquire() as client:
            stored = client.hget(channel.unacked_key, tag)
            held, _exchange, queue = json.loads(stored)
            target = channel._q_for_pri(queue, channel._get_message_priority(held, reverse=False))
            places = (queue, channel.unacked_key, channel.unacked_index_key, tag)
            why = (worker, "the worker's release doesn't know it")
            return bool(client.eval(_PARK, 0, *places, stored, target, json.dumps(held), known, *why))
    except Exception as error:  # noqa: BLE001  # whatever it is, the worker goes on
        # Only its kind: the text could hold the broker's password.
        _log.warning("A task that this release doesn't know can't be parked now: %s", type(error).__name__)
        return False


def park_unknown_tasks(worker: str) -> None:
    """Have the worker that is about to start do so.

    :param worker: its name.
    """
    if os.environ.get("PARK_UNKNOWN_TASKS", "yes").lower() not in ("no", "false", "0"):
        Parking.worker = worker
        current_app.steps["consumer"].add(Parking)
