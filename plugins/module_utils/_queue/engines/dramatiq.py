# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dramatiq on Redis, by raw commands and by what the reporter in each worker writes; no argument is ever decoded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple, Optional

from ..._rollout.names import parse_worker_name
from .. import engine as contract
from ..books import ALWAYS_FRESH
from ..engine import CANARY_PREFIX, Capabilities
from . import _dramatiq_scripts as scripts
from ._dramatiq_canaries import HEARD_OF_SECONDS, outcomes, send, withdraw
from ._dramatiq_dead import LIST_DEAD
from ._dramatiq_held import SILENT_SECONDS, Look, forget, held_for_later, look, read_note, recover
from ._dramatiq_moves import Move
from ._redis import acl_rule, text
from ._redis_engine import PauselessEngine
from ._redis_moves import BATCH

_LATER_COUNTED_AT_MOST = 20 * BATCH
_INDEX = f"{scripts.OURS}processes"
_FIELDS = (
    "worker", "pid", "hostname", "queues", "birth", "beat", "timeout", "up", "ended", "finished", "failed", "gates",
)  # fmt: skip
# One harmless use of each command that reading takes.
_READING = (
    ("LLEN", "dramatiq:a"), ("LRANGE", "dramatiq:a", 0, 0), ("LINDEX", "dramatiq:a", 0), ("LPOS", "dramatiq:a", "b"),
    ("HLEN", "dramatiq:a.msgs"), ("HGET", "dramatiq:a.msgs", "b"), ("HSCAN", "dramatiq:a.msgs", 0),
    ("HMGET", "backstep:dramatiq:a", "b"), ("HVALS", "backstep:dramatiq:a"), ("HEXISTS", "backstep:dramatiq:a", "b"),
    ("SMEMBERS", "dramatiq:a.acks"), ("SCARD", "dramatiq:a.acks"), ("SSCAN", "dramatiq:a.acks", 0),
    ("ZCARD", "dramatiq:a.XQ"), ("ZRANGE", "dramatiq:a.XQ", 0, 0), ("SCAN", 0), ("EVAL", "return 0", 0),
)  # fmt: skip


class _Reported(NamedTuple):
    """What the reporter of one process has written."""

    fields: dict[str, str]
    executing: tuple[str, ...]

    def number(self, field: str) -> float:
        """A field that is a number; 0 where it is missing."""
        return float(self.fields[field] or 0)


