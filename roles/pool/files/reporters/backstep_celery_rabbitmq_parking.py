# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a Celery worker on RabbitMQ parks a task that it has taken: the broker has committed a copy of it first.

A copy is a transaction, in which RabbitMQ is asked for an answer before the commit: while it takes no messages (a full
disk, no memory) it gives none, and what is dropped with the connection never becomes a copy. A publisher confirm that
isn't awaited to its end would leave one for each try.

RabbitMQ can't move a task in one step. A worker that dies after the copy is committed and before the task is
acknowledged leaves it in two places, and it then runs twice when it is put back.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import nullcontext
from typing import Any, Callable
from uuid import uuid4

import amqp
from amqp.exceptions import ChannelError
from backstep_celery_unknown import NotParked, Way, Why
from backstep_gates import Follower
from kombu.transport import pyamqp

# As ``task_move`` does, which reads it when a task is put back.
_KEPT = "backstep-kept"
_ANSWER_SECONDS = 5.0
_LOOK_SECONDS = 0.1

_log = logging.getLogger(__name__)


class _Whole(pyamqp.Message):  # type: ignore[misc]  # kombu tells no types
    """A message that keeps its body as it came: kombu's own unpacks one that is compressed."""

    def __init__(self, msg: Any, channel: Any = None, **more: Any) -> None:
        super().__init__(msg, channel=channel, **more)
        self.backstep_body = msg.body


class _Copies:
    """The connection on which copies are made: the worker's own can't wait for an answer without taking more tasks."""

    def __init__(self) -> None:
        self._connection: Any = None
        self._channel: Any = None
        # What has become due is taken by another thread where Celery has no loop of events.
        self._lock = threading.Lock()

    def put(self, theirs: Any, target: str, copy: Any) -> None:
        """Put a copy into a queue, and know that the broker has it there."""
        with self._lock:
            try:
                self._reach(theirs, target)
                self._channel.basic_publish(copy, exchange="", routing_key=target, mandatory=True)
                self._declare(target)
                self._channel.tx_commit()
            except BaseException:
                self._drop()
                raise

    def _reach(self, theirs: Any, target: str) -> None:
        if self._connection is not None:
            try:
                return self._declare(target)
            except Exception:  # noqa: BLE001  # nobody has listened to it for a while; a new one will tell
                self._drop()
        # A channel that confirms can have no transactions.
        own = {"read_timeout": _ANSWER_SECONDS, "write_timeout": _ANSWER_SECONDS, "confirm_publish": False}
        self._connection = theirs.clone(
            connect_timeout=_ANSWER_SECONDS,
            heartbeat=0,
            transport_options={**(theirs.transport_options or {}), **own},
        )
        self._channel = self._connection.channel()
        self._declare(target)
        return self._channel.tx_select()

    def _declare(self, target: str) -> None:
        self._channel.queue_declare(target, durable=True, auto_delete=False)

    def _drop(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            try:
                connection.close()
            except Exception as error:  # noqa: BLE001  # it is forgotten either way
                _log.debug("A connection was not closed: %s", type(error).__name__)


class RabbitmqWay(Way):
    """Of a worker whose broker is RabbitMQ."""

    def __init__(self, gates: Follower, look: Callable[[], Any]) -> None:
        """:param look: has ``gates`` look at the book."""
        self._gates, self._look = gates, look
        self._copies = _Copies()

    def park(self, consumer: Any, message: Any, known: str, why: Why) -> bool:
        """Park a copy of a task, or leave the task unacknowledged; then it comes back.

        :raises NotParked: the broker refuses, or nothing tells where the task comes from.
        """
        queue = _queue_of(consumer, message)
        try:
            if not queue or not hasattr(message, "backstep_body"):
                raise NotParked
            with self._gates.steady(why.gate, why.line) if why.gate else nullcontext(True) as still:
                if still:
                    copy = _parked(message, queue, known, why)
                    self._copies.put(consumer.connection, f"backstep.parked.{queue}", copy)
                return still
        except (ChannelError, NotParked) as error:
            # Only its kind: the text could hold the broker's password.
            _log.warning("Task %s can't be parked (%s): %s", known, why.reason, type(error).__name__)
            raise NotParked from None
        except Exception as error:  # noqa: BLE001  # whatever it is, the worker goes on
            _log.warning("Task %s can't be parked now (%s): %s", known, why.reason, type(error).__name__)
            return False

    def can_read_gates(self, consumer: Any) -> bool:
        """Whether RabbitMQ doesn't refuse. What the worker takes waits while it gives no answer."""
        end, pause = time.monotonic() + _ANSWER_SECONDS, threading.Event()
        self._look()
        while not (self._gates.is_read or self._gates.is_refused) and time.monotonic() < end:
            pause.wait(_LOOK_SECONDS)
            self._look()
        return not self._gates.is_refused

    def line(self, message: Any, task: str) -> str | None:
        """What the book said when it was read last."""
        return self._gates.line(task)


def _parked(message: Any, queue: str, known: str, why: Why) -> Any:
    """The copy. An expiry would go on while it is parked; and what has no id that could be read gets one meanwhile."""
    own, headers = dict(message.properties), message.headers or {}
    due_later = "retrying" if headers.get("retries") else "scheduled"
    kept = {
        "expiration": own.pop("expiration", None),
        "delivery_mode": own.get("delivery_mode"),
        "place": queue,
        "state": "waiting" if headers.get("eta") is None else due_later,
        "owner": why.owner,
        "reason": why.reason,
        **({} if known else {"id": f"unreadable-{uuid4()}"}),
    }
    own.update(application_headers={**headers, _KEPT: json.dumps(kept)}, delivery_mode=2)
    return amqp.Message(message.backstep_body, **own)


def _queue_of(consumer: Any, message: Any) -> str:
    """The queue that a task was taken from, which what it was sent with doesn't always say."""
    tags = getattr(consumer.task_consumer, "_active_tags", {})
    tag = (message.delivery_info or {}).get("consumer_tag")
    return next((str(queue) for queue, active in tags.items() if active == tag), "")


pyamqp.Channel.Message = _Whole
