# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Redis Streams with a consumer group: the consumers are the app's own programs, which keep a small convention.

The convention is in docs/engines.md. Beyond what any consumer does (``XREADGROUP``, ``XACK``), a worker names its
connection and its consumer, and counts what it has finished: Redis itself keeps no count per consumer, and before
7.2 doesn't even list one that has never been given anything (measured with 7.0).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from ..._rollout.errors import BrokerRefused
from ..._rollout.names import parse_worker_name
from .. import engine as contract
from ..engine import CANARY_PREFIX, Capabilities
from . import _streams_scripts as scripts
from ._moves import TaskMove
from ._redis import acl_rule, text
from ._redis_engine import PauselessEngine
from ._redis_moves import BATCH
from ._streams_moves import Move

# A consumer without a connection is listed so long after it was last heard: it may just be connecting again.
_HEARD_SECONDS = 60.0
# Smaller ones are no times: an app may number its entries itself.
_EARLIEST_MS = 10**12
# Redis knows none of these. Of a task that is held it can't be told whether its worker still lives.
_NOWHERE = (contract.SCHEDULED, contract.RETRYING, contract.DEAD, contract.ABANDONED, contract.DEFERRED)
# One harmless use of each command that reading takes.
_READING = (
    ("SCAN", 0), ("TYPE", "a"), ("XLEN", "a"), ("XRANGE", "a", "-", "+", "COUNT", 1),
    ("HGETALL", f"{scripts.OURS}worker:a"), ("HEXISTS", f"{scripts.OURS}worker:a", "b"), ("EXISTS", "a"),
    ("ZCARD", f"{scripts.OURS}parked:a"), ("ZRANGE", f"{scripts.OURS}parked:a", 0, 0),
    ("HGET", f"{scripts.OURS}parked:a:entries", "b"), ("EVAL", scripts.PROVE_READING, 0),
)  # fmt: skip


@dataclass
class _Consumer:
    """A consumer, on all streams on which it is one."""

    queues: list[str] = field(default_factory=list)
    idle: float = float("inf")
    """Seconds since it was last heard."""
    task: str = ""


