# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a worker doesn't execute but parks, as ``task_move`` does: tasks that it doesn't know, and tasks held by a gate.

Which share of the tasks of a name may pass is said by the book of gates in the broker, a line for each name (JSON;
``open`` is per cent). ``task_gate`` writes it, and decides about each task by its id in the same way.
Python 3.9 and the standard library.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib

BOOK = "backstep.book.gates"
"""The queue in RabbitMQ whose messages, read in turn, are the changes of the book."""
LOCK = "backstep.lock.book.gates"
"""The queue that whoever reads them has for its connection alone meanwhile."""
UNKNOWN = "the worker's release doesn't know it"
"""The reason that is noted with a task that is parked as unknown."""
_OFF = ("no", "false", "0")


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


class Book:
    """The book of gates, for workers that can't ask for a line whenever they take a task."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}

    def read(self, changes: list[bytes]) -> None:
        """Take over all changes that there are."""
        lines: dict[str, str | None] = {}
        for change in changes:
            lines.update(json.loads(change))
        self._lines = {task: line for task, line in lines.items() if line is not None}

    def line(self, task: str) -> str | None:
        """What it says of the tasks of this name."""
        return self._lines.get(task)

    @property
    def digest(self) -> str:
        """Which state of the book this is, as ``task_gate`` wants to be told."""
        return hashlib.sha256(json.dumps(self._lines, sort_keys=True).encode()).hexdigest()[:16]
