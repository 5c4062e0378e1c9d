# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engines on Redis have in common: one link, how it is checked, and how a pause is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ..._rollout.errors import PauseRefused
from .. import engine as contract
from ._redis import Command, RedisLink


class RedisEngine(contract.Engine):
    """An engine that keeps its tasks in one Redis database."""

    reading: ClassVar[Sequence[Command]]
    """One harmless use of each command that reading takes."""
    proof: ClassVar[str]
    """A script that tries what writing takes, as ``RedisLink.check`` runs it."""

    def __init__(self, url: str, timeout: float) -> None:
        self._link = RedisLink(url, timeout, rights=self.rights)

    def close(self) -> None:
        self._link.close()

    def check(self, write: bool) -> dict[str, Any]:
        return self._link.check(self.reading, self.proof if write else "")


class PauselessEngine(RedisEngine):
    """One whose queues can't be paused so that the pause ends when whoever made it dies."""

    no_pause: ClassVar[str]
    """Why not, as a sentence."""
    none_to_end: ClassVar[str]
    """What whoever ends a pause is told, as a sentence."""

    def pause_state(self) -> contract.PauseState:
        return contract.PauseState(paused=False, by_person=False, owner=None, since=None, expires_in=None)

    def pause(
        self, queues: Sequence[str], owner: str, seconds: int, reach: str, dry_run: bool = False
    ) -> contract.PauseResult:
        raise PauseRefused(
            self.no_pause,
            left="Nothing was paused.",
            next_step="Drain the workers with worker_drain, and have them take tasks again with state=running.",
        )

    def resume(self, owner: str, dry_run: bool = False) -> contract.PauseResult:
        raise PauseRefused(
            self.none_to_end,
            left="Nothing was changed.",
            next_step="Have drained workers take tasks again with worker_drain and state=running.",
        )
