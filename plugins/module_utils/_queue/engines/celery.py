# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Celery on Redis, by raw commands and by the broadcasts of Celery's own ``inspect``; no task's body is decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple, Optional

from .. import engine as contract
from ..engine import CANARY_PREFIX, Capabilities
from . import _celery_scripts as scripts
from ._celery_canaries import canaries_of, outcomes, send, withdraw
from ._celery_control import ask
from ._celery_held import Holdings, look
from ._celery_messages import CANARY_EXCHANGE, Held, bound_queue, lists, read_held, worker_of
from ._celery_moves import Move
from ._celery_recover import acknowledged_late, recover
from ._celery_told import begun_by_living, counts_of
from ._redis import acl_rule, text
from ._redis_engine import PauselessEngine
from ._redis_moves import BATCH

_BINDINGS = "_kombu.binding."
_COUNTED_AT_MOST = 20 * BATCH
# One harmless use of each command that reading takes.
_READING = (
    ("LLEN", "a"), ("LRANGE", "a", 0, 0), ("LPOS", "a", "b"), ("HLEN", "unacked"), ("HKEYS", "unacked"),
    ("HGETALL", "backstep:celery:a"), ("HSCAN", "unacked", 0), ("ZRANGE", "unacked_index", 0, 0),
    ("SMEMBERS", f"{_BINDINGS}a"), ("SCAN", 0), ("PUBSUB", "NUMPAT"), ("ZCARD", f"{scripts.OURS}parked:a"),
    ("HMGET", "backstep:celery:a", "b"),
)  # fmt: skip


class CeleryEngine(PauselessEngine):
    """Celery 5 on one Redis database, with kombu's own names of keys."""

    name = "celery"
    default_canary = "celery.accumulate"
    rights = acl_rule("~*", "&*")
    reading = _READING
    proof = scripts.PROVE_RIGHTS
    move = Move
    no_pause = (
        "Celery has no pause: a worker that is told to take nothing forgets that when it restarts, and never takes "
        "a task again when whoever told it so dies."
    )
    none_to_end = "Celery has no pause, so there is none to end."
    capabilities = Capabilities(
        pause_scope="none",
        pause_survives_worker_restart=False,
        pause_survives_broker_restart=False,
        quiet_can_be_undone=False,
        uncountable_states=(contract.EXECUTING, contract.DEAD, contract.DEFERRED),
        counts_failures=True,
        kill_effect="loses",
        stuck_seconds=3600,
        unknown_task="parked",
        reroutes=True,
    )

    def known_queues(self) -> list[str]:
        keys = self._link.scan("set", f"{_BINDINGS}*")
        exchanges = [key for key in keys if not key.endswith((".pidbox", ".celeryev", f".{CANARY_EXCHANGE}"))]
        members = self._link.ask_all([("SMEMBERS", key) for key in exchanges])
        bound = {bound_queue(text(member)) for some in members for member in some}
        return sorted(bound.union(*(worker.queues for worker in self.workers())))

    def queue_states(self, queues: Sequence[str]) -> list[contract.QueueState]:
        held = look(self._link)
        listening = Counter(queue for answer in held.replies.of("active_queues").values() for queue in _names(answer))
        return [self._queue_state(queue, held, listening[queue]) for queue in queues]

    def _queue_state(self, queue: str, held: Holdings, workers: int) -> contract.QueueState:
        keys = lists(queue)
        *lengths, parked = self._link.ask_all(
            [*(("LLEN", key) for key in keys), ("ZCARD", f"{scripts.OURS}parked:{queue}")]
        )
        later = self._count_later(keys) if sum(lengths) <= _COUNTED_AT_MOST and held.entries is not None else None
        counted = {
            state: len(held.in_state(queue, state))
            for state in (contract.WAITING, contract.SCHEDULED, contract.RETRYING, contract.ABANDONED)
        }
        listed = sum(lengths) - (sum(later.values()) if later else 0)
        return contract.QueueState(
            queue=queue,
            waiting=max(0, listed) + counted[contract.WAITING],
            scheduled=None if later is None else later[contract.SCHEDULED] + counted[contract.SCHEDULED],
            executing=None,
            retrying=None if later is None else later[contract.RETRYING] + counted[contract.RETRYING],
            dead=None,
            parked=parked,
            abandoned=None if held.entries is None or held.replies.silent else counted[contract.ABANDONED],
            deferred=None,
            oldest_waiting_seconds=None,
            workers=None if held.replies.silent else workers,
        )

    def _count_later(self, keys: Sequence[str]) -> Counter[str]:
        """Tasks that are due later and that no worker has taken yet."""
        states = (state for key in keys for _id, state in self._listed(key, _COUNTED_AT_MOST))
        return Counter(state for state in states if state != contract.WAITING)

    def _listed(self, key: str, at_most: Optional[int] = None) -> list[tuple[str, str]]:
        """Ids and states of the tasks in a list, the next one first."""
        found: list[tuple[str, str]] = []
        skip, seen = 0, BATCH
        while seen == BATCH and (at_most is None or skip < at_most):
            seen, ids, states = self._link.run(scripts.LIST_TASKS, key, skip, BATCH)
            found += zip(map(text, ids), map(text, states))
            skip += seen
        return found

    def task_ids(self, queue: str, state: str, limit: int) -> contract.TaskIds:
        ids = [known for known in self._all_ids(queue, state) if not known.startswith(CANARY_PREFIX)]
        return contract.TaskIds(tuple(ids[:limit]), len(ids) > limit)

    def _all_ids(self, queue: str, state: str) -> list[str]:
        if state == contract.EXECUTING:
            return [task.id for task in self.executing([queue])]
        if state == contract.PARKED:
            members = self._link.ask("ZRANGE", f"{scripts.OURS}parked:{queue}", 0, -1)
            return [text(member).split("\0", 2)[2] for member in members]
        if state in (contract.DEAD, contract.DEFERRED):
            return []  # Celery on Redis has no such place
        found = [held.id for held in look(self._link).in_state(queue, state)]
        for key in lists(queue):
            found += [known for known, its_state in self._listed(key) if its_state == state]
        return list(dict.fromkeys(found))

    def _taken(self, queues: Sequence[str]) -> list[contract.NamedTasks]:
        held = {entry.id: entry for entry in self._unacknowledged() if entry.queue in queues}
        executing = self.executing(queues)
        # Of those that are acknowledged late, some are executed.
        waiting = held.keys() - {task.id for task in executing}
        found = [(task.id, task.queue, contract.EXECUTING, task.task) for task in executing]
        found += [(known, held[known].queue, held[known].state, held[known].task) for known in waiting]
        return [
            contract.NamedTasks(queue, state, task, 1, None)
            for known, queue, state, task in found
            if not known.startswith(CANARY_PREFIX)
        ]

    def _unacknowledged(self) -> Iterator[Held]:
        cursor = None
        while cursor != 0:
            cursor, page = self._link.ask("HSCAN", "unacked", cursor or 0, "COUNT", BATCH)
            yield from (read_held(text(tag), stored) for tag, stored in page.items())

    def lost_when_killed(self) -> list[str]:
        replies = ask(self._link, "registered", registered={"taskinfoitems": ["acks_late"]}).require_all(self._link)
        early = {
            entry.partition(" ")[0]
            for entries in replies.of("registered").values()
            for entry in entries
            if not acknowledged_late(entry)
        }
        return sorted(name for name in early if not name.startswith("celery."))

    def workers(self) -> list[contract.WorkerSeen]:
        replies = ask(self._link, "stats", "active", "active_queues").require_all(self._link)
        now = self._link.now()
        active = replies.requests("active")
        queues = {node: _names(answer) for node, answer in replies.of("active_queues").items()}
        nodes = sorted(node for node in replies.of("stats") if node in active and node in queues)
        names = [worker_of(node)[0] for node in nodes]
        counts = self._counts([*map(canaries_of, names), *map(counts_of, names)])
        return [
            _worker(node, replies.of("stats")[node], queues[node], active[node], _Counted(canaries, reported), now)
            for node, canaries, reported in zip(nodes, counts, counts[len(nodes) :])
        ]

    def _counts(self, keys: Sequence[str]) -> list[Optional[_Told]]:
        """What each key holds; ``None`` for a key that isn't there."""
        found = self._link.ask_all([("HMGET", key, *_Told._fields) for key in keys])
        return [None if not any(told) else _Told(int(told[0] or 0), int(told[1] or 0), told[2]) for told in found]

    def executing(self, queues: Sequence[str]) -> list[contract.ExecutingTask]:
        active = ask(self._link, "active").require_all(self._link).requests("active")
        answered = {
            str(request["id"]): contract.ExecutingTask(
                id=str(request["id"]),
                task=request.get("name"),
                queue=str((request.get("delivery_info") or {}).get("routing_key")),
                worker=worker_of(node)[0],
                started=request.get("time_start"),
            )
            for node, requests in active.items()
            for request in requests
        }
        listening = {worker_of(node)[0] for node in active}
        told = {
            begun.id: contract.ExecutingTask(*begun)
            for begun in begun_by_living(self._link)
            if begun.worker not in listening
        }
        return [task for task in {**told, **answered}.values() if task.queue in queues]

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
        withdraw(self._link, queue, ids)


