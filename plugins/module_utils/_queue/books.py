# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Backstep itself keeps in a broker: small books of lines that outlive whoever wrote them."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Optional

GATES_BOOK = "gates"
"""The book of gates, a line for each task name; workers read it, too (docs/engines.md)."""
ROUTES_BOOK = "routes"
"""The book of routes, a line for each queue; producers read it (docs/engines.md)."""
GATE_OWNER = "gate "
"""How the owner of what a worker has parked for a gate begins; the task's name follows."""
ALWAYS_FRESH = "fresh"
"""``WorkerSeen.gates`` of a worker that reads the book whenever it takes a task."""


class Books(ABC):
    """A broker that keeps books, and knows what workers have parked for what is written there."""

    followed_seconds = 1.5
    """How long after a change a producer may still go by the book as it was before: it looks once a second."""

    @abstractmethod
    def read_book(self, book: str) -> dict[str, str]:
        """What Backstep keeps in the broker under this name, line by line; empty when that is nothing.

        :param book: letters, digits, ``_``, ``.`` and ``-``.
        """

    @abstractmethod
    def write_book(self, book: str, lines: Mapping[str, Optional[str]], seconds: Optional[int] = None) -> None:
        """Write some lines of a book, in one step. It is as durable as a task.

        :param lines: ``None`` takes a line out.
        :param seconds: how long the whole book is kept from now on, where that isn't for ever. Give the same each time.
        """

    @abstractmethod
    def gated(self, queues: Sequence[str], task: str) -> dict[str, str]:
        """Ids of the tasks of this name that workers have parked for a gate, each with a mark of that parking."""

    @abstractmethod
    def forget_gated(self, task: str, marks: Mapping[str, str]) -> None:
        """Take out what was put back; one that has been parked for a gate again since, with another mark, stays.

        :param marks: as ``gated`` has given them.
        """


def digest(book: Mapping[str, str]) -> str:
    """Tells two states of a book apart; workers compute it, too (docs/engines.md)."""
    return hashlib.sha256(json.dumps(dict(book), sort_keys=True).encode()).hexdigest()[:16]
