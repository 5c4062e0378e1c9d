# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parks in ``backstep.parked.<queue>`` what a Dramatiq worker on RabbitMQ doesn't execute.

It parks by a further connection: one that publishes is one that RabbitMQ may block, and the consumer's has
acknowledgements to send. A copy is a transaction, in which RabbitMQ is asked for an answer before the commit: while it
blocks who publishes it gives none, and all that is dropped with the connection never becomes a copy. Tried with 3.10
and publisher confirms instead: each of five attempts during an alarm became one when that was over.
Python 3.9, dramatiq and pika.
"""

from __future__ import annotations

import json
import logging
import time
from copy import copy
from typing import Any

import pika
from backstep_dramatiq_parking import Parking
from dramatiq.common import q_name

_HEARTBEAT_SECONDS = 30
_ANSWER_SECONDS = 1.0

_log = logging.getLogger(__name__)


def connect(theirs: Any) -> Any:
    """A connection to where the app's own go."""
    return pika.BlockingConnection([_limited(one) for one in (theirs if isinstance(theirs, list) else [theirs])])


def _limited(theirs: Any) -> Any:
    """The app's own parameters, for a connection that doesn't wait long."""
    limits = {
        "socket_timeout": _ANSWER_SECONDS,
        "stack_timeout": _ANSWER_SECONDS,
        "blocked_connection_timeout": _ANSWER_SECONDS,
        "heartbeat": _HEARTBEAT_SECONDS,
        "connection_attempts": 1,
    }
    kept = ("host", "port", "virtual_host", "credentials", "ssl_options")
    return pika.ConnectionParameters(**{name: getattr(theirs, name) for name in kept}, **limits)


class _Taken:
    """What a consumer has been given last, as it came, and the connection by which that is parked; for one thread."""

    def __init__(self, parameters: Any) -> None:
        self._parameters = parameters
        self._connection: Any = None
        self._channel: Any = None
        self._used = 0.0
        self._returned: list[Any] = []
        self.delivery: tuple[Any, Any, Any] = (None, None, None)

    def note(self, delivery: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        """Hand it on."""
        self.delivery = delivery
        if delivery[0] is None:  # for a while there was nothing to take
            self.drop()
        return delivery

    def copy_to(self, queue: str, properties: Any) -> None:
        """Have a queue of Backstep's own have it, too, as safe as the broker makes it."""
        # Nobody has heard from the broker on it since.
        if time.monotonic() > self._used + _HEARTBEAT_SECONDS / 3:
            self.drop()
        try:
            if self._connection is None:
                self._connection = connect(self._parameters)
                self._channel = self._connection.channel()
                self._channel.add_on_return_callback(lambda *returned: self._returned.append(returned))
                self._channel.queue_declare(queue, durable=True)
                self._channel.tx_select()
            self._channel.basic_publish("", queue, self.delivery[2], properties, mandatory=True)
            self._channel.queue_declare(queue, durable=True)
            self._channel.tx_commit()
            self._connection.process_data_events(0)
            if self._returned:
                raise pika.exceptions.UnroutableError(self._returned)
        except Exception:
            self.drop()
            raise
        self._used = time.monotonic()

    def drop(self) -> None:
        """Forget the connection."""
        connection, self._connection, self._returned = self._connection, None, []
        try:
            if connection is not None and connection.is_open:
                connection.close()
        except Exception:  # noqa: BLE001  # it is forgotten either way
            _log.debug("The connection was lost already.")


class RabbitmqParking(Parking):
    """Parks a copy, and has the original acknowledged when the broker has committed that."""

    def __init__(self, worker: str) -> None:
        super().__init__(worker)
        self.keeps_gates = False  # nothing here reads the book of gates

    def line(self, consumer: Any, task: str) -> bytes | str | None:
        return None

    def before_worker_boot(self, broker: Any, worker: Any) -> None:
        """See messages as they come: what Dramatiq makes of them lacks their properties."""
        consume = broker.consume

        def consume_and_note(*arguments: Any, **options: Any) -> Any:
            consumer = consume(*arguments, **options)
            if hasattr(consumer, "iterator"):
                consumer.backstep = _Taken(broker.parameters)
                consumer.iterator = map(consumer.backstep.note, consumer.iterator)
            return consumer

        broker.consume = consume_and_note

    def before_consumer_thread_shutdown(self, broker: Any, thread: Any) -> None:
        """Leave no connection behind."""
        taken = getattr(thread.consumer, "backstep", None)
        if taken is not None:
            taken.drop()

    def park(self, consumer: Any, message: Any, whose: str, why: str, line: bytes | str | None = None) -> bool:
        method, properties, body = consumer.backstep.delivery
        place, queue = consumer.queue_name, q_name(consumer.queue_name)
        # What isn't JSON, nobody could put back.
        if method.delivery_tag != message._tag or not body.lstrip().startswith(b"{"):
            raise ValueError("This message isn't one that can be put back.")
        kept = {
            "expiration": properties.expiration, "delivery_mode": properties.delivery_mode, "place": place,
            "state": "waiting" if place == queue else "scheduled", "owner": whose, "reason": why,
        }  # fmt: skip
        parked = copy(properties)  # as it may have to be tried again
        parked.headers = {**(properties.headers or {}), "backstep-kept": json.dumps(kept)}
        parked.expiration, parked.delivery_mode = None, 2
        consumer.backstep.copy_to(f"backstep.parked.{queue}", parked)
        return True
