# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a worker on RabbitMQ whose client is pika parks what it doesn't execute, and follows the book of gates.

It parks by a further connection: one that publishes is one that RabbitMQ may block, and the consumer's has
acknowledgements to send. A copy is a transaction, in which RabbitMQ is asked for an answer before the commit: while it
blocks who publishes it gives none, and all that is dropped with the connection never becomes a copy. Tried with 3.10
and publisher confirms instead: each of five attempts during an alarm became one when that was over.

Python 3.9 and pika.
"""

from __future__ import annotations

import json
import logging
import time
from copy import copy
from typing import Any

import pika
from backstep_gates import Follower

_HEARTBEAT_SECONDS = 30
_ANSWER_SECONDS = 1.0
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


def parked(properties: Any, place: str, state: str, whose: str, why: str, **more: str) -> Any:
    """The properties with which a task lies parked, out of its own, as ``task_move`` writes and reads them.

    :param place: the queue that it was taken from, and goes back to.
    :param more: ``id``, which it is known by while it is parked, where it has none that could be read.
    """
    kept = {
        "expiration": properties.expiration, "delivery_mode": properties.delivery_mode, "place": place,
        "state": state, "owner": whose, "reason": why, **more,
    }  # fmt: skip
    found = copy(properties)  # as it may have to be tried again
    found.headers = {**(properties.headers or {}), "backstep-kept": json.dumps(kept)}
    found.expiration, found.delivery_mode = None, 2  # an expiry would go on while it is parked
    return found


class Copies:
    """The connection by which tasks are parked; for one thread."""

    def __init__(self, parameters: Any) -> None:
        self._parameters = parameters
        self._connection: Any = None
        self._channel: Any = None
        self._used = 0.0
        self._returned: list[Any] = []
        self._declared: set[str] = set()

    def put(self, queue: str, properties: Any, body: bytes) -> None:
        """Have a queue of Backstep's own have a copy, as safe as the broker makes it.

        :raises Exception: what pika raises. Nobody knows then whether the copy is there.
        """
        # Nobody has heard from the broker on it since.
        if time.monotonic() > self._used + _HEARTBEAT_SECONDS / 3:
            self.drop()
        try:
            if self._connection is None:
                self._connection = connect(self._parameters)
                self._channel = self._connection.channel()
                self._channel.add_on_return_callback(lambda *returned: self._returned.append(returned))
                self._channel.tx_select()
            if queue not in self._declared:
                self._channel.queue_declare(queue, durable=True)
                self._declared.add(queue)
            self._channel.basic_publish("", queue, body, properties, mandatory=True)
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
        connection, self._connection = self._connection, None
        self._returned, self._declared = [], set()
        try:
            if connection is not None and connection.is_open:
                connection.close()
        except Exception:  # noqa: BLE001  # it is forgotten either way
            _log.debug("The connection was lost already.")


class GateFollower(Follower):
    """The book of gates, over connections of pika."""

    def __init__(self) -> None:
        super().__init__(lambda declared: declared.method.message_count, lambda got: got[2])
        self._is_blind = False

    def told(self) -> dict[str, str]:
        """What is to be noted of the gates that are kept."""
        return {"gates": self.digest} if self.digest else {}

    def look_first(self, parameters: Any) -> bool:
        """Read the book before the first task is taken, where that can be had; false if it never will be."""
        until = time.monotonic() + _FIRST_LOOK_SECONDS
        keeps = True
        try:
            with connect(parameters) as connection:
                keeps = self.look_over(connection)
                while keeps and not self.is_read and time.monotonic() < until:
                    connection.sleep(_FIRST_LOOK_PACE)
                    keeps = self.look_over(connection)
        except Exception as error:  # noqa: BLE001  # whatever it is, the worker is to start
            # Only its kind: the text could hold the broker's password.
            _log.warning("The gates aren't known yet, so no task is begun: %s", type(error).__name__)
        self.forget()
        return keeps

    def look_over(self, connection: Any) -> bool:
        """See whether there are other gates; false if no gates will ever be kept.

        :raises Exception: the connection is of no use any more.
        """
        try:
            self.look(connection.channel)
            self._is_blind = False
        except (pika.exceptions.ChannelClosedByBroker, ValueError, TypeError) as error:
            if not self._is_blind:
                self._is_blind = True
                _log.warning("Which gates there are can't be read now: %s", type(error).__name__)
            # By itself that says nothing against the connection, without which the worker isn't seen.
            if self.is_reading:
                raise
        if self.is_refused:
            _log.error("This worker keeps no gates: it may not read which there are.")
        return not self.is_refused
