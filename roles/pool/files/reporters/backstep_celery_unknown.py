# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has a Celery worker park what it doesn't execute: what it doesn't know or can't read, and what a gate holds.

Celery rejects a task that it doesn't know, or whose body isn't written as it takes it, which mostly destroys it. After
a release is taken back, whoever is still ahead of it goes on enqueueing such tasks. They are parked as ``task_move``
parks them, as the bytes that they are, and are put back like all others. The app isn't changed; in ``pool_env``,
``PARK_UNKNOWN_TASKS: "no"`` leaves Celery its own way, and ``KEEP_GATES: "no"`` has the worker execute what a gate
holds.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from functools import partial
from typing import Any, Callable, NamedTuple

import backstep_gates
from celery import bootsteps, current_app
from celery.worker import state

_CANARY = "backstep-canary-"
_UNREADABLE = ("on_unknown_message", "on_invalid_task", "on_decode_error")
_AGAIN_SECONDS = 2.0

_log = logging.getLogger(__name__)


class NotParked(Exception):
    """A task can't be parked, and Celery is to do what it always did with one that it doesn't know."""


class Why(NamedTuple):
    """What is noted with a task that is parked."""

    owner: str
    reason: str
    gate: str = ""
    """The task's name, where its gate holds it."""
    line: bytes | str = ""
    """What the gate says. If it says something else by then, its opening may not find the task: it is not parked."""


class Way(ABC):
    """How it is done with one broker."""

    keeps_gates = False
    """Whether the worker does."""

    @abstractmethod
    def park(self, consumer: Any, message: Any, known: str, why: Why) -> bool:
        """Whether a task is parked; if not, it stays unacknowledged.

        :raises NotParked: it can't be.
        """

    @abstractmethod
    def can_read_gates(self, consumer: Any) -> bool:
        """Whether the broker lets the worker read the book of gates; asked before it takes tasks, when it connects."""

    @abstractmethod
    def line(self, message: Any, task: str) -> bytes | str | None:
        """What the book of gates says of the tasks of a name; raises what keeps it from being read now."""


class Parking(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery tells no types
    """Takes the place of what the consumer does with a task that nobody has registered, or that nobody can read."""

    worker = ""
    way: Way

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        reasons = {"on_unknown_task": backstep_gates.UNKNOWN, **dict.fromkeys(_UNREADABLE, backstep_gates.UNREADABLE)}
        for name, reason in reasons.items():
            if hasattr(consumer, name):
                setattr(consumer, name, partial(self._park, consumer, getattr(consumer, name), reason))
            else:
                _log.warning("Tasks will be lost because %s: this version of Celery is not understood.", reason)

    def _park(self, consumer: Any, reject: Callable[..., Any], reason: str, *told: Any) -> Any:
        """Instead of rejecting it.

        :param told: what Celery would reject it with; the message is among it.
        """
        message = next(each for each in told if hasattr(each, "delivery_tag"))
        headers = message.headers or {}
        known = str(headers.get("id") or (message.properties or {}).get("correlation_id") or "")
        if known.startswith(_CANARY):
            return reject(*told)
        try:
            parked = self.way.park(consumer, message, known, Why(self.worker, reason))
        except NotParked:
            return reject(*told)
        if parked:
            message.ack_log_error(_log, consumer.connection_errors)
            _log.error("Task %s of %s is parked: %s.", known, headers.get("task"), reason)
        return None


class Gates(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery tells no types
    """Takes the place of what the consumer does with a task that is to be executed now, whenever it was taken."""

    requires = ("celery.worker.consumer.connection:Connection",)
    way: Way

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._execute = getattr(consumer, "on_task_request", None)
        consumer.on_task_request = partial(self._take, consumer)

    def start(self, consumer: Any) -> None:
        """Find out whether gates can be kept, before the consumer takes its first task on this connection."""
        self.way.keeps_gates = self._execute is not None and self.way.can_read_gates(consumer)
        if not self.way.keeps_gates:
            _log.error("This worker keeps no gates: it may not read which there are.")

    def _take(self, consumer: Any, request: Any) -> None:
        message, headers = request.message, request.message.headers or {}
        task, known = headers.get("task"), str(headers.get("id") or "")
        # Without a name in its headers it has the old form, of which Backstep knows nothing.
        if not task or known.startswith(_CANARY) or not self.way.keeps_gates:
            return self._execute(request)
        parked, held = False, True
        try:
            line = self.way.line(message, task)
            held = backstep_gates.holds(line, known)
            if held:
                why = Why(backstep_gates.owner(task), backstep_gates.reason(line), task, line)
                parked = self.way.park(consumer, message, known, why)
        except Exception as error:  # noqa: BLE001  # whatever it is, the worker goes on
            # Only its kind: the text could hold the broker's password.
            _log.warning("Task %s waits, as what its gate wants can't be done now: %s", known, type(error).__name__)
        if not held:
            return self._execute(request)
        if parked:
            state.task_ready(request)
            message.ack_log_error(_log, consumer.connection_errors)
            _log.info("Task %s is parked: the gate of %s holds it.", known, task)
        else:
            self._take_later(consumer, request)
        return None

    def _take_later(self, consumer: Any, request: Any) -> None:
        """Try again soon. Until then the task counts as taken, so that the worker doesn't take all that waits."""
        connection = consumer.connection

        def take() -> None:
            # What was taken on a connection that is lost comes back by itself, perhaps to another worker.
            if consumer.connection is connection:
                self._take(consumer, request)

        consumer.timer.call_after(_AGAIN_SECONDS, take)


def park_tasks(worker: str, way: Way) -> None:
    """Have the worker that is about to start do so.

    :param worker: its name.
    """
    steps = current_app.steps["consumer"]
    if backstep_gates.parks_unknown_tasks():
        Parking.worker, Parking.way = worker, way
        steps.add(Parking)
    if backstep_gates.keeps_gates():
        Gates.way = way
        steps.add(Gates)