class StreamsEngine(PauselessEngine):
    """Streams of one Redis database, 6.2 or newer, each with one consumer group."""

    name = "streams"
    default_canary = "backstep-canary"
    rights = acl_rule("~*")
    reading = _READING
    proof = scripts.PROVE_RIGHTS
    move = Move
    no_pause = "Redis has no pause for a stream: whoever reads from a group is given what there is."
    none_to_end = "Redis has no pause for a stream, so there is none to end."
    capabilities = Capabilities(
        pause_scope="none",
        pause_survives_worker_restart=False,
        pause_survives_broker_restart=False,
        quiet_can_be_undone=False,
        uncountable_states=_NOWHERE,
        counts_failures=True,
        kill_effect="sticks",
        stuck_seconds=None,
        unknown_task="parked",
        put_back="last",
    )

    def known_queues(self) -> list[str]:
        return sorted(self._link.scan("stream"))

    def queue_states(self, queues: Sequence[str]) -> list[contract.QueueState]:
        now = self._link.now()
        found = self._link.run(scripts.STATES, BATCH, *queues)
        listening = [queue for worker in self.workers() if worker.connected is not False for queue in worker.queues]
        return [
            self._queue_state(queue, facts, now, listening.count(queue)) for queue, facts in zip(queues, found)
        ]

    def _queue_state(self, queue: str, facts: list[Any], now: float, workers: int) -> contract.QueueState:
        _groups, delivered, waiting, pending, first, parked = facts
        if waiting == -2:
            waiting = self._count_after(queue, delivered)
        at = int(first.partition(b"-")[0] or 0)
        return contract.QueueState(
            queue=queue,
            waiting=None if waiting < 0 else waiting,
            scheduled=None,
            executing=None if pending < 0 else pending,
            retrying=None,
            dead=None,
            parked=parked,
            abandoned=None,
            deferred=None,
            oldest_waiting_seconds=max(0.0, now - at / 1000) if at >= _EARLIEST_MS else None,
            workers=workers,
        )

    def _count_after(self, queue: str, delivered: bytes) -> int:
        """How many entries follow an id, by walking over them, where Redis itself can't tell."""
        count, seen, after = 0, BATCH, delivered
        while seen == BATCH:
            seen, after = self._link.run(scripts.COUNT, queue, after, BATCH)
            count += seen
        return count

    def task_ids(self, queue: str, state: str, limit: int) -> contract.TaskIds:
        ids: list[str] = []
        for known in self._ids(queue, state):
            if len(ids) > limit:
                break
            if not known.startswith(CANARY_PREFIX):
                ids.append(known)
        return contract.TaskIds(tuple(ids[:limit]), len(ids) > limit)

    def _ids(self, queue: str, state: str) -> Iterator[str]:
        seen, after, skip = BATCH, b"0-0", 0
        if state == contract.WAITING:
            while seen == BATCH:
                seen, after, ids = self._link.run(scripts.LIST_WAITING, queue, after, BATCH)
                yield from map(text, ids)
        elif state == contract.PARKED:
            while seen == BATCH:
                seen, ids = self._link.run(scripts.LIST_PARKED, queue, skip, BATCH)
                skip += seen
                yield from map(text, ids)
        elif state == contract.EXECUTING:
            for facts in self._pending(queue):
                yield text(facts[0])

    def _pending(self, queue: str) -> Iterator[list[Any]]:
        """Id, task, consumer and milliseconds of what the consumers hold."""
        seen, after = BATCH, b"0-0"
        while seen == BATCH:
            seen, after, flat = self._link.run(scripts.LIST_PENDING, queue, after, BATCH)
            yield from (flat[at : at + 4] for at in range(0, len(flat), 4))

    def workers(self) -> list[contract.WorkerSeen]:
        found = self._consumers()
        connected = self._link.connected_names()
        names = [
            name
            for name, consumer in sorted(found.items())
            if connected is None or name in connected or consumer.task or consumer.idle < _HEARD_SECONDS
        ]
        notes = self._link.ask_all([("HGETALL", f"{scripts.OURS}worker:{name}") for name in names])
        now = self._link.now()
        shared = self._shared({queue for name in names for queue in found[name].queues})
        return [
            _worker(name, found[name], noted, None if connected is None else name in connected, now, shared)
            for name, noted in zip(names, notes)
        ]

    def _consumers(self) -> dict[str, _Consumer]:
        found: dict[str, _Consumer] = {}
        for queue in self.known_queues():
            flat = self._link.run(scripts.CONSUMERS, queue)
            for at in range(0, len(flat), 3):
                consumer = found.setdefault(text(flat[at]), _Consumer())
                consumer.queues.append(queue)
                consumer.idle = min(consumer.idle, flat[at + 1] / 1000)
                consumer.task = consumer.task or text(flat[at + 2])
        return found

    def executing(self, queues: Sequence[str]) -> list[contract.ExecutingTask]:
        now = self._link.now()
        return [
            contract.ExecutingTask(
                id=text(known), task=text(task) or None, queue=queue, worker=text(worker), started=now - idle / 1000
            )
            for queue in queues
            for known, task, worker, idle in self._pending(queue)
        ]

    def _move(
        self, queues: Sequence[str], selection: contract.Selection, allowed: Sequence[str], dry_run: bool
    ) -> TaskMove:
        found = super()._move(queues, selection, allowed, dry_run)
        self._refuse_shared(queues)
        return found

    def recover(
        self,
        queues: Sequence[str],
        workers_gone: Collection[str],
        to: str,
        wait: contract.Wait = contract.once,
        dry_run: bool = False,
    ) -> list[contract.RecoveredTask]:
        contract.require_end(to)
        self._refuse_shared(queues)
        gone = dict.fromkeys(workers_gone, True)
        state = contract.WAITING if to == contract.WAITING else contract.PARKED
        want = json.dumps({"gone": gone, "to": state, "dry": dry_run})
        found = [
            contract.RecoveredTask(text(known), text(task) or None, queue, text(worker), state, True)
            for queue in queues
            for known, task, worker in self._take_back(queue, want)
        ]
        if gone and not dry_run:
            for queue in self.known_queues():
                self._link.run(scripts.BURY, queue, json.dumps(gone))
        return found

    def _take_back(self, queue: str, want: str) -> Iterator[list[Any]]:
        seen, after = BATCH, b"0-0"
        while seen == BATCH:
            seen, after, flat = self._link.run(scripts.RECOVER, queue, want, after, BATCH)
            yield from (flat[at : at + 3] for at in range(0, len(flat), 3))

    def _shared(self, queues: Collection[str]) -> list[str]:
        """Those that several consumer groups read."""
        found = self._link.run(scripts.STATES, 0, *queues) if queues else []
        return [queue for queue, facts in zip(queues, found) if facts[0] > 1]

    def _refuse_shared(self, queues: Sequence[str]) -> None:
        """Refuse what would take entries away from other groups, or give them some that aren't theirs.

        :raises BrokerRefused: a stream has several consumer groups.
        """
        shared = self._shared(queues)
        if shared:
            raise BrokerRefused(
                f"Several consumer groups read {', '.join(shared)}: an entry that is put into a stream, or taken out, "
                "is so for each of them.",
                left="Nothing was changed.",
                next_step="Give the pool a stream of its own, or remove groups that nobody uses with XGROUP DESTROY.",
                queues=shared,
            )

    def send_canary(self, queue: str, task: str, count: int, seconds: int) -> list[str]:
        self._refuse_shared([queue])
        ids = [f"{CANARY_PREFIX}{uuid.uuid4().hex}" for _number in range(count)]
        self._link.run(scripts.SEND_CANARIES, queue, task, seconds, *ids)
        return ids

    def canaries(self, ids: Sequence[str]) -> list[contract.CanaryOutcome]:
        flat = [text(fact) for fact in self._link.run(scripts.CANARIES, *ids)] if ids else []
        return [
            contract.CanaryOutcome(known, state, worker or None)
            for known, state, worker in zip(ids, flat[::2], flat[1::2])
        ]

    def withdraw(self, queue: str, ids: Sequence[str]) -> None:
        if ids:
            self._link.run(scripts.WITHDRAW, *ids)


