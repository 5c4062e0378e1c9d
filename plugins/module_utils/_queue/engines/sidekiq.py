# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sidekiq (open source) on Redis, by raw commands, and by what Backstep's reporter in its workers notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Optional

from .. import engine as contract
from ..engine import CANARY_PREFIX, Capabilities
from . import _sidekiq_scripts as scripts
from ._redis import acl_rule, text
from ._redis_engine import PauselessEngine
from ._redis_moves import BATCH
from ._sidekiq_canaries import outcomes, send, withdraw
from ._sidekiq_dead import LIST_DEAD
from ._sidekiq_moves import SETS, Move
from ._sidekiq_recover import recover
from ._sidekiq_workers import Held, Registered, held_by, registered, seen, told_by

# A sorted set that holds more than this isn't counted by queue: all of it would have to be looked at.
_COUNTED_AT_MOST = 100 * BATCH
# One harmless use of each command that reading takes.
_READING = (
    ("LLEN", "queue:a"), ("LRANGE", "queue:a", 0, 0), ("LINDEX", "queue:a", 0), ("LPOS", "queue:a", "b"),
    ("SMEMBERS", "queues"), ("ZCARD", "schedule"), ("ZCARD", "retry"), ("ZCARD", "dead"), ("ZRANGE", "dead", 0, 0),
    ("HMGET", "backstep:sidekiq:a", "b"), ("HGETALL", "backstep:sidekiq:a"), ("HVALS", "a:work"), ("EXISTS", "a:work"),
    ("EVAL", "return 1", 0),
)  # fmt: skip


