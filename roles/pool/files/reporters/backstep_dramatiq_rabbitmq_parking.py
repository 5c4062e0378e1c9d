# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parks in ``backstep.parked.<queue>`` what a Dramatiq worker on RabbitMQ doesn't execute, and reads the book of gates.

It parks by a further connection: one that publishes is one that RabbitMQ may block, and the consumer's has
acknowledgements to send. A copy is a transaction, in which RabbitMQ is asked for an answer before the commit: while it
blocks who publishes it gives none, and all that is dropped with the connection never becomes a copy. Tried with 3.10
and publisher confirms instead: each of five attempts during an alarm became one when that was over.

The book of gates is followed as ``backstep_gates.Follower`` has it. What a worker takes before its first reading waits.
Python 3.9, dramatiq and pika.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import nullcontext
from copy import copy
from typing import Any

import pika
from backstep_dramatiq_parking import Parking
from backstep_gates import Follower
from dramatiq.common import q_name
from dramatiq.errors import ConnectionClosed

_HEARTBEAT_SECONDS = 30
_ANSWER_SECONDS = 1.0
_REST_SECONDS = 1.0
_FIRST_LOOK_SECONDS = 5.0
_FIRST_LOOK_PACE = 0.05

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
        self.gates = Follower(lambda declared: declared.method.message_count, lambda got: got[2])
        self._is_blind = False

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
        with nullcontext(True) if line is None else self.gates.steady(str(message.actor_name), line) as still:
            if still:
                consumer.backstep.copy_to(f"backstep.parked.{queue}", parked)
            return still

    def rest(self, consumer: Any) -> None:
        """Let some time pass, in which what others have executed is acknowledged."""
        try:
            consumer.connection.sleep(_REST_SECONDS)
        except pika.exceptions.AMQPError as error:
            raise ConnectionClosed(error) from None
        if not consumer.channel.is_open:
            raise ConnectionClosed("The message is this process's no more.")

    def line(self, consumer: Any, task: str) -> str | None:
        return self.gates.line(task)

    def told(self) -> dict[str, str]:
        """What is to be noted of the gates that are kept."""
        return {"gates": self.gates.digest} if self.keeps_gates and self.gates.digest else {}

    def look_first(self, parameters: Any) -> None:
        """Read the book before the first task is taken, where that can be had."""
        if not self.keeps_gates:
            return
        until = time.monotonic() + _FIRST_LOOK_SECONDS
        try:
            with connect(parameters) as connection:
                self.look(connection)
                while self.keeps_gates and not self.gates.is_read and time.monotonic() < until:
                    connection.sleep(_FIRST_LOOK_PACE)
                    self.look(connection)
        except Exception as error:  # noqa: BLE001  # whatever it is, the worker is to start
            # Only its kind: the text could hold the broker's password.
            _log.warning("The gates aren't known yet, so no task is begun: %s", type(error).__name__)
        self.gates.forget()

    def look(self, connection: Any) -> None:
        """See whether there are other gates.

        :raises Exception: the connection is of no use any more.
        """
        if not self.keeps_gates:
            return
        try:
            self.gates.look(connection.channel)
            self._is_blind = False
        except (pika.exceptions.ChannelClosedByBroker, ValueError, TypeError) as error:
            if not self._is_blind:
                self._is_blind = True
                _log.warning("Which gates there are can't be read now: %s", type(error).__name__)
            # By itself that says nothing against the connection, without which the worker isn't seen.
            if self.gates.is_reading:
                raise
        if self.gates.is_refused:
            self.keeps_gates = False
            _log.error("This worker keeps no gates: it may not read which there are.")