class DramatiqEngine(PauselessEngine):
    """Dramatiq 2 on one Redis database, with its default namespace and encoder."""

    name = "dramatiq"
    default_canary = "backstep_canary"
    rights = acl_rule("~dramatiq*", "~backstep:*")
    reading = _READING
    proof = scripts.PROVE_RIGHTS
    move = Move
    list_dead = LIST_DEAD
    no_pause = "Dramatiq has no pause: its workers can't be told to take nothing."
    none_to_end = "Dramatiq has no pause, so there is none to end."
    capabilities = Capabilities(
        pause_scope="none",
        pause_survives_worker_restart=False,
        pause_survives_broker_restart=False,
        quiet_can_be_undone=False,
        uncountable_states=(contract.DEFERRED,),
        counts_failures=True,
        kill_effect="sticks",
        stuck_seconds=SILENT_SECONDS,
        unknown_task="parked",
        reroutes=True,
    )

    def known_queues(self) -> list[str]:
        keys = self._link.scan("hash", "dramatiq:*.msgs")
        names = (key[len("dramatiq:") : -len(".msgs")] for key in keys)
        queues = {name[:-3] if name.endswith((".DQ", ".XQ")) else name for name in names}
        return sorted(queues.union(*(worker.queues for worker in self.workers())))

    def queue_states(self, queues: Sequence[str]) -> list[contract.QueueState]:
        now, processes = self._reported()
        live = [one for one in processes if not one.fields["ended"] and now - one.number("beat") <= HEARD_OF_SECONDS]
        listening = {one.fields["worker"]: one.fields["queues"].split(",") for one in live}
        return [
            self._queue_state(queue, look(self._link, queue), sum(queue in names for names in listening.values()))
            for queue in queues
        ]

    def _queue_state(self, queue: str, found: Look, workers: int) -> contract.QueueState:
        retrying = self._count_retrying(queue, found.later)
        executing = found.in_state(contract.EXECUTING)
        return contract.QueueState(
            queue=queue,
            waiting=found.listed + len(found.in_state(contract.WAITING)),
            scheduled=found.later - min(found.later, retrying or 0),
            # A process without a reporter doesn't tell what it has begun of what it has taken.
            executing=None if any(held.process.worker is None for held in executing) else len(executing),
            retrying=retrying,
            dead=found.dead,
            parked=found.parked,
            abandoned=len(found.in_state(contract.ABANDONED)),
            deferred=None,
            oldest_waiting_seconds=None if found.oldest is None else max(0.0, found.now - found.oldest),
            workers=workers,
        )

    def _count_retrying(self, queue: str, later: int) -> Optional[int]:
        if later > _LATER_COUNTED_AT_MOST:
            return None
        return sum(state == contract.RETRYING for _id, state in self._later(queue)) if later else 0

    def _later(self, queue: str) -> list[tuple[str, str]]:
        """Ids and states of what is due later, wherever it is."""
        found: dict[str, str] = {}
        for ids, states in self._link.pages(scripts.LIST_LATER, queue, count=BATCH):
            found.update(zip(map(text, ids), map(text, states)))
        return list(found.items())

    def task_ids(self, queue: str, state: str, limit: int) -> contract.TaskIds:
        ids = [known for known in self._all_ids(queue, state, limit + 1) if not known.startswith(CANARY_PREFIX)]
        return contract.TaskIds(tuple(ids[:limit]), len(ids) > limit)

    def _all_ids(self, queue: str, state: str, count: int) -> list[str]:
        if state == contract.DEFERRED:
            return []  # a task that another one is to send lies in that one
        if state in (contract.SCHEDULED, contract.RETRYING):
            return [known for known, its_state in self._later(queue) if its_state == state]
        if state in (contract.EXECUTING, contract.ABANDONED):
            return [held.id for held in look(self._link, queue).in_state(state)]
        # What has been taken ahead is looked at last: so that what is taken meanwhile is seen somewhere.
        listed = self._listed(queue, state, count)
        ahead = [held.id for held in look(self._link, queue).in_state(state)] if state == contract.WAITING else []
        return list(dict.fromkeys([*ahead, *listed]))

    def _listed(self, queue: str, place: str, count: int) -> list[str]:
        """At least ``count`` ids, where there are so many."""
        found: list[str] = []
        skip, seen = 0, BATCH
        while seen == BATCH and len(found) < count:
            seen, ids = self._link.run(scripts.LIST_TASKS, queue, place, skip, BATCH)
            found += [known for known in map(text, ids) if not known.startswith(CANARY_PREFIX)]
            skip += seen
        return found

    def workers(self) -> list[contract.WorkerSeen]:
        now, processes = self._reported()
        of_worker: dict[str, list[_Reported]] = defaultdict(list)
        for one in processes:
            kept = max(SILENT_SECONDS, one.number("timeout") / 1000)
            if not one.fields["ended"] and now - one.number("beat") <= kept:
                of_worker[one.fields["worker"]].append(one)
        return [_worker(name, of_worker[name]) for name in sorted(of_worker)]

    def _reported(self) -> tuple[float, list[_Reported]]:
        """The broker's time, and what every process has reported that is remembered."""
        (seconds, micros), brokers = self._link.ask_all([("TIME",), ("ZRANGE", _INDEX, 0, -1)])
        found = []
        for start in range(0, len(brokers), BATCH):
            names = [text(broker) for broker in brokers[start : start + BATCH]]
            hashes = self._link.ask_all([("HMGET", f"{scripts.OURS}process:{name}", *_FIELDS) for name in names])
            notes = self._link.ask_all([("HVALS", f"{scripts.OURS}executing:{name}") for name in names])
            for values, some in zip(hashes, notes):
                fields = dict(zip(_FIELDS, map(text, values)))
                if fields["worker"]:
                    ordered = sorted(map(read_note, some))
                    found.append(_Reported(fields, tuple(note.id for note in ordered)))
        return int(seconds) + int(micros) / 1e6, found

    def executing(self, queues: Sequence[str]) -> list[contract.ExecutingTask]:
        found = [(queue, held) for queue in queues for held in look(self._link, queue).held]
        return [
            contract.ExecutingTask(held.id, held.task, queue, held.process.worker, held.started)
            for queue, held in found
            if held.begun
        ]

    def _taken(self, queues: Sequence[str]) -> list[contract.NamedTasks]:
        looks = [(queue, look(self._link, queue)) for queue in queues]
        found = [(queue, held) for queue, there in looks for held in there.held]
        for queue, there in looks:
            for process in there.processes:
                if process.later:
                    found += [(queue, held) for held in held_for_later(self._link, queue, process)]
        return [
            contract.NamedTasks(
                queue=queue,
                state=contract.EXECUTING if held.state == contract.ABANDONED else held.state,
                task=held.task,
                count=1,
                oldest=held.enqueued or None,
            )
            for queue, held in found
            if not held.id.startswith(CANARY_PREFIX)
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
        found = [task for queue in queues for task in recover(self._link, queue, workers_gone, to, dry_run)]
        if not dry_run:
            self._forget(workers_gone)
        return found

    def _forget(self, workers: Collection[str]) -> None:
        """Unregister the processes of dead workers that hold nothing any more."""
        brokers = [text(broker) for broker in self._link.ask("ZRANGE", _INDEX, 0, -1)]
        keys = [f"{scripts.OURS}process:{broker}" for broker in brokers]
        names = self._link.ask_all([("HMGET", key, "worker", "ended") for key in keys])
        for broker, (name, ended) in zip(brokers, names):
            if ended or text(name) in workers:
                forget(self._link, broker)

    def send_canary(self, queue: str, task: str, count: int, seconds: int) -> list[str]:
        return send(self._link, queue, task, count, seconds)

    def canaries(self, ids: Sequence[str]) -> list[contract.CanaryOutcome]:
        return outcomes(self._link, ids)

    def withdraw(self, queue: str, ids: Sequence[str]) -> None:
        withdraw(self._link, queue, ids)


def _worker(name: str, processes: Sequence[_Reported]) -> contract.WorkerSeen:
    """A worker out of its processes."""
    parsed = parse_worker_name(name)
    fields = processes[0].fields
    tasks = [task for one in processes for task in one.executing]
    real = [task for task in tasks if not task.startswith(CANARY_PREFIX)]
    queues = dict.fromkeys(queue for one in processes for queue in one.fields["queues"].split(",") if queue)
    up = any(one.fields["up"] == "1" for one in processes)
    return contract.WorkerSeen(
        name=name,
        parsed=parsed,
        queues=tuple(queues),
        state="busy" if tasks else "idle" if up else "started",
        pid=parsed.pid if parsed else int(fields["pid"] or 0) or None,
        hostname=fields["hostname"] or None,
        birth=min(one.number("birth") for one in processes),
        last_heartbeat=max(one.number("beat") for one in processes),
        current_task=next(iter([*real, *tasks]), None),
        finished=int(sum(one.number("finished") for one in processes)),
        failed=int(sum(one.number("failed") for one in processes)),
        connected=None,
        gates=ALWAYS_FRESH if all(one.fields["gates"] == ALWAYS_FRESH for one in processes) else None,
    )
