# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dead tasks on RabbitMQ: what the broker has written on them."""

from __future__ import annotations

import calendar

from ..engine import DeadTask
from ._amqp_messages import Message, Messages


def dead_task(messages: Messages, queue: str, message: Message) -> DeadTask:
    """A task that lies with the dead ones. The newest death comes first in ``x-death``, with its count (3.12)."""
    death = ((message[1].headers or {}).get("x-death") or [{}])[0]
    died = calendar.timegm(death["time"].utctimetuple()) if "time" in death else None
    kept = messages.dead_kept_seconds
    return DeadTask(
        id=messages.id(message),
        task=messages.task(message),
        queue=queue,
        enqueued=messages.enqueued(message),
        died=died,
        mark=f"{died}:{death.get('count')}",
        error=messages.error(message),
        worker=None,
        expires=None if died is None or kept is None else died + kept,
    )
