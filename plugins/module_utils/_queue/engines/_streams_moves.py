# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Park and replay for streams. Ids in a stream only grow, so what is put back comes last, in its old order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..engine import PARKED, WAITING, Selection
from . import _streams_scripts as scripts
from ._redis import RedisLink
from ._redis_moves import BATCH, Batch, RedisMove


class Move(RedisMove):
    """One park or replay of stream entries."""

    replay_parked = scripts.REPLAY_PARKED

    def __init__(self, link: RedisLink, selection: Selection, allowed: Sequence[str], dry_run: bool) -> None:
        super().__init__(link, selection, allowed, dry_run)
        self._want.update(after=selection.enqueued_after, before=selection.enqueued_before)

    def _orders(self, queue: str) -> str:
        return f"{scripts.OURS}parked:{queue}:order"

    def _park_queue(self, queue: str) -> None:
        after, seen = b"0-0", BATCH if WAITING in self._selection.states else 0
        while self._tally.left > 0 and seen == BATCH:
            ids, after, seen, facts = self._link.run(scripts.PARK, queue, self._as_json({}), after, BATCH)
            self._note(queue, Batch(ids, [WAITING] * len(ids), [PARKED] * len(ids), facts))

    def _highest_order(self, queue: str) -> str:
        return "+inf"  # the walk begins with the oldest, so a limit needs no other bound

    def _replayed(self, answer: Sequence[Any]) -> Batch:
        ids, seen, facts = answer
        return Batch(ids, [PARKED] * len(ids), [WAITING] * len(ids), facts, seen=seen)
