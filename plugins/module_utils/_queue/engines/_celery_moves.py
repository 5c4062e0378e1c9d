# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Park, replay and reroute for Celery: a queue is one list for each priority, and what is parked remembers which."""

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
    """One move of Celery tasks."""

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
        self._walk_lists(scripts.PARK, queue, PARKED)

    def _reroute_queue(self, queue: str) -> None:
        self._walk_lists(scripts.REROUTE, queue, "")

    def _walk_lists(self, script: str, queue: str, after: str) -> None:
        """:param after: the state that all are in then; "" for the one that they were in."""
        # The most urgent last: what is parked last comes first when it is put back.
        for key in reversed(lists(queue)):

            def ask(want: str, skip: int, key: str = key) -> Batch:
                ids, told, seen, facts = self._link.run(script, queue, want, skip, BATCH, key)
                before = [text(state) for state in told]
                return Batch(ids, before, [after or state for state in before], facts, seen=seen)

            self._walk_list(queue, {}, ask)

    def _replayed(self, answer: Sequence[Any]) -> Batch:
        ids, states, seen, facts = answer
        return Batch(ids, [PARKED] * len(ids), [text(state) for state in states], facts, seen=seen)
