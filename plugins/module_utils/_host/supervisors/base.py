# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The contract between Backstep and whatever keeps worker processes alive on a host. One file per supervisor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Optional

from ..layout import Layout, Part, Pool, Spec

# Chores, by the command of the host program that does them.
GUARD = "guard"
REAPER = "reap"


@dataclass(frozen=True)
class MainProcess:
    """One supervised process. ``pid`` is None while nothing runs; ``state`` is the supervisor's own word in lower case.

    ``wanted`` tells whether the supervisor is keeping it up (or bringing it up), as against stopping or stopped.
    """

    index: int
    pid: Optional[int]
    state: str
    wanted: bool
    restarts: int


class Supervisor(ABC):
    """Asks one kind of supervisor. Every method raises ``SupervisorError`` when it can't be asked or refuses."""

    name: str

    def __init__(self, pool: Pool, layout: Layout) -> None:
        self.pool = pool
        self.layout = layout

    @property
    def unit_prefix(self) -> str:
        """How the names of all the pool's units begin."""
        return f"backstep-{self.pool.name}-"

    @abstractmethod
    def check(self) -> str:
        """Say which version answers."""

    @abstractmethod
    def render(self, spec: Spec) -> dict[str, bytes]:
        """The unit files of a release by name. Pure: the same spec gives the same bytes."""

    @abstractmethod
    def installed(self, release: str) -> dict[str, bytes]:
        """The unit files of a release as they are installed now, in the form in which ``render`` gives them."""

    @abstractmethod
    def install(self, release: str, files: dict[str, bytes]) -> None:
        """Make a release's units known without starting anything. Idempotent."""

    @abstractmethod
    def uninstall(self, release: str) -> None:
        """Forget a release's units; nothing of it may be running. Idempotent."""

    @abstractmethod
    def start(self, release: str) -> None:
        """Have every worker of a release run, one that is still stopping as soon as it has stopped; returns at once."""

    @abstractmethod
    def start_stopped(self, release: str, part: Part = Part.WORKERS) -> None:
        """Have those of a release's processes run that have stopped already; returns at once. Idempotent."""

    @abstractmethod
    def quiet(self, release: str, part: Part = Part.ALL) -> None:
        """Ask the main process of each to finish its task and end; never kills; returns at once. Idempotent."""

    @abstractmethod
    def processes(self, release: str, part: Part = Part.ALL) -> list[MainProcess]:
        """The processes of a release, by index; an empty list when its units aren't installed."""

    @abstractmethod
    def where_to_look(self, release: str, index: int) -> str:
        """What a person types or opens to see why a worker has died."""

    @abstractmethod
    def enable(self, release: str) -> None:
        """Have the release start at boot. Idempotent."""

    @abstractmethod
    def disable(self, release: str) -> None:
        """Have the release not start at boot. Idempotent."""

    @abstractmethod
    def enabled(self, release: str) -> bool:
        """Whether the release, or a part of it, starts at boot."""

    @abstractmethod
    def arm_chore(self, chore: str, token: int, seconds: Optional[float]) -> None:
        """Have a command of the host program run by itself, whatever becomes of the controller.

        :param chore: the command, which waits for what it has to do when it is given ``--wait``.
        :param seconds: in how many it is due, once. None: it begins now, and anew if it dies, until it is disarmed.
        """

    @abstractmethod
    def disarm_chore(self, chore: str) -> None:
        """Take a chore back. Idempotent; called by the chore itself as well, which then ends in peace."""

    @abstractmethod
    def chore_armed(self, chore: str) -> bool:
        """Whether a chore is waiting, or at work and not yet disarmed."""

    def arm_guard(self, token: int, seconds: float) -> None:
        """Have the guard run in ``seconds``, and at boot."""
        self.arm_chore(GUARD, token, seconds)

    def disarm_guard(self) -> None:
        """Take the guard back."""
        self.disarm_chore(GUARD)

    def guard_armed(self) -> bool:
        """Whether a guard is waiting."""
        return self.chore_armed(GUARD)
