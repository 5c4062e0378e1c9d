# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parks in ``backstep.parked.<queue>`` what a Dramatiq worker on RabbitMQ doesn't execute, and reads the book of gates.

Both is done as ``backstep_pika.py`` does it. What a worker takes before its first reading waits.
Python 3.9, dramatiq and pika.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any, Callable
from uuid import uuid4

import pika
from backstep_dramatiq_parking import Parking
from backstep_gates import UNREADABLE
from backstep_pika import Copies, GateFollower, parked
from dramatiq import Message
from dramatiq.common import q_name
from dramatiq.errors import ConnectionClosed, DecodeError

_REST_SECONDS = 1.0


class _Taken(Copies):
    """What a consumer has been given last, as it came, and the connection by which that is parked; for one thread."""

    delivery: tuple[Any, Any, Any] = (None, None, None)

    def note(self, delivery: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        """Hand it on."""
        self.delivery = delivery
        if delivery[0] is None:  # for a while there was nothing to take
            self.drop()
        return delivery


class RabbitmqParking(Parking):
    """Parks a copy, and has the original acknowledged when the broker has committed that."""

    def __init__(self, worker: str) -> None:
        super().__init__(worker)
        self.gates = GateFollower()

    def prepare(self, consumer: Any) -> None:
        """See messages as they come: what Dramatiq makes of them lacks their properties."""
        if not hasattr(consumer, "iterator"):
            return
        taken = consumer.backstep = _Taken(consumer.broker.parameters)
        consumer.iterator = map(taken.note, consumer.iterator)
        if self.parks_unknown:
            consumer._nack = partial(self._reject, consumer, consumer._nack)

    def _reject(self, consumer: Any, reject: Callable[[Any], None], tag: Any) -> None:
        """Have a message acknowledged instead, which was taken last and couldn't be read, and is parked."""
        method, _properties, body = consumer.backstep.delivery
        is_last = method is not None and method.delivery_tag == tag
        if is_last and not _can_be_read(body) and self.is_left_unread(consumer, body):
            consumer.connection.add_callback_threadsafe(partial(consumer.channel.basic_ack, tag))
        else:
            reject(tag)

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
        copy = parked(properties, place, "waiting" if place == queue else "scheduled", whose, why)
        with nullcontext(True) if line is None else self.gates.steady(str(message.actor_name), line) as still:
            if still:
                consumer.backstep.put(f"backstep.parked.{queue}", copy, body)
            return still

    def park_raw(self, consumer: Any, raw: bytes) -> str:
        _method, properties, _body = consumer.backstep.delivery
        known = f"unreadable-{uuid4()}"
        place, queue = consumer.queue_name, q_name(consumer.queue_name)
        state = "waiting" if place == queue else "scheduled"
        copy = parked(properties, place, state, self.worker, UNREADABLE, id=known)
        consumer.backstep.put(f"backstep.parked.{queue}", copy, raw)
        return known

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

    def look_first(self, parameters: Any) -> None:
        """Read the book before the first task is taken, where that can be had."""
        self.keeps_gates = self.keeps_gates and self.gates.look_first(parameters)

    def look(self, connection: Any) -> None:
        """See whether there are other gates.

        :raises Exception: the connection is of no use any more.
        """
        self.keeps_gates = self.keeps_gates and self.gates.look_over(connection)


def _can_be_read(body: bytes) -> bool:
    try:
        Message.decode(body)
    except DecodeError:
        return False
    return True
