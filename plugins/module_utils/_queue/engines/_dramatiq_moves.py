# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Park, replay and reroute for Dramatiq: its queue, the one beside it for what is due later, and its dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from ..engine import DEAD, PARKED, RETRYING, SCHEDULED, WAITING, Selection
from . import _dramatiq_scripts as scripts
from ._redis import RedisLink, text
from ._redis_moves import BATCH, Batch, RedisMove


class Move(RedisMove):
    """One move of Dramatiq tasks."""

    replay_parked = scripts.REPLAY_PARKED
    find_limit = scripts.FIND_LIMIT

    def __init__(self, link: RedisLink, selection: Selection, allowed: Sequence[str], dry_run: bool) -> None:
        super().__init__(link, selection, allowed, dry_run)
        self._want.update(
            after=_milliseconds(selection.enqueued_after), before=_milliseconds(selection.enqueued_before)
        )

    def _orders(self, queue: str) -> str:
        return f"{scripts.OURS}parked:{queue}:order"

    def _park_queue(self, queue: str) -> None:
        self._walk_places(scripts.PARK, queue, PARKED)

    def _reroute_queue(self, queue: str) -> None:
        self._walk_places(scripts.REROUTE, queue, "")

    def _walk_places(self, script: str, queue: str, after: str) -> None:
        """:param after: the state that all are in then; "" for the one that they were in."""
        # What waits last: what is parked last comes first when it is put back.
        for place, states in (("dead", {DEAD}), ("later", {SCHEDULED, RETRYING}), ("waiting", {WAITING})):
            wanted = states & set(self._selection.states)

            def ask(want: str, skip: int, place: str = place) -> Batch:
                ids, told, seen, facts = self._link.run(script, queue, want, skip, BATCH, place)
                before = [text(state) for state in told]
                return Batch(ids, before, [after or state for state in before], facts, seen=seen)

            if wanted:
                self._walk_list(queue, {"states": dict.fromkeys(wanted, True)}, ask)

    def _replay_queue(self, queue: str) -> None:
        super()._replay_queue(queue)
        if DEAD in self._selection.states:
            self._walk_list(queue, {}, lambda want, skip: self._replay_dead(queue, want, skip))

    def _replay_dead(self, queue: str, want: str, skip: int) -> Batch:
        ids, seen, facts = self._link.run(scripts.REPLAY_DEAD, queue, want, skip, BATCH)
        return Batch(ids, [DEAD] * len(ids), [WAITING] * len(ids), facts, seen=seen)

    def _replayed(self, answer: Sequence[Any]) -> Batch:
        ids, states, seen, facts = answer
        return Batch(ids, [PARKED] * len(ids), [text(state) for state in states], facts, seen=seen)


def _milliseconds(epoch: Optional[float]) -> Optional[int]:
    return None if epoch is None else int(epoch * 1000)
