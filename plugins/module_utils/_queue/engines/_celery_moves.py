# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Park and replay for Celery: a queue is one list for each priority, and what is parked remembers which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..engine import PARKED, Selection
from . import _celery_scripts as scripts
from ._celery_messages import lists
from ._moves import require_no_times
from ._redis import RedisLink, text
from ._redis_moves import BATCH, Batch, RedisMove


class Move(RedisMove):
    """One park or replay of Celery tasks."""

    replay_parked = scripts.REPLAY_PARKED
    find_limit = scripts.FIND_LIMIT

    def __init__(self, link: RedisLink, selection: Selection, allowed: Sequence[str], dry_run: bool) -> None:
        super().__init__(link, selection, allowed, dry_run)
        require_no_times(selection, "Celery")
        if PARKED not in selection.states:
            self._want["states"] = dict.fromkeys(selection.states, True)

    def _orders(self, queue: str) -> str:
        return f"{scripts.OURS}parked:{queue}:order"

    def _park_queue(self, queue: str) -> None:
        # The most urgent last: what is parked last comes first when it is put back.
        for key in reversed(lists(queue)):
            self._walk_list(queue, {}, lambda want, skip, key=key: self._park(queue, want, skip, key))  # type: ignore[misc]

    def _park(self, queue: str, want: str, skip: int, key: str) -> Batch:
        ids, states, seen, facts = self._link.run(scripts.PARK, queue, want, skip, BATCH, key)
        return Batch(ids, [text(state) for state in states], [PARKED] * len(ids), facts, seen=seen)

    def _replayed(self, answer: Sequence[Any]) -> Batch:
        ids, states, seen, facts = answer
        return Batch(ids, [PARKED] * len(ids), [text(state) for state in states], facts, seen=seen)
