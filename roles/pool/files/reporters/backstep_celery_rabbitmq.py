# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loaded by a Celery worker on RabbitMQ (``--include=backstep_celery_rabbitmq``): tells what it has and what it did.

RabbitMQ tells of no task which worker has it, and forgets one that is acknowledged before it is executed. So the
worker's main process keeps the two queues that docs/engines.md describes for plain consumers, by a connection of its
own: ``backstep.alive.<worker>``, which lives as long as that connection, and ``backstep.worker.<worker>``, whose one
message has what plain consumers tell, and beside that:

- ``held[].acknowledged``: true where the broker would not give a task back that is executed.
- ``later``: a list of ``queue``, ``state`` (``scheduled`` or ``retrying``), ``tasks`` (how many), ``ids`` (the first
  of them) and ``names`` (how many of each name), of what was taken and is due later.
- ``loses``: the names of the tasks that are acknowledged before they are executed.
- ``gates``: which state of the book of gates it keeps to.

A task is told before it is acknowledged, and what ended is told within a moment. An attempt that is retried has failed.
Telling never makes a task fail: when the broker doesn't take it within a second, nothing is told for a while. A worker
that was not started by Backstep (no ``BACKSTEP_WORKER``) tells nothing.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket
import threading
import time
from collections import Counter
from typing import Any

from amqp.exceptions import ChannelError
from backstep_celery_rabbitmq_parking import RabbitmqWay
from backstep_celery_unknown import Way, park_tasks
from backstep_gates import Follower
from celery import current_app, signals
from celery.exceptions import Ignore, Reject
from celery.worker import state

_NAME = os.environ.get("BACKSTEP_WORKER", "")
_NOTES, _ALIVE = f"backstep.worker.{_NAME}", f"backstep.alive.{_NAME}"
_LAST_ONLY = {"x-max-length": 1, "x-overflow": "drop-head", "x-expires": 86_400_000}
_CANARY = "backstep-canary-"
_CANARIES_KEPT = 1000
_LISTED = 100
_LOOK_SECONDS = 10.0
_HEARTBEAT_SECONDS = 30
_ANSWER_SECONDS = 1.0
_PACE_SECONDS = 0.25
_GATES_SECONDS = 1.0
_REST_SECONDS = 5.0
_TRIES = 20

_log = logging.getLogger(__name__)


