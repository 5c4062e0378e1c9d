# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dead tasks on RabbitMQ: what the broker has written on them, and notes of which were put back."""

from __future__ import annotations

import calendar
import json
from collections.abc import Mapping

try:
    import pika
except ImportError:  # ``open_engine`` refuses to go on without it, and says what to install
    pika = None  # so that this file can be read without it, as sanity does

from ..engine import NOTES_SECONDS, DeadTask
from ._amqp import OURS, AmqpLink
from ._amqp_messages import Message, Messages
from ._amqp_moves import walk


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


def note_replay(link: AmqpLink, run: str, marks: Mapping[str, str]) -> None:
    """As ``Engine.note_replay``: one message of a queue that goes with the time."""
    name = _notes(run)
    link.declare(name, {"x-expires": NOTES_SECONDS * 1000})
    with link.channel() as channel:
        channel.tx_select()
        channel.basic_publish("", name, json.dumps(dict(marks)).encode(), pika.BasicProperties(delivery_mode=2))
        channel.tx_commit()


def noted_replay(link: AmqpLink, run: str) -> dict[str, str]:
    """As ``Engine.noted_replay``."""
    name, noted = _notes(run), dict[str, str]()
    count = link.count(name)
    if count is not None:
        with link.locked(f"replay.{run}"), link.channel() as channel:
            for _method, _properties, body in walk(channel, name, count):
                noted.update(json.loads(body))
    return noted


def _notes(run: str) -> str:
    return f"{OURS}replay.{run}"
