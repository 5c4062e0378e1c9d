# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How BullMQ's keys begin, and Backstep's own beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._redis import Command, RedisLink

BULL = "bull:"
OURS = "backstep:bullmq:"


class PrefixedLink(RedisLink):
    """One on which the scripts and names that are written for the prefix ``bull`` work for another.

    Backstep's own keys then have that prefix in them, so that a cluster keeps them where BullMQ's are.
    """

    def __init__(self, url: str, timeout: float, rights: str, prefix: str) -> None:
        """:param prefix: "" for ``bull``."""
        self.base = f"{prefix}:" if prefix else BULL
        self.ours = OURS if self.base == BULL else f"{OURS}{self.base}"
        super().__init__(url, timeout, rights.replace(f"~{BULL}", f"~{self.base}"), key=self.base)

    def placed(self, word: Any) -> Any:
        """A script or a key as it is with this prefix."""
        if not isinstance(word, str):
            return word
        if word.startswith(BULL):
            return f"{self.base}{word[len(BULL) :]}"
        if word.startswith(OURS):
            return f"{self.ours}{word[len(OURS) :]}"
        return word.replace(f"'{BULL}'", f"'{self.base}'").replace(f"'{OURS}", f"'{self.ours}")

    def check(self, reading: Sequence[Command], prove: str) -> dict[str, Any]:
        return super().check([[self.placed(word) for word in command] for command in reading], prove)

    def run(self, script: str, *arguments: Any) -> Any:
        return super().run(self.placed(script), *arguments)