def _names(answer: Any) -> tuple[str, ...]:
    """The queues in a worker's answer to ``active_queues``."""
    return tuple(str(queue["name"]) for queue in answer or ())


class _Told(NamedTuple):
    """The fields of a hash of counts."""

    finished: int
    failed: int
    gates: Optional[bytes]


class _Counted(NamedTuple):
    """Finished and failed tasks of one worker; ``None`` where nobody has counted any."""

    canaries: Optional[_Told]
    """Canaries that are in Celery's own counts and have been taken back."""
    reported: Optional[_Told]
    """As the worker's reporter has counted; ``None`` when it has none."""

    def finished(self, ended: int) -> int:
        """Finished tasks; of those that Celery says have ended, failed ones too, where nothing is reported."""
        withdrawn = self.canaries.finished + self.canaries.failed if self.canaries else 0
        return self.reported.finished if self.reported else max(0, ended - withdrawn)


def _worker(
    node: str, stats: Any, queues: tuple[str, ...], active: Sequence[Any], counted: _Counted, now: float
) -> contract.WorkerSeen:
    name, parsed, host = worker_of(node)
    tasks = [str(request["id"]) for request in active]
    real = [task for task in tasks if not task.startswith(CANARY_PREFIX)]
    begun = sum(int(count) for count in stats.get("total", {}).values())
    return contract.WorkerSeen(
        name=name,
        parsed=parsed,
        queues=queues,
        state="busy" if tasks else "idle" if queues else "suspended",
        pid=stats.get("pid"),
        hostname=host,
        birth=now - float(stats["uptime"]) if "uptime" in stats else None,
        last_heartbeat=now,
        current_task=next(iter([*real, *tasks]), None),
        finished=counted.finished(begun - len(tasks)),
        failed=counted.reported.failed if counted.reported else None,
        connected=True,
        gates=text(counted.reported.gates) if counted.reported and counted.reported.gates else None,
    )