class SidekiqEngine(PauselessEngine):
    """Sidekiq 6 to 8 on one Redis database, without a namespace."""

    name = "sidekiq"
    default_canary = "BackstepCanary"
    rights = acl_rule("~*")
    reading = _READING
    proof = scripts.PROVE_RIGHTS
    move = Move
    list_dead = LIST_DEAD
    no_pause = (
        "Sidekiq has no pause: a process that is told to take nothing never takes a task again, and its scheduler "
        "stops too."
    )
    none_to_end = "Sidekiq has no pause, so there is none to end."
    capabilities = Capabilities(
        pause_scope="none",
        pause_survives_worker_restart=False,
        pause_survives_broker_restart=False,
        quiet_can_be_undone=False,
        uncountable_states=(contract.DEFERRED,),
        counts_failures=True,
        kill_effect="sticks",
        stuck_seconds=None,
        unknown_task="parked",
        reroutes=True,
    )

    def known_queues(self) -> list[str]:
        named = {text(name) for name in self._link.ask("SMEMBERS", "queues")}
        return sorted(named.union(*(worker.queues for worker in self.workers())))

    def queue_states(self, queues: Sequence[str]) -> list[contract.QueueState]:
        counts = self._link.run(scripts.COUNT, *queues)
        there, now = registered(self._link), self._link.now()
        held = self._held(there, queues)
        in_sets = {state: self._count_set(key) for state, key in SETS.items()}
        listening = Counter(there.listening())
        return [
            contract.QueueState(
                queue=queue,
                waiting=waiting + len(_in_state(held, queue, contract.WAITING)),
                scheduled=_of(in_sets[contract.SCHEDULED], queue),
                executing=len(_in_state(held, queue, contract.EXECUTING)),
                retrying=_of(in_sets[contract.RETRYING], queue),
                dead=_of(in_sets[contract.DEAD], queue),
                parked=parked,
                abandoned=len(_in_state(held, queue, contract.ABANDONED)),
                deferred=None,
                oldest_waiting_seconds=max(0.0, now - float(enqueued)) if enqueued else None,
                workers=listening[queue],
            )
            for queue, (waiting, enqueued, parked) in zip(queues, counts)
        ]

    def _held(self, there: Registered, queues: Collection[str]) -> list[Held]:
        return held_by(self._link, there.names, queues) + told_by(self._link, list(there.processes))

    def _count_set(self, key: str) -> Optional[Counter[str]]:
        """Tasks in a sorted set by their queue."""
        if self._link.ask("ZCARD", key) > _COUNTED_AT_MOST:
            return None
        return Counter(queue for _id, queue in self._in_set(key))

    def _in_set(self, key: str) -> Iterator[tuple[str, str]]:
        """Ids and queues of the tasks in a sorted set."""
        skip, seen_here = 0, BATCH
        while seen_here == BATCH:
            seen_here, ids, queues = self._link.run(scripts.LIST_SET, key, skip, BATCH)
            yield from zip(map(text, ids), map(text, queues))
            skip += seen_here

    def task_ids(self, queue: str, state: str, limit: int) -> contract.TaskIds:
        found: list[str] = []
        for known_as in self._all_ids(queue, state):
            if not known_as.startswith(CANARY_PREFIX):
                found.append(known_as)
            if len(found) > limit:
                break
        return contract.TaskIds(tuple(found[:limit]), len(found) > limit)

    def _all_ids(self, queue: str, state: str) -> Iterator[str]:
        if state in SETS:
            yield from (known_as for known_as, its_queue in self._in_set(SETS[state]) if its_queue == queue)
        elif state == contract.PARKED:
            members = self._link.ask("ZRANGE", f"{scripts.OURS}parked:{queue}", 0, -1)
            yield from (text(member).split("\0", 3)[3] for member in members)
        else:
            # In the order in which a task moves on, so that none is seen nowhere.
            listed = list(self._waiting(queue)) if state == contract.WAITING else []
            held = self._held(registered(self._link), [queue])
            yield from dict.fromkeys([*(task.id for task in _in_state(held, queue, state)), *listed])

    def _waiting(self, queue: str) -> Iterator[str]:
        skip, seen_here = 0, BATCH
        while seen_here == BATCH:
            seen_here, ids = self._link.run(scripts.LIST_WAITING, queue, skip, BATCH)
            yield from map(text, ids)
            skip += seen_here

    def workers(self) -> list[contract.WorkerSeen]:
        there = registered(self._link)
        return seen(there, self._held(there, ()))

    def executing(self, queues: Sequence[str]) -> list[contract.ExecutingTask]:
        return [
            contract.ExecutingTask(held.id, held.task, held.queue, held.worker, float(held.start))
            for held in self._held(registered(self._link), ())
            if held.queue in queues and held.start
        ]

    def _taken(self, queues: Sequence[str]) -> list[contract.NamedTasks]:
        return [
            contract.NamedTasks(held.queue, contract.EXECUTING if held.start else contract.WAITING, held.task, 1, None)
            for held in self._held(registered(self._link), queues)
            if held.queue in queues and not held.is_canary
        ]

    def recover(
        self,
        queues: Sequence[str],
        workers_gone: Collection[str],
        to: str,
        wait: contract.Wait = contract.once,
        dry_run: bool = False,
    ) -> list[contract.RecoveredTask]:
        contract.require_end(to)
        return recover(self._link, queues, workers_gone, to, dry_run)

    def send_canary(self, queue: str, task: str, count: int, seconds: int) -> list[str]:
        return send(self._link, queue, task, count, seconds)

    def canaries(self, ids: Sequence[str]) -> list[contract.CanaryOutcome]:
        return outcomes(self._link, ids)

    def withdraw(self, queue: str, ids: Sequence[str]) -> None:
        withdraw(self._link, ids)


def _of(counts: Optional[Counter[str]], queue: str) -> Optional[int]:
    return None if counts is None else counts[queue]


def _in_state(held: Sequence[Held], queue: str, state: str) -> list[Held]:
    """Those of a queue: executing, waiting (taken, but not begun) or abandoned."""
    return [task for task in held if task.queue == queue and _state(task) == state]


def _state(task: Held) -> str:
    if not task.reports:
        return contract.ABANDONED
    return contract.EXECUTING if task.start else contract.WAITING
