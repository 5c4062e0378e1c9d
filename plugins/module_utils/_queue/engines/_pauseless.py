# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How an engine refuses a pause, on any broker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ..._rollout.errors import PauseRefused
from .. import engine as contract


class Pauseless(contract.Engine):
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
