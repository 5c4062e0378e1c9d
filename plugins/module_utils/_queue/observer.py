# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at a pool's queues while something else asks the broker anyway: for the report, and never against a verdict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Optional

from .._rollout.errors import BrokerRefused, BrokerUnreachable
from .._rollout.observing import Look, look, no_answer
from .engine import Engine, WorkerSeen

_SECONDS = 1.0
_MOST_LOOKS = 30


class Observer:
    """Counts the tasks of queues, at most once a second; the longer it goes on, the less often."""

    def __init__(self, engine: Engine, pool: str, queues: Sequence[str]) -> None:
        self.looks: list[Look] = []
        """Each has only those workers that have done something since the one before."""
        self._engine = engine
        self._pool = pool
        self._queues = queues
        self._interval = _SECONDS
        self._next = 0.0
        self._known: Optional[dict[str, Any]] = None

    def look(self, workers: Optional[Sequence[WorkerSeen]]) -> None:
        """Look once, if it is time to.

        :param workers: who is registered; None when the broker could not be asked. Neither that nor a refusal is this
            one's to raise.
        """
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._interval
        try:
            self._add(workers)
        except (BrokerUnreachable, BrokerRefused):
            self._add(None)

    def finish(self) -> None:
        """Look a last time, as counts are what a verdict has just been made from."""
        if self.looks and self.looks[-1]["queues"] is None:
            return  # whoever gives no answer is not waited for once more
        try:
            self._add(self._engine.workers())
        except (BrokerUnreachable, BrokerRefused):
            self._add(None)

    def _add(self, workers: Optional[Sequence[WorkerSeen]]) -> None:
        self.looks.append(self._found(workers))
        if len(self.looks) > _MOST_LOOKS:
            self._interval *= 2
            self._halve()

    def _found(self, workers: Optional[Sequence[WorkerSeen]]) -> Look:
        if workers is None:
            return no_answer(time.time())
        states = self._engine.queue_states(self._queues)
        found = look(self._pool, time.time(), map(asdict, states), map(asdict, workers))
        before, self._known = self._known, dict(found["workers"])
        if before is None:
            return found
        changed = {name: done for name, done in self._known.items() if before.get(name) != done}
        return {**found, "workers": changed, "gone": [name for name in before if name not in self._known]}

    def _halve(self) -> None:
        """After the first, every second look goes, but for gaps; what it alone tells of workers goes into the next."""
        kept = self.looks[:1]
        rest = self.looks[1:]
        while len(rest) > 1:
            first, second, *rest = rest
            if second["queues"] is None or first["queues"] is None:
                kept += [first] if first["queues"] is not None or second["queues"] is not None else []
                kept.append(second)
                continue
            workers = {**first["workers"], **second["workers"]}
            gone = [*first["gone"], *second["gone"]]
            kept.append(
                {**second, "workers": workers, "gone": [name for name in gone if name not in second["workers"]]}
            )
        self.looks = [*kept, *rest]
