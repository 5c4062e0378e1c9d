# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the apps of an engine write a task into a message of AMQP, and into which queues they put it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Optional

from ..engine import CANARY_PREFIX, DEAD, WAITING, Selection
from ._amqp import OURS

Message = tuple[Any, Any, bytes]
"""What ``basic.get`` gives: how it was delivered, its properties, its body."""
KEPT = "backstep-kept"
"""The header of a parked task that has what it comes back with, and where to (JSON)."""
_PARKED = f"{OURS}parked."


class Messages(ABC):
    """One engine's way. A task without an id is counted, and stays where it is."""

    dead_kept_seconds: Optional[int] = None
    """How long the engine's queues keep a dead task; ``None`` for ever."""

    @abstractmethod
    def id(self, message: Message) -> str:
        """The task's id; "" when its producer gave none."""

    @abstractmethod
    def task(self, message: Message) -> Optional[str]:
        """The task's name."""

    @abstractmethod
    def canary(self, known: str, task: str, queue: str, seconds: int) -> tuple[Any, bytes]:
        """Properties and body of a call without arguments; not begun once it is older than ``seconds``."""

    def enqueued(self, message: Message) -> Optional[float]:
        """When it was enqueued (epoch seconds), where its producer says so."""
        at: Optional[float] = message[1].timestamp
        return at

    def error(self, message: Message) -> str:
        """One line of what a dead task failed with, where its message tells that."""
        return ""

    def check(self, selection: Selection) -> None:  # noqa: B027  # most engines' messages tell all that is asked for
        """:raises BadInput: tasks can't be selected so, as nothing in a message tells it."""

    def is_tasks(self, queue: str) -> bool:
        """Whether a queue that lasts is one that tasks are sent to."""
        return not queue.startswith((OURS, "amq."))

    def places(self, queue: str) -> Mapping[str, tuple[str, ...]]:
        """The queues in which tasks of a queue lie, and the states that those can be in."""
        return {queue: (WAITING,)}

    def dead_place(self, queue: str) -> Optional[str]:
        """Where its dead tasks lie, which nobody takes; ``None`` when there is no such place."""
        return next((place for place, states in self.places(queue).items() if states == (DEAD,)), None)

    def state(self, place: str, message: Message) -> str:
        """The state of a task that lies in one of these places."""
        return WAITING

    def renamed(self, message: Message, source: str, target: str) -> bytes:
        """The body of a task that is moved from one queue to another, where it names its queue."""
        return message[2]

    def is_inert(self, place: str, queue: str) -> bool:
        """Whether no worker takes anything out of this place of a queue."""
        return place in (parked_queue(queue), self.dead_place(queue))


def parked_queue(queue: str) -> str:
    """Where the parked tasks of a queue lie."""
    return f"{_PARKED}{queue}"


def kept_of(message: Message) -> dict[str, Any]:
    """What is kept with a parked task: ``place``, ``state``, ``owner``, ``reason``, and which of its properties were
    changed. ``id`` is there where its worker has parked what it couldn't read.
    """
    found: dict[str, Any] = json.loads((message[1].headers or {}).get(KEPT, "{}"))
    return found


def is_canary(known: str) -> bool:
    """Whether a task's id is one that Backstep has given."""
    return known.startswith(CANARY_PREFIX)
