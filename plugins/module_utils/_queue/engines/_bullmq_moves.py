# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Park and replay for BullMQ: its two lists and three sorted sets, each of which keeps an order of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..engine import DEAD, PARKED, RETRYING, SCHEDULED, WAITING, Selection
from . import _bullmq_scripts as scripts
from ._bullmq_keys import PrefixedLink
from ._redis import RedisLink, text
from ._redis_moves import BATCH, Batch, RedisMove

# Within the lists, what is parked last comes first when it is put back.
_PLACES = {"paused": (WAITING,), "wait": (WAITING,), "prioritized": (WAITING,), "delayed": (SCHEDULED, RETRYING)}
_FAILED = {"failed": (DEAD,)}


class Move(RedisMove):
    """One park or replay of BullMQ jobs."""

    _link: PrefixedLink
    replay_parked = scripts.REPLAY_PARKED
    find_limit = scripts.FIND_LIMIT

    def __init__(self, link: RedisLink, selection: Selection, allowed: Sequence[str], dry_run: bool) -> None:
        super().__init__(link, selection, allowed, dry_run)
        self._want.update(
            after=selection.enqueued_after,
            before=selection.enqueued_before,
            states=dict.fromkeys(selection.states, True),
        )

    def _orders(self, queue: str) -> str:
        return f"{self._link.ours}parked:{queue}:order"

    def _park_queue(self, queue: str) -> None:
        for place, states in {**_PLACES, **_FAILED}.items():
            if set(states) & set(self._selection.states):
                self._walk_list(queue, {}, lambda want, skip, place=place: self._park(queue, want, skip, place))  # type: ignore[misc]

    def _park(self, queue: str, want: str, skip: int, place: str) -> Batch:
        ids, states, seen, facts = self._link.run(scripts.PARK, queue, want, skip, BATCH, place)
        return Batch(ids, [text(state) for state in states], [PARKED] * len(ids), facts, seen=seen)

    def _replay_queue(self, queue: str) -> None:
        super()._replay_queue(queue)
        if DEAD in self._selection.states:
            self._walk_list(queue, {}, lambda want, skip: self._revive(queue, want, skip))

    def _revive(self, queue: str, want: str, skip: int) -> Batch:
        ids, seen, facts = self._link.run(scripts.REPLAY_DEAD, queue, want, skip, BATCH)
        return Batch(ids, [DEAD] * len(ids), [WAITING] * len(ids), facts, seen=seen)

    def _replayed(self, answer: Sequence[Any]) -> Batch:
        ids, states, vanished, seen, facts = answer
        return Batch(ids, [PARKED] * len(ids), [text(state) for state in states], facts, (), vanished, seen)
