# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has a Dramatiq worker park what it doesn't know or can't read, which Dramatiq dead-letters, and what a gate holds.

After a release is taken back, whoever is still ahead of it goes on enqueueing tasks of unknown actors, or such that
another encoder has written. They are parked as ``task_move`` parks them, as the bytes that they are, and are put back
like all others. The app isn't changed; in ``pool_env``, ``PARK_UNKNOWN_TASKS: "no"`` leaves Dramatiq its own way.

Gates are those of ``task_gate`` (``backstep_gates.py``). Dramatiq would execute what they hold; so where one can't be
read now, or what it holds can't be parked now, the task waits, and the queue's next ones behind it, until that works or
until the worker stops and gives it back. Where a gate can be read and not be understood, nothing passes. None is kept
with ``KEEP_GATES: "no"`` in ``pool_env``, by an app whose encoder writes no JSON (nobody could put these back), and by
one whose user may not read them. Python 3.9 and dramatiq.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any

from backstep_dramatiq_app import CANARY_IDS
from backstep_gates import UNKNOWN, keeps_gates, owner, parks_unknown_tasks, why_held
from dramatiq import Message
from dramatiq import worker as consuming
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware

_REST_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Parking(Middleware, ABC):
    """Stands before what the threads that take messages do with each."""

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.parks_unknown = parks_unknown_tasks()
        self.keeps_gates = keeps_gates() and _can_stand_there() and _writes_json()

    @abstractmethod
    def prepare(self, consumer: Any) -> None:
        """Have a consumer, which has taken nothing yet, ask about each message that can't be read."""

    @abstractmethod
    def line(self, consumer: Any, task: str) -> bytes | str | None:
        """What the book of gates says of the tasks of a name."""

    @abstractmethod
    def park(self, consumer: Any, message: Any, whose: str, why: str, line: bytes | str | None = None) -> bool:
        """Park a message that this process has taken.

        :param consumer: what it was taken by.
        :param line: only while the book of gates says so.
        :returns: whether it is this process's no more.
        """

    @abstractmethod
    def park_raw(self, consumer: Any, raw: bytes) -> str:
        """Park a message that this process has taken and can't read; what it is known by then, "" if it isn't."""

    def before_worker_boot(self, broker: Any, worker: Any) -> None:
        """Have all that the worker takes come by ``prepare``."""
        consume = broker.consume

        def consume_prepared(*arguments: Any, **options: Any) -> Any:
            consumer = consume(*arguments, **options)
            self.prepare(consumer)
            return consumer

        broker.consume = consume_prepared

    def is_left_unread(self, consumer: Any, raw: bytes) -> bool:
        """Whether a message that can't be read is parked."""
        try:
            known = self.park_raw(consumer, raw)
        except Exception as error:  # noqa: BLE001  # whatever it is, the worker goes on
            # Only its kind: the text could hold the broker's password.
            _log.warning("A task that this release can't read can't be parked now: %s", type(error).__name__)
            return False
        if known:
            _log.error("Task %s is parked: this release can't read it.", known)
        return bool(known)

    def rest(self, consumer: Any) -> None:
        """Let some time pass."""
        time.sleep(_REST_SECONDS)

    def after_consumer_thread_boot(self, broker: Any, thread: Any) -> None:
        """Have a thread ask, before it takes its first message."""
        handle = thread.handle_message

        def handle_what_may_be(message: Any) -> None:
            if not self._is_kept(broker, thread, message):
                handle(message)

        thread.handle_message = handle_what_may_be

    def _is_kept(self, broker: Any, thread: Any, message: Any) -> bool:
        """Whether it is parked, or given back; what is due later isn't, until it is due."""
        if message.options.get("eta") is not None:
            return False
        if message.actor_name in broker.actors:
            return self.keeps_gates and self._is_held(thread, message)
        is_canary = str(message.message_id).startswith(CANARY_IDS)
        return self.parks_unknown and not is_canary and self._is_unknown(thread.consumer, message)

    def _is_unknown(self, consumer: Any, message: Any) -> bool:
        """Whether it could be parked; Dramatiq rejects it otherwise."""
        try:
            if not self.park(consumer, message, self.worker, UNKNOWN):
                return False
        except Exception as error:  # noqa: BLE001  # whatever it is, the worker goes on
            # Only its kind: the text could hold the broker's password.
            _log.warning("A task that this release doesn't know can't be parked now: %s", type(error).__name__)
            return False
        _log.error("Task %s is parked: this release knows no %s.", message.message_id, message.actor_name)
        _let_go(consumer, message)
        return True

    def _is_held(self, thread: Any, message: Any) -> bool:
        """Whether its gate keeps it from being executed; not before that is known."""
        task, known = str(message.actor_name), str(message.message_id)
        line: bytes | str | None = None
        why, complained = "", False
        while thread.running:
            try:
                # Also once more when no answer came: until there is one, it may be parked and must not be executed.
                if why and self.park(thread.consumer, message, owner(task), why, line):
                    break
                line = self.line(thread.consumer, task)
                why = "" if known.startswith(CANARY_IDS) else why_held(line, known)
                if not why:
                    return False
            except Exception as error:  # noqa: BLE001  # whatever it is, it is no reason to execute it
                if not complained:
                    _log.warning("A task of %s waits until its gate can be kept: %s", task, type(error).__name__)
                complained = True
                self.rest(thread.consumer)
        else:
            # What isn't given back here comes back like what a killed worker had taken ahead.
            with suppress(Exception):
                thread.requeue_messages([message])
            return True
        _log.info("Task %s is parked: the gate of %s holds it.", known, task)
        _let_go(thread.consumer, message)
        return True


def _let_go(consumer: Any, message: Any) -> None:
    """Have its place free for the next one."""
    # A consumer that has lost its connection finds that out by itself; ended here, it would forget what it has fetched.
    with suppress(ConnectionClosed):
        consumer.ack(message)


def _can_stand_there() -> bool:
    """Whether this Dramatiq takes messages in the way in which these files know it."""
    thread = getattr(consuming, "ConsumerThread", None) or getattr(consuming, "_ConsumerThread", None)
    return hasattr(thread, "handle_message") and hasattr(Middleware, "after_consumer_thread_boot")


def _writes_json() -> bool:
    """Whether what the app enqueues could be put back after it was parked."""
    return Message("", "", (), {}, {}).encode().lstrip().startswith(b"{")


def stand_before(broker: Any, parking: Parking) -> None:
    """Have the worker that is about to start do so."""
    if _can_stand_there():
        if parking.parks_unknown or parking.keeps_gates:
            broker.add_middleware(parking)
    elif parking.parks_unknown:
        _log.warning("Tasks that this release doesn't know aren't parked: this Dramatiq takes messages in another way.")
