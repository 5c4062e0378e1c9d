# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has a plain consumer of RabbitMQ keep gates: the app's own program imports this file, which each release gets.

``Gates`` is made before the first notes are written, asked about each message before that is begun, and has ``look``
called about every second, also while a task is executed; what it has ``told`` goes into the notes. docs/engines.md
shows it. What isn't to be executed is parked as ``task_move`` does that, and acknowledged once RabbitMQ has committed
the copy. It keeps no gates with ``KEEP_GATES: "no"`` in ``pool_env``, and where its user may not read them.
Python 3.9, the standard library, and the app's own pika with its ``BlockingConnection``.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Collection
from typing import Any, Callable

from backstep_gates import UNKNOWN, UNREADABLE, keeps_gates, owner, parks_unknown_tasks, why_held
from backstep_pika import Copies, GateFollower, connect, parked
from pika.exceptions import ChannelClosedByBroker, ChannelWrongStateError

_LOOK_SECONDS = 1.0
_REST_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Gates:
    """What one consumer doesn't execute; for the thread of its connection."""

    def __init__(
        self,
        broker: Any,
        parameters: Any,
        note: Callable[[], object],
        stopping: Callable[[], object],
        tasks: Collection[str] | None = None,
        reads: Callable[[bytes], object] | None = None,
    ) -> None:
        """Read the book of gates, which may take some seconds.

        :param broker: the connection by which the worker consumes.
        :param parameters: with which that was made. Two more are made with them: one to read, one to park.
        :param note: writes the notes, in which no task is begun.
        :param stopping: whether the worker is to end.
        :param tasks: names of the tasks that the worker can execute; others are parked. ``None``: execute whatever
            there is.
        :param reads: raises whatever it likes where the worker can't read a message's body; such are parked.
        """
        self._broker, self._parameters, self._note, self._stopping = broker, parameters, note, stopping
        self._tasks, self._reads = (tasks, reads) if parks_unknown_tasks() else (None, None)
        self._name = os.environ.get("BACKSTEP_WORKER", "")
        self._copies, self._book = Copies(parameters), GateFollower()
        self._reading: Any = None
        self._look_at = 0.0
        self._is_cut_off = False
        self._keeps_gates = keeps_gates() and self._book.look_first(parameters)

    @property
    def told(self) -> dict[str, str]:
        """What the notes have to have beside the rest."""
        return self._book.told()

    def look(self) -> bool:
        """See, once a second, whether there are other gates. If so, the notes have to be written anew."""
        if not self._keeps_gates or time.monotonic() < self._look_at:
            return False
        self._look_at, before = time.monotonic() + _LOOK_SECONDS, self._book.digest
        try:
            self._reading = self._reading or connect(self._parameters)
            self._keeps_gates = self._book.look_over(self._reading)
            self._is_cut_off = False
        except Exception as error:  # noqa: BLE001  # whatever it is, what was read last holds on
            if not self._is_cut_off:
                _log.warning("Which gates there are can't be read now: %s", type(error).__name__)
            self._is_cut_off, self._reading = True, None
            self._book.forget()
        return self._book.digest != before

    def held(self, channel: Any, queue: str, method: Any, message: Any, body: bytes) -> bool:
        """Whether a message that was taken isn't this worker's to execute; then there is nothing to do, nor to
        acknowledge, nor to count. Waits while its gate can't be kept; a worker that is told to stop meanwhile has
        RabbitMQ give the message out again when its connection ends.

        :param channel: by which it was taken, from this queue.
        :param message: its properties.
        :raises AMQPError: RabbitMQ has given it to somebody else, as it was waited for too long, or the connection is
            lost: the worker has to end.
        """
        if (message.headers or {}).get("backstep_canary"):
            return False
        task, known = message.type or "", message.message_id or ""
        lack = self._lack(task, body)
        why, line, waits = "", None, False
        while not self._stopping():
            try:
                if lack:
                    self._park(queue, message, body, self._name, lack)
                    break
                # Also once more when no answer came: until there is one, it may be parked and must not be executed.
                if why and self._is_parked(task, line, queue, message, body, owner(task), why):
                    break
                line = self._book.line(task) if self._keeps_gates else None
                why = why_held(line, known)
                if not why:
                    return False
            except Exception as error:  # noqa: BLE001  # whatever it is, it is no reason to execute it
                if lack and isinstance(error, ChannelClosedByBroker):
                    _log.warning("Task %s, which this release can't execute, may not be parked.", known)
                    return False
                if not waits:
                    # Only its kind: the text could hold the broker's password.
                    _log.warning("A task of %s waits until its gate can be kept: %s", task, type(error).__name__)
                self._wait(channel, is_first=not waits)
                waits = True
        else:
            return True
        channel.basic_ack(method.delivery_tag)
        _log.warning("Task %s of %s is parked: %s", known, task, lack or why)
        return True

    def _lack(self, task: str, body: bytes) -> str:
        """Why the release can't execute it; "" where it can."""
        if self._tasks is not None and task not in self._tasks:
            return UNKNOWN
        try:
            if self._reads is not None:
                self._reads(body)
        except Exception:  # noqa: BLE001  # whatever it is, the task's arguments can't be had
            return UNREADABLE
        return ""

    def _is_parked(self, task: str, line: str | None, *what: Any) -> bool:
        """Park it, unless the book says something else now."""
        with self._book.steady(task, line) as still:
            if still:
                self._park(*what)
            return still

    def _park(self, queue: str, message: Any, body: bytes, whose: str, why: str) -> None:
        """Have a copy lie where no worker consumes. Without an id nobody could put it back, so it gets one."""
        copy = parked(message, queue, "waiting", whose, why)
        copy.message_id = copy.message_id or uuid.uuid4().hex
        self._copies.put(f"backstep.parked.{queue}", copy, body)

    def _wait(self, channel: Any, is_first: bool) -> None:
        """Let some time pass, and have it told meanwhile that this worker has the message."""
        if is_first:
            self._note()
        self._broker.sleep(_REST_SECONDS)
        if not channel.is_open:
            raise ChannelWrongStateError("The message is this worker's no more.")
        if self.look():
            self._note()
