# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a worker doesn't execute but parks, as ``task_move`` does: tasks that it doesn't know, and tasks held by a gate.

Which share of the tasks of a name may pass is said by the book of gates in the broker, a line for each name (JSON;
``open`` is per cent). ``task_gate`` writes it, and decides about each task by its id in the same way. Producers on
RabbitMQ have this file, too: ``backstep_routes.py`` follows the book of routes as workers do that of gates.
Python 3.9 and the standard library.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

UNKNOWN = "the worker's release doesn't know it"
"""The reason that is noted with a task that is parked as unknown."""
UNREADABLE = "the worker's release can't read it"
"""The same of one whose body is written in a way that the release doesn't take, or in none at all."""
_OFF = ("no", "false", "0")
_REFUSED, _LOCKED = 403, 405


def parks_unknown_tasks() -> bool:
    """Whether the pool wants that; by default."""
    return os.environ.get("PARK_UNKNOWN_TASKS", "yes").lower() not in _OFF


def keeps_gates() -> bool:
    """Whether the pool wants that; by default."""
    return os.environ.get("KEEP_GATES", "yes").lower() not in _OFF


def holds(line: bytes | str | None, task_id: str) -> bool:
    """Whether a gate keeps a task from being executed.

    :param line: what the book of gates says of the task's name, if it says anything.
    :raises ValueError: it can't be read.
    """
    if not line:
        return False
    share = round(float(json.loads(line)["open"]) * 100)
    return zlib.crc32(task_id.encode("utf-8", "surrogateescape")) % 10_000 >= share


def owner(task: str) -> str:
    """In whose name a task is parked that its gate holds."""
    return f"gate {task}"


def reason(line: bytes | str) -> str:
    """Why it is."""
    found = json.loads(line)
    more = f": {found['reason']}" if found.get("reason") else ""
    return f"{found['open']:g} % of these pass, as {found.get('by') or 'somebody'} has set it{more}"


def why_held(line: bytes | str | None, task_id: str) -> str:
    """Why a gate keeps a task from being executed; "" where it doesn't."""
    try:
        return reason(line) if line and holds(line, task_id) else ""
    except Exception:  # noqa: BLE001  # whatever it is, nobody could say that the task may pass
        return "what the book of gates says of it can't be understood"


class Book:
    """A book, for those who can't ask for a line whenever they have a task."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}

    def read(self, changes: list[bytes]) -> None:
        """Take over all changes that there are."""
        lines: dict[str, str | None] = {}
        for change in changes:
            lines.update(json.loads(change))
        self._lines = {name: line for name, line in lines.items() if line is not None}

    def line(self, name: str) -> str | None:
        """What it says of this task, or queue."""
        return self._lines.get(name)

    @property
    def digest(self) -> str:
        """Which state of the book this is, as ``task_gate`` wants to be told."""
        return hashlib.sha256(json.dumps(self._lines, sort_keys=True).encode()).hexdigest()[:16]


class Follower:
    """Keeps a book at hand as it lies in RabbitMQ: ``look`` about every second, one thread at a time.

    It needs no more of a client library than that its channels have AMQP's methods by their names and its errors a
    ``reply_code``; so it is with amqp and with pika. How their answers are read is given.
    """

    def __init__(self, count: Callable[[Any], int], body: Callable[[Any], bytes | None], book: str = "gates") -> None:
        """:param count: how many messages there are, out of the answer to ``queue_declare``.

        :param body: of what ``basic_get`` answers; ``None`` for no message.
        """
        self._count, self._body, self._name = count, body, book
        # Its messages, read in turn, are the changes of the book.
        self._queue = f"backstep.book.{book}"
        # Whoever reads them has this one for its connection alone meanwhile.
        self._lock = f"backstep.lock.book.{book}"
        self._book, self._holding = Book(), threading.Lock()
        self._channel: Any = None
        # How many changes there were at the last reading over this connection.
        self._changes: int | None = None
        self.is_read = False
        self.is_refused = False
        """Whether nothing will be read, as the broker doesn't let it."""
        self.is_reading = False
        """Whether a reading that has failed may have left something locked or taken until the connection ends."""

    @property
    def digest(self) -> str | None:
        """As ``Book.digest``; ``None`` where nothing has been read."""
        return self._book.digest if self.is_read else None

    def line(self, name: str) -> str | None:
        """What the book says of this task, or queue.

        :raises LookupError: it hasn't been read yet.
        """
        if not self.is_read and not self.is_refused:
            raise LookupError(f"the book of {self._name} hasn't been read yet")
        return self._book.line(name)

    @contextmanager
    def steady(self, task: str, line: bytes | str | None) -> Iterator[bool]:
        """Whether the book still says so of a task that is to be parked for it; the next state isn't told before the
        end. Else whoever opens the gate could look for what it has held before the last of that is parked.
        """
        with self._holding:
            yield self._book.line(task) == line

    def look(self, new_channel: Callable[[], Any]) -> bool:
        """Read the book if it has changed; false if somebody else reads it just now, and this wasn't possible.

        :raises Exception: what the client library raises, or, once, because the book can't be understood. What was
            read before holds on.
        """
        try:
            changes = None if self.is_refused else self._changed(new_channel)
        except Exception as error:
            code = getattr(error, "reply_code", None)
            if code == _LOCKED:
                return False
            self._changes = None
            if not getattr(self._channel, "is_open", False):
                self._channel = None  # else one for each try would be left behind
            if code != _REFUSED or self.is_read:
                raise
            self.is_refused = True
            return True
        if changes is not None:
            self._changes = len(changes)
            with self._holding:
                self._book.read(changes)
                self.is_read = True
        return True

    def forget(self) -> None:
        """Leave the connection behind, and read anew over the next one."""
        self._channel = self._changes = None
        self.is_reading = False

    def _changed(self, new_channel: Callable[[], Any]) -> list[bytes] | None:
        """All changes, if there are others than at the last reading."""
        self._channel = self._channel or new_channel()
        # Not passively: RabbitMQ notes an error in its log whenever that finds no queue.
        if self._count(self._channel.queue_declare(self._queue, durable=True, auto_delete=False)) == self._changes:
            return None
        reading = new_channel()
        self.is_reading = True
        try:
            reading.queue_declare(self._lock, exclusive=True, auto_delete=False)
            changes = list(iter(lambda: self._body(reading.basic_get(self._queue)), None))
            reading.close()  # which gives them back
        except Exception as error:
            # With a code, the broker itself has closed the channel, which gives them back as well.
            code = getattr(error, "reply_code", None)
            if code is not None:
                self._unlock(code != _LOCKED)
            raise
        self._unlock()
        return changes

    def _unlock(self, is_locked: bool = True) -> None:
        if is_locked:
            self._channel.queue_delete(self._lock)
        self.is_reading = False
