# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engines on Redis have in common: one link, how it is checked, and how a pause is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from .. import engine as contract
from ._pauseless import Pauseless
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


class PauselessEngine(Pauseless, RedisEngine):
    """One on Redis without a pause."""