class _Line:
    """The connection on which the worker tells; one thread at a time."""

    def __init__(self, gates: Follower) -> None:
        self._gates = gates
        self._connection: Any = None
        self._channel: Any = None
        self.is_known = False
        """Whether it is seen, and has told something."""
        self._is_blind = False
        self._rests_until = 0.0
        self._lock = threading.Lock()
        self._complained = False

    def tell(self, notes: dict[str, Any], ask: bool = False) -> bool:
        """Replace what was told last; whether it is.

        :param ask: also have the broker answer, which shows that it still is there.
        """
        with self._lock:
            if time.monotonic() < self._rests_until:
                return False
            try:
                self._reach()
                self._introduce(notes)
                self._publish(notes)
                if ask:
                    self._channel.queue_declare(_NOTES, durable=True, auto_delete=False, arguments=_LAST_ONLY)
            except Exception as error:  # noqa: BLE001  # whatever it is, the task goes on
                self._rests_until = time.monotonic() + _REST_SECONDS
                self._drop()
                self.complain(error)
                return False
            self._complained = False
            return True

    def end(self) -> None:
        """Leave nothing behind."""
        with self._lock:
            try:
                if self._channel is not None:
                    self._channel.queue_delete(_NOTES)
            except Exception as error:  # noqa: BLE001  # it runs out by itself
                self.complain(error)
            self._drop()
            self._rests_until = float("inf")

    def look(self) -> bool:
        """See whether there are other gates; whether that was tried."""
        with self._lock:
            if time.monotonic() < self._rests_until:
                return False
            try:
                self._reach()
                self._gates.look(self._connection.channel)
                self._is_blind = False
            except Exception as error:  # noqa: BLE001  # whatever it is, the tasks go on
                if not self._is_blind:
                    self._is_blind = True
                    _log.warning("Which gates there are can't be read now: %s", type(error).__name__)
                # By itself that says nothing against the connection, without which the worker isn't seen.
                harmless = (ChannelError, socket.timeout, ValueError, TypeError)
                if self._gates.is_reading or not isinstance(error, harmless):
                    self._rests_until = time.monotonic() + _REST_SECONDS
                    self._drop()
            return True

    def _reach(self) -> None:
        if self._connection is not None:
            return
        theirs = current_app.connection_for_write()
        limits = {"read_timeout": _ANSWER_SECONDS, "write_timeout": _ANSWER_SECONDS}
        self._connection = theirs.clone(
            connect_timeout=_ANSWER_SECONDS,
            heartbeat=_HEARTBEAT_SECONDS,
            transport_options={**(theirs.transport_options or {}), **limits},
        )
        self._channel = self._connection.channel()

    def _introduce(self, notes: dict[str, Any]) -> None:
        if not self.is_known:
            self._channel.queue_declare(_NOTES, durable=True, auto_delete=False, arguments=_LAST_ONLY)
            self._publish(notes)  # whoever is seen has told something
            self._channel.queue_declare(_ALIVE, exclusive=True)
            self.is_known = True

    def _publish(self, notes: dict[str, Any]) -> None:
        message = self._channel.prepare_message(json.dumps(notes).encode(), content_type="application/json")
        self._channel.basic_publish(message, exchange="", routing_key=_NOTES)

    def _drop(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        self.is_known = False
        self._gates.forget()
        if connection is not None:
            try:
                connection.close()
            except Exception as error:  # noqa: BLE001  # it is forgotten either way
                self.complain(error)

    def complain(self, error: Exception) -> None:
        """Say once that something is not told."""
        if not self._complained:
            self._complained = True
            # Only its kind: the text could hold the broker's password.
            _log.warning("Backstep is not told what this worker does: %s", type(error).__name__)


class _Reporter:
    """What the worker has to tell; lives in its main process."""

    def __init__(self, line: _Line, gates: Follower, way: Way) -> None:
        self._line, self._gates, self._way = line, gates, way
        self._consumer: Any = None
        self._queues: list[Any] = []
        self._changed = threading.Event()
        self._birth = time.time()
        self._counts = {"finished": 0, "failed": 0}
        self._canaries: dict[str, str] = {}
        self._owner = 0

    def on_ready(self, sender: Any = None, **_told: Any) -> None:
        """Be known, and go on telling."""
        self._consumer, self._owner = sender, os.getpid()
        self._queues = self._consumed()
        self._line.tell(self._looked())
        threading.Thread(target=self._live, name="backstep", daemon=True).start()
        atexit.register(self._end)

    def on_received(self, request: Any = None, **_told: Any) -> None:
        """Hear of what becomes of a task that was taken."""
        accepted, succeeded, failed = request.on_accepted, request.on_success, request.on_failure

        def on_accepted(pid: int, accepted_at: float) -> Any:
            self._begin(request)
            return accepted(pid, accepted_at)

        def on_success(result: Any, **more: Any) -> Any:
            if not result[0]:  # else the failure is told
                self._count(request, "finished")
            return succeeded(result, **more)

        def on_failure(information: Any, *arguments: Any, **more: Any) -> Any:
            error = getattr(information, "exception", None)
            if not isinstance(getattr(error, "exc", error), (Ignore, Reject)):
                self._count(request, "failed")
            return failed(information, *arguments, **more)

        request.on_accepted, request.on_success, request.on_failure = on_accepted, on_success, on_failure
        self._changed.set()

    def _begin(self, request: Any) -> None:
        """Tell that a task is executed, before the broker is told so."""
        request.backstep_started = time.time()
        notes = self._looked([request])
        if notes:
            self._line.tell(notes)

    def _count(self, request: Any, outcome: str) -> None:
        if getattr(request, "backstep_ended", False):
            return
        request.backstep_ended = True
        if str(request.id).startswith(_CANARY):
            self._canaries[str(request.id)] = outcome
            while len(self._canaries) > _CANARIES_KEPT:
                self._canaries.pop(next(iter(self._canaries)))
        else:
            self._counts[outcome] += 1
        self._changed.set()

    def _live(self) -> None:
        told: dict[str, Any] | None = None
        asked_at = looked_at = 0.0
        while True:
            self._changed.wait(_PACE_SECONDS)
            self._changed.clear()
            # First of all: who can't tell, as while RabbitMQ blocks who publishes, can look all the same.
            if self._way.keeps_gates and time.monotonic() > looked_at + _GATES_SECONDS and self._line.look():
                looked_at = time.monotonic()
            notes = self._looked()
            due = time.monotonic() > asked_at + _LOOK_SECONDS
            if notes and (due or notes != told or not self._line.is_known):
                told = notes if self._line.tell(notes, ask=due) else None
                asked_at = time.monotonic() if due else asked_at

    def _end(self) -> None:
        if os.getpid() == self._owner:
            self._line.end()

    def _looked(self, beginning: list[Any] | None = None) -> dict[str, Any]:
        """What there is to tell now; nothing where that can't be seen."""
        for tries_left in reversed(range(_TRIES if self._consumer is not None else 0)):
            try:
                return self._notes(beginning or [])
            except Exception as error:  # noqa: BLE001  # whatever it is, it is no task's affair
                # Another thread may have changed a set just now.
                if not isinstance(error, RuntimeError) or not tries_left:
                    self._line.complain(error)
                    break
        return {}

    def _consumed(self) -> list[Any]:
        """The queues; while the worker has no connection, those that it had."""
        consumer = self._consumer.task_consumer
        return self._queues if consumer is None else list(consumer.queues)

    def _notes(self, beginning: list[Any]) -> dict[str, Any]:
        queues = self._queues = self._consumed()
        active = {id(request): request for request in [*beginning, *state.active_requests]}
        ahead = [request for request in state.reserved_requests if id(request) not in active]
        return {
            "queues": [queue.name for queue in queues],
            "pid": os.getpid(),
            "birth": self._birth,
            **self._counts,
            "held": [
                self._held(request, queues)
                for request in [*active.values(), *ahead]
                if not getattr(request, "backstep_ended", False)
            ],
            "canaries": dict(self._canaries),
            "later": self._later(queues),
            "loses": sorted(
                name
                for name, task in list(current_app.tasks.items())
                if not task.acks_late and not name.startswith("celery.")
            ),
            **({"gates": self._gates.digest} if self._way.keeps_gates and self._gates.digest else {}),
        }

    def _held(self, request: Any, queues: list[Any]) -> dict[str, Any]:
        started = getattr(request, "backstep_started", None)
        return {
            "id": str(request.id),
            "task": request.name,
            "queue": _queue_of(request, queues),
            "started": started,
            "acknowledged": started is not None and not request.task.acks_late,
        }

    def _later(self, queues: list[Any]) -> list[dict[str, Any]]:
        """Of what waits in the worker until it is due."""
        found: dict[tuple[str, str], list[Any]] = {}
        for waiting in list(self._consumer.timer.schedule.queue):
            request = next(iter(waiting.entry.args or ()), None)
            if hasattr(request, "request_dict"):
                kind = "retrying" if request.request_dict.get("retries") else "scheduled"
                found.setdefault((_queue_of(request, queues), kind), []).append(request)
        return [
            {
                "queue": queue,
                "state": kind,
                "tasks": len(requests),
                "ids": [str(request.id) for request in requests[:_LISTED]],
                "names": dict(Counter(str(request.name) for request in requests)),
            }
            for (queue, kind), requests in sorted(found.items(), key=lambda entry: entry[0])
        ]


def _queue_of(request: Any, queues: list[Any]) -> str:
    """The queue that a task came from: the broker only says how it was sent."""
    how = request.delivery_info or {}
    exchange, key = how.get("exchange") or "", str(how.get("routing_key"))
    if not exchange:
        return key
    return next((queue.name for queue in queues if (queue.exchange.name, queue.routing_key) == (exchange, key)), key)


if _NAME:
    _gates = Follower(lambda declared: declared.message_count, lambda got: None if got is None else got.body)
    _line = _Line(_gates)
    _way = RabbitmqWay(_gates, _line.look)
    _reporter = _Reporter(_line, _gates, _way)
    signals.worker_ready.connect(_reporter.on_ready, weak=False)
    signals.task_received.connect(_reporter.on_received, weak=False)
    park_tasks(_NAME, _way)
