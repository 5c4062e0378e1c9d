# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What parking and replaying are made of on any broker: which selections make sense, and a tally of what was moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Optional

from ..._rollout.errors import BadInput
from ..engine import LISTED_AT_MOST, Moved, Selection

_NO_LIMIT = 2**53


class Tally:
    """What has been moved so far."""

    def __init__(self, limit: Optional[int]) -> None:
        self.left = _NO_LIMIT if limit is None else limit
        self.by_queue: Counter[str] = Counter()
        self.before: Counter[str] = Counter()
        self.after: Counter[str] = Counter()
        self.ids: list[str] = []
        self.vanished: list[str] = []

    def add(
        self, queue: str, ids: Sequence[str], before: Sequence[str], after: Sequence[str], vanished: Sequence[str] = ()
    ) -> None:
        """:param before: the state that each of them was in. :param after: the one that each is in now."""
        self.by_queue[queue] += len(ids)
        self.before.update(before)
        self.after.update(after)
        self.left -= len(ids)
        self.ids.extend(ids[: max(0, LISTED_AT_MOST - len(self.ids))])
        self.vanished.extend(vanished)

    def result(self) -> Moved:
        """The whole of it."""
        return Moved(
            by_queue={queue: count for queue, count in self.by_queue.items() if count},
            before=dict(self.before),
            after=dict(self.after),
            ids=tuple(self.ids),
            vanished=tuple(dict.fromkeys(self.vanished)),
        )


def require_owner(owner: str) -> None:
    """:raises BadInput: ``owner`` is empty."""
    if not owner:
        raise BadInput("Parking needs an owner, so that a second run can finish it.", left="No task was moved.")


def check_selection(selection: Selection, allowed: Sequence[str]) -> None:
    """:raises BadInput: it selects nothing, or by states that can't be moved here."""
    wrong = [state for state in selection.states if state not in allowed]
    if wrong or not selection.states:
        raise BadInput(
            f"Tasks can't be selected by the states {wrong or 'none'} here; these can: {', '.join(allowed)}.",
            left="No task was moved.",
        )
    if selection.limit is not None and selection.limit < 1:
        raise BadInput(f"A limit of {selection.limit} selects nothing; give at least 1.", left="No task was moved.")
