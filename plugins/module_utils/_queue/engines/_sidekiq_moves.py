# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Park, replay and reroute for Sidekiq: one list for each queue, and three sorted sets that all queues share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..engine import DEAD, PARKED, RETRYING, SCHEDULED, WAITING, Selection
from . import _sidekiq_scripts as scripts
from ._redis import RedisLink, text
from ._redis_moves import BATCH, Batch, RedisMove

SETS = {SCHEDULED: "schedule", RETRYING: "retry", DEAD: "dead"}


class Move(RedisMove):
    """One move of Sidekiq tasks."""

    replay_parked = scripts.REPLAY_PARKED
    find_limit = scripts.FIND_LIMIT

    def __init__(self, link: RedisLink, selection: Selection, allowed: Sequence[str], dry_run: bool) -> None:
        super().__init__(link, selection, allowed, dry_run)
        self._want.update(after=selection.enqueued_after, before=selection.enqueued_before)

    def _orders(self, queue: str) -> str:
        return f"{scripts.OURS}parked:{queue}:order"

    def _park_queue(self, queue: str) -> None:
        if WAITING in self._selection.states:
            self._walk_waiting(scripts.PARK_WAITING, queue, PARKED)
        for state in (SCHEDULED, RETRYING, DEAD):
            if state in self._selection.states:
                self._walk_set(scripts.PARK_SET, queue, (state, PARKED), SETS[state], state)

    def _reroute_queue(self, queue: str) -> None:
        self._walk_waiting(scripts.REROUTE_WAITING, queue, WAITING)
        for state, place in SETS.items():
            self._walk_set(scripts.REROUTE_SET, queue, (state, state), place, state)

    def _walk_waiting(self, script: str, queue: str, after: str) -> None:
        def ask(want: str, skip: int) -> Batch:
            ids, seen, facts = self._link.run(script, queue, want, skip, BATCH)
            return Batch(ids, [WAITING] * len(ids), [after] * len(ids), facts, seen=seen)

        self._walk_list(queue, {}, ask)

    def _replay_queue(self, queue: str) -> None:
        super()._replay_queue(queue)
        if DEAD in self._selection.states:
            self._walk_set(scripts.REPLAY_DEAD, queue, (DEAD, WAITING))

    def _replayed(self, answer: Sequence[Any]) -> Batch:
        ids, states, seen, facts = answer
        return Batch(ids, [PARKED] * len(ids), [text(state) for state in states], facts, seen=seen)

    def _walk_set(self, script: str, queue: str, states: tuple[str, str], *arguments: str) -> None:
        before, after = states
        cursor = None
        while self._tally.left > 0 and cursor != b"0":

            def ask(want: str, cursor: bytes = cursor or b"0") -> Batch:
                following, ids, facts = self._link.run(script, queue, want, cursor, BATCH, *arguments)
                return Batch(ids, [before] * len(ids), [after] * len(ids), facts, cursor=following)

            first, _removed = self._do(queue, {}, ask)
            cursor = first.cursor
