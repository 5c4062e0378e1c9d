# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells Backstep what a Dramatiq worker on RabbitMQ has and did; RabbitMQ tells of no task which consumer has it.

``dramatiq backstep_dramatiq_rabbitmq:broker --queues mail`` loads it in place of the app, whose modules the variable
APP names (see ``backstep_dramatiq_app.py``). Without APP it is loaded as a further module beside the app's, and watches
the global broker.

Each worker process keeps, by a connection of its own, the two queues that docs/engines.md describes for plain
consumers, with ``#`` and its process id behind the worker's name: ``backstep.alive.<worker>#<pid>``, which lives as
long as that connection, and ``backstep.worker.<worker>#<pid>``, whose one message has what plain consumers tell, and
beside that ``later``: a list of ``queue``, ``state`` (``scheduled`` or ``retrying``), ``tasks`` (how many), ``ids``
(the first of them) and ``names`` (how many of each name), of what was taken and is due later; and ``gates``: which
state of the book of gates it keeps to, when it keeps gates.

A message is told before its actor is called, and until it has been acknowledged; an attempt that fails has failed. No
task fails, waits longer than a second or is kept because of what is told. Without BACKSTEP_WORKER nothing is.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import Counter
from typing import Any

from backstep_dramatiq_app import CANARY_IDS, Watcher, declare_canary, load_app, queues_of
from backstep_dramatiq_parking import stand_before
from backstep_dramatiq_rabbitmq_parking import RabbitmqParking
from backstep_pika import connect

_LAST_ONLY = {"x-max-length": 1, "x-overflow": "drop-head", "x-expires": 86_400_000}
_CANARIES_KEPT = 1000
_LISTED = 100
_PACE_SECONDS = 0.25
_LOOK_SECONDS = 10.0
_GATES_SECONDS = 1.0
_ANSWER_SECONDS = 1.0
_REST_SECONDS = 5.0

_log = logging.getLogger(__name__)


class _Line:
    """The connection on which a process tells, and looks at the gates; for one thread."""

    def __init__(self, parameters: Any, name: str, parking: RabbitmqParking) -> None:
        self._parameters, self._parking = parameters, parking
        self._notes, self._alive = f"backstep.worker.{name}", f"backstep.alive.{name}"
        self._connection: Any = None
        self._channel: Any = None

    def tell(self, notes: dict[str, Any], ask: bool) -> None:
        """Replace what was told last.

        :param ask: also have the broker answer, which shows that it still is there.
        """
        if self._channel is None:
            self._channel = self._reached().channel()
            self._channel.queue_declare(self._notes, durable=True, arguments=_LAST_ONLY)
            self._publish(notes)  # whoever is seen has told something
            self._channel.queue_declare(self._alive, exclusive=True)
        else:
            self._publish(notes)
        if ask:
            self._channel.queue_declare(self._notes, durable=True, arguments=_LAST_ONLY)
        self._connection.process_data_events(0)

    def look(self) -> None:
        """See whether there are other gates."""
        self._parking.look(self._reached())

    def listen(self) -> None:
        """Hear from the broker, and have it hear."""
        self._reached().process_data_events(0)

    def end(self) -> None:
        """Leave nothing behind."""
        if self._channel is not None:
            self._channel.queue_delete(self._notes)
        self.drop()

    def drop(self) -> None:
        """Forget the connection."""
        connection, self._connection, self._channel = self._connection, None, None
        self._parking.gates.forget()
        if connection is not None and connection.is_open:
            connection.close()

    def _reached(self) -> Any:
        if self._connection is None:
            self._connection = connect(self._parameters)
        return self._connection

    def _publish(self, notes: dict[str, Any]) -> None:
        self._channel.basic_publish("", self._notes, json.dumps(notes).encode())


