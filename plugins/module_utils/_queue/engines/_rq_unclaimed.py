# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which popped RQ tasks no worker will ever claim.

An RQ worker on one queue pops a task into ``rq:queue:<queue>:intermediate`` and claims it a few milliseconds later.
Told to stop in between, it ends with status 0 and the task stays there; RQ's maintenance fails it much later, though it
never ran (measured with RQ 2.12). To take such a task back at once, every living worker has to be cleared of it: a
worker holds one task at a time, so one that holds a claim, or waits in Redis for its next, won't claim an older one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Optional

from ._redis import RedisLink, text

_SINGLE_POP = "blmove"


class _Look(NamedTuple):
    """What was there at one instant."""

    unclaimed: dict[str, set[str]]
    """Ids of popped tasks that nobody has claimed, by queue."""
    claims: list[str]
    """The claims on the tasks of all queues, as RQ writes them: ``<task>:<execution>``."""
    blocked: int
    """How many connections wait in this database for a task of a single queue."""


class Unclaimed:
    """Looks again and again, until each unclaimed task that was there at first is claimed or proven to be nobody's."""

    def __init__(self, link: RedisLink, queues: Sequence[str], workers_gone: Collection[str]) -> None:
        self._link = link
        self._queues = queues
        self._gone = workers_gone
        self._open: Optional[dict[str, set[str]]] = None
        self._cleared: set[str] = set()
        self.nobodys: set[str] = set()
        """Ids of the tasks of which that has been proven so far."""

    def settled(self) -> bool:
        """Look once more; True when there is nothing left to find out, or no right to see the broker's connections."""
        if self._open is None and isinstance(self._link.ask_each([("CLIENT LIST",)])[0], Exception):
            return True
        before = self._listening()
        look = self._look(sorted({*self._queues, *before.values()}))
        living = {**before, **self._listening()}
        holders = self._holders(look.claims)
        self._cleared |= holders
        if self._open is None:
            self._open = {queue: look.unclaimed[queue] for queue in self._queues}
        everyone_waits = look.blocked >= len(set(living) - holders)
        for queue, ids in self._open.items():
            ids.intersection_update(look.unclaimed[queue])
            suspects = {worker for worker, its_queue in living.items() if its_queue == queue} - self._cleared
            if everyone_waits or not suspects:
                self.nobodys |= ids
                ids.clear()
        return not any(self._open.values())

    def _listening(self) -> dict[str, str]:
        """The queue of each living worker that can pop: one on several queues pops without leaving a trace."""
        names = [text(key)[len("rq:worker:") :] for key in self._link.ask("SMEMBERS", "rq:workers")]
        found = self._link.ask_all([("HMGET", f"rq:worker:{name}", "queues", "state", "birth") for name in names])
        return {
            name: text(queues)
            for name, (queues, state, birth) in zip(names, found)
            if birth and name not in self._gone and text(state) != "suspended" and "," not in text(queues)
        }

    def _look(self, queues: Sequence[str]) -> _Look:
        asked: list[tuple[Any, ...]] = [("CLIENT LIST",), ("CLIENT ID",)]
        for queue in queues:
            asked += [("LRANGE", f"rq:queue:{queue}:intermediate", 0, -1), ("ZRANGE", f"rq:wip:{queue}", 0, -1)]
        clients, me, *lists = self._link.ask_all(asked)
        (database,) = [client["db"] for client in clients if client["id"] == str(me)]
        popped = [[text(task_id) for task_id in ids] for ids in lists[::2]]
        claims = [[text(claim) for claim in some] for some in lists[1::2]]
        claimed = [{claim.partition(":")[0] for claim in some} for some in claims]
        return _Look(
            unclaimed={queue: set(ids) - held for queue, ids, held in zip(queues, popped, claimed)},
            claims=[claim for some in claims for claim in some],
            blocked=sum(
                client["db"] == database and "b" in client["flags"] and client["cmd"] == _SINGLE_POP
                for client in clients
            ),
        )

    def _holders(self, claims: Sequence[str]) -> set[str]:
        """The workers that hold these claims; one that has been dropped since then clears nobody."""
        names = self._link.ask_all([("HGET", f"rq:execution:{claim}", "worker_name") for claim in claims])
        return {text(name) for name in names}
