# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a failure rate is worse than another, on samples that may be small. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from .errors import BadInput

# One-sided 95 %: one comparison in twenty of equal releases would err, before the margin makes it rarer still.
_Z = 1.645


@dataclass(frozen=True)
class Tally:
    """Tasks that ended, by how. Canaries are in neither."""

    finished: int
    failed: int

    @property
    def total(self) -> int:
        """Tasks that ended."""
        return self.finished + self.failed


def tally(counts: Mapping[str, Any]) -> Optional[Tally]:
    """A tally out of ``{finished, failed}``; ``None`` when it is empty.

    :raises BadInput: a count is missing, or is no whole number from 0 on.
    """
    if not counts:
        return None
    finished, failed = str(counts.get("finished")), str(counts.get("failed"))
    if not (finished.isdigit() and failed.isdigit()):
        raise BadInput(f"A baseline needs finished and failed, in tasks; it has {dict(counts)}.")
    return Tally(int(finished), int(failed))


@dataclass(frozen=True)
class Comparison:
    """Whether the new release fails more often, and a sentence that says why."""

    worse: bool
    reason: str


def wilson(tally: Tally) -> tuple[float, float]:
    """The lowest and highest failure rate (0 to 1) that fit the tally: Wilson's score bounds, one-sided 95 % each.

    Without a task nothing is excluded: 0 to 1.
    """
    total = tally.total
    if total == 0:
        return 0.0, 1.0
    share = tally.failed / total
    spread = _Z * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    middle = share + _Z**2 / (2 * total)
    scale = 1 + _Z**2 / total
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def compare(new: Tally, old: Optional[Tally], margin: float, minimum: int) -> Comparison:
    """Compare failure rates: worse when the lowest rate that fits the new release's tasks is more than ``margin``
    above the highest that fits the old one's.

    No traffic, or too little, is not worse: the canary decides then. An old release without tasks counts as one that
    never failed, and so does one that is unknown.

    :param margin: by how much the rate may rise (0 to 1).
    :param minimum: judge the new release from this many tasks on.
    """
    if new.total == 0:
        return Comparison(False, "it has had no task yet but canaries")
    counted = f"{new.failed} of its {new.total} tasks failed"
    if new.total < minimum:
        return Comparison(False, f"{counted}; that is judged from {minimum} tasks on")
    lowest = wilson(new)[0]
    highest = wilson(old)[1] if old and old.total else 0.0
    before = f"{old.failed} of {old.total} in the release before" if old and old.total else "none known before"
    worse = lowest > highest + margin
    relation = "more" if worse else "not more"
    return Comparison(worse, f"{counted} ({before}): {relation} than a margin of {margin:.0%} allows")
