# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engines on Redis have in common: one link, how it is checked, how tasks are moved, and no pause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ..engine import Selection
from ._moves import Moving, TaskMove
from ._pauseless import Pauseless
from ._redis import Command, RedisLink
from ._redis_moves import RedisMove


class RedisEngine(Moving):
    """An engine that keeps its tasks in one Redis database."""

    reading: ClassVar[Sequence[Command]]
    """One harmless use of each command that reading takes."""
    proof: ClassVar[str]
    """A script that tries what writing takes, as ``RedisLink.check`` runs it."""
    move: ClassVar[type[RedisMove]]
    """How its tasks are parked and replayed."""

    def __init__(self, url: str, timeout: float) -> None:
        self._link = RedisLink(url, timeout, rights=self.rights)

    def close(self) -> None:
        self._link.close()

    def check(self, write: bool) -> dict[str, Any]:
        return self._link.check(self.reading, self.proof if write else "")

    def _move(self, queues: Sequence[str], selection: Selection, allowed: Sequence[str], dry_run: bool) -> TaskMove:
        return self.move(self._link, selection, allowed, dry_run)


class PauselessEngine(Pauseless, RedisEngine):
    """One on Redis without a pause."""