class Reporter(Watcher):
    """Listens to the broker of one worker process, and has a thread that tells."""

    def __init__(self, worker: str, parking: RabbitmqParking) -> None:
        super().__init__()
        self._name = worker
        self._parking = parking
        self._worker: Any = None
        self._thread: threading.Thread | None = None
        self._state = threading.Condition()
        """Of all that follows."""
        self._executing: dict[int, dict[str, Any]] = {}
        self._counts = {"finished": 0, "failed": 0}
        self._canaries: dict[str, str] = {}
        self._wanted = self._told = 0
        """How often there was something to tell, and up to which of these it was told."""
        self._silent_until = 0.0
        self._stopped = False
        self._birth = time.time()

    def before_worker_boot(self, broker: Any, worker: Any) -> None:
        """Have the canary and the gates known before the first message is taken."""
        declare_canary(broker)
        self._parking.look_first(broker.parameters)
        self._worker, self._birth = worker, time.time()

    def after_worker_boot(self, broker: Any, worker: Any) -> None:
        """Be known, and go on telling."""
        line = _Line(broker.parameters, f"{self._name}#{os.getpid()}", self._parking)
        self._thread = threading.Thread(target=self._tell, args=(broker, line), name="backstep", daemon=True)
        self._thread.start()
        self._changed(wait=True)

    def after_worker_shutdown(self, broker: Any, worker: Any) -> None:
        """Be gone."""
        with self._state:
            self._stopped = True
            self._state.notify_all()
        if self._thread:
            self._thread.join(3 * _ANSWER_SECONDS)

    def key(self, message: Any) -> Any:
        return id(message)

    def begun(self, message: Any) -> None:
        with self._state:
            self._executing[id(message)] = _held(message, time.time())
        self._changed(wait=True)

    def ended(self, message: Any, outcome: str) -> None:
        known = str(message.message_id)
        with self._state:
            self._executing.pop(id(message), None)
            if outcome and known.startswith(CANARY_IDS):
                self._canaries[known] = outcome
                while len(self._canaries) > _CANARIES_KEPT:
                    self._canaries.pop(next(iter(self._canaries)))
            elif outcome:
                self._counts[outcome] += 1
        self._changed()

    def _changed(self, wait: bool = False) -> None:
        """Have it told.

        :param wait: until it is, but not while the broker is silent.
        """
        with self._state:
            self._wanted += 1
            mine = self._wanted
            self._state.notify_all()
            if wait and time.monotonic() > self._silent_until:
                self._state.wait_for(lambda: self._told >= mine or self._stopped, _ANSWER_SECONDS)

    def _tell(self, broker: Any, line: _Line) -> None:
        asked_at, look_at, complained = 0.0, 0.0, False
        last: dict[str, Any] | None = None
        while not self._stopped:
            with self._state:
                self._state.wait_for(lambda: self._wanted > self._told or self._stopped, _PACE_SECONDS)
                wanted = self._wanted
            if time.monotonic() > self._silent_until:
                due = time.monotonic() > asked_at + _LOOK_SECONDS
                try:
                    # First of all: who can't tell, as while RabbitMQ blocks who publishes, can look all the same.
                    if time.monotonic() >= look_at:
                        line.look()
                        look_at = time.monotonic() + _GATES_SECONDS
                    notes = self._notes(broker)
                    if due or notes != last:
                        line.tell(notes, ask=due)
                    else:
                        line.listen()
                    last, asked_at, complained = notes, time.monotonic() if due else asked_at, False
                except Exception as error:  # noqa: BLE001  # whatever it is, it is no task's affair
                    self._silent_until, last = time.monotonic() + _REST_SECONDS, None
                    self._give_up(line, error, complained)
                    complained = True
            with self._state:
                self._told = wanted
                self._state.notify_all()
        try:
            line.end()
        except Exception as error:  # noqa: BLE001  # it runs out by itself
            self._give_up(line, error, complained)

    @staticmethod
    def _give_up(line: _Line, error: Exception, complained: bool) -> None:
        try:
            line.drop()
        except Exception:  # noqa: BLE001  # it is forgotten either way
            _log.debug("The connection was lost already.")
        if not complained:
            # Only its kind: the text could hold the broker's password.
            _log.warning("Backstep isn't told what this worker does for a while: %s", type(error).__name__)

    def _notes(self, broker: Any) -> dict[str, Any]:
        queues = queues_of(broker, self._worker)
        with self._worker.work_queue.mutex:
            ahead = [item.message for item in self._worker.work_queue.queue]
        with self._state:
            held = [*self._executing.values(), *(_held(message, None) for message in ahead)]
            pid = self._name.rpartition("/")[2]
            return {
                "queues": queues,
                "pid": int(pid) if pid.isdecimal() else os.getppid(),
                "birth": self._birth,
                **self._counts,
                "held": held,
                "canaries": dict(self._canaries),
                "later": self._later(queues),
                **self._parking.gates.told(),
            }

    def _later(self, queues: list[str]) -> list[dict[str, Any]]:
        """Of what waits in this process until it is due."""
        found: dict[tuple[str, str], list[Any]] = {}
        for queue in queues:
            consumer = self._worker.consumers.get(f"{queue}.DQ")
            for item in list(consumer.delay_queue.queue) if consumer else ():
                kind = "retrying" if item.message.options.get("retries") else "scheduled"
                found.setdefault((queue, kind), []).append(item.message)
        return [
            {
                "queue": queue,
                "state": kind,
                "tasks": len(messages),
                "ids": [str(message.message_id) for message in messages[:_LISTED]],
                "names": dict(Counter(str(message.actor_name) for message in messages)),
            }
            for (queue, kind), messages in sorted(found.items(), key=lambda entry: entry[0])
        ]


def _held(message: Any, started: float | None) -> dict[str, Any]:
    return {
        "id": str(message.message_id), "task": str(message.actor_name), "queue": message.queue_name, "started": started
    }  # fmt: skip


def watch(broker: Any, worker: str) -> None:
    """Have a broker's worker be reported under a name."""
    if not hasattr(broker, "parameters"):
        _log.warning("Backstep can't watch %r: it isn't Dramatiq's broker for RabbitMQ.", broker)
        return
    parking = RabbitmqParking(worker)
    broker.add_middleware(Reporter(worker, parking))
    stand_before(broker, parking)


broker = load_app(os.environ.get("APP", ""))
if os.environ.get("BACKSTEP_WORKER"):
    watch(broker, os.environ["BACKSTEP_WORKER"])