def _worker(
    name: str,
    consumer: _Consumer,
    noted: dict[bytes, bytes],
    connected: Optional[bool],
    now: float,
    shared: Collection[str],
) -> contract.WorkerSeen:
    parsed = parse_worker_name(name)
    notes = {text(key): text(value) for key, value in noted.items()}
    # In the order that the worker has told: Redis keeps none.
    told = [queue for queue in notes.get("queues", "").split(",") if queue in consumer.queues]
    return contract.WorkerSeen(
        name=name,
        parsed=parsed,
        queues=tuple(contract.unique([*told, *consumer.queues])),
        state="busy" if consumer.task else "idle",
        pid=parsed.pid if parsed else None,
        hostname=parsed.host if parsed else None,
        birth=None,
        last_heartbeat=now - consumer.idle,
        current_task=consumer.task or None,
        finished=_count(notes, "finished") or 0,
        failed=_count(notes, "failed"),
        connected=connected,
        # What it would park it would take from the other groups.
        gates=None if set(shared).intersection(consumer.queues) else notes.get("gates"),
    )


def _count(notes: dict[str, str], outcome: str) -> Optional[int]:
    """A worker's tasks with this outcome, canaries that were not withdrawn too; None when it has never counted any."""
    counts = [int(value) for key, value in notes.items() if key.partition(":")[0] == outcome and value.isdecimal()]
    return sum(counts) if counts else None
