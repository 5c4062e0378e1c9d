# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Backstep keeps in RabbitMQ by name and line: a book is a queue whose messages, read in turn, are its changes.

A change is a JSON object of lines; one that is null was taken out. Who reads takes all of them for a moment, so there
is a lock, which is a queue of the reader's own: ``backstep.lock.book.<name>``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Optional

try:
    import pika
except ImportError:  # ``open_engine`` refuses to go on without it, and says what to install
    pika = None  # so that this file can be read without it, as sanity does

from ._amqp import OURS, AmqpLink
from ._amqp_moves import walk

# A book that is kept for ever is written anew when it has had so many changes.
_CHANGES_AT_MOST = 20


def read(link: AmqpLink, book: str) -> dict[str, str]:
    """As ``Engine.read_book``."""
    name = _queue(book)
    count = link.count(name)
    if count is None:
        return {}
    with link.locked(f"book.{book}"), link.channel() as channel:
        return _folded([body for _method, _properties, body in walk(channel, name, count + _CHANGES_AT_MOST)])


def write(link: AmqpLink, book: str, lines: Mapping[str, Optional[str]], seconds: Optional[int]) -> None:
    """As ``Engine.write_book``."""
    name = _queue(book)
    with link.locked(f"book.{book}"):
        link.declare(name, {"x-expires": seconds * 1000} if seconds else None)
        with link.channel() as channel:
            channel.tx_select()
            if not seconds and (link.count(name) or 0) >= _CHANGES_AT_MOST:
                there = list(walk(channel, name, 2 * _CHANGES_AT_MOST))
                _publish(channel, name, {**_folded([body for _method, _properties, body in there]), **lines})
                channel.basic_ack(there[-1][0].delivery_tag, multiple=True)
            else:
                _publish(channel, name, lines)
            channel.tx_commit()


def _publish(channel: Any, name: str, lines: Mapping[str, Optional[str]]) -> None:
    channel.basic_publish("", name, json.dumps(dict(lines)).encode(), pika.BasicProperties(delivery_mode=2))


def _folded(changes: list[bytes]) -> dict[str, str]:
    book: dict[str, Optional[str]] = {}
    for change in changes:
        book.update(json.loads(change))
    return {line: said for line, said in book.items() if said is not None}


def _queue(book: str) -> str:
    return f"{OURS}book.{book}"
