# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""RQ on Redis, by raw commands: RQ's own counting functions change what they count, and its ``Job.fetch`` unpickles."""

from __future__ import annotations

import base64
import json
import uuid
import zlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Optional

from ..._rollout.errors import BadInput, PauseRefused
from ..._rollout.names import parse_worker_name
from .. import engine as contract
from ..engine import CANARY_PREFIX, Capabilities
from . import _rq_scripts as scripts
from ._redis import acl_rule, text
from ._redis_engine import RedisEngine
from ._redis_moves import BATCH
from ._rq_dead import LIST_DEAD, traceback_of
from ._rq_moves import Move, payload_names
from ._rq_payload import canary_payload, from_time, name_in_description, to_time
from ._rq_unclaimed import Unclaimed

_RETRYING_COUNTED_AT_MOST = 20 * BATCH
_BURIED_SECONDS = 60
_WORKER_FIELDS = (
    "queues", "state", "pid", "hostname", "birth", "last_heartbeat", "current_job",
    "successful_job_count", "failed_job_count", "death", "backstep_gates",
)  # fmt: skip
_REGISTRIES = {contract.SCHEDULED: "scheduled", contract.DEAD: "failed", contract.DEFERRED: "deferred"}
# One harmless use of each command that reading takes.
_READING = (
    ("LLEN", "rq:queue:a"), ("LRANGE", "rq:queue:a", 0, 0), ("LINDEX", "rq:queue:a", 0), ("SMEMBERS", "rq:queues"),
    ("ZRANGE", "rq:wip:a", 0, 0), ("ZCARD", "rq:failed:a"), ("ZCOUNT", "rq:failed:a", 0, 0), ("EXISTS", "rq:job:a"),
    ("HGET", "rq:job:a", "a"), ("HMGET", "rq:job:a", "a"), ("HSTRLEN", "rq:job:a", "a"), ("GET", "rq:suspended"),
    ("PTTL", "rq:suspended"), ("ZRANGEBYSCORE", "rq:wip:a", 0, 0), ("ZCARD", f"{scripts.OURS}parked:a"),
)  # fmt: skip
_CANARY_STATES = {"queued": "waiting", "started": "executing", "finished": "finished", "failed": "failed"}


class RqEngine(RedisEngine):
    """RQ 1.16 to 2 on one Redis database."""

    name = "rq"
    default_canary = "os.getpid"
    rights = acl_rule("~rq:*", "~backstep:*")
    reading = _READING
    proof = scripts.PROVE_RIGHTS
    move = Move
    list_dead = LIST_DEAD
    capabilities = Capabilities(
        pause_scope="broker",
        pause_survives_worker_restart=True,
        pause_survives_broker_restart=True,
        quiet_can_be_undone=False,
        uncountable_states=(),
        counts_failures=True,
        kill_effect="sticks",
        stuck_seconds=None,
        unknown_task="parked",
        reroutes=True,
    )

    def known_queues(self) -> list[str]:
        keys = self._link.ask("SMEMBERS", "rq:queues")
        named = {text(key)[len("rq:queue:") :] for key in keys}
        return sorted(named.union(*(worker.queues for worker in self.workers())))

    def queue_states(self, queues: Sequence[str]) -> list[contract.QueueState]:
        now = self._link.now()
        per_queue = [_state_commands(queue, now) for queue in queues]
        answers = iter(self._link.ask_all([command for commands in per_queue for command in commands]))
        counted = [[next(answers) for _command in commands] for commands in per_queue]
        heads = self._link.ask_all([("HGET", f"rq:job:{text(counts[4])}", "enqueued_at") for counts in counted])
        listening = [queue for worker in self.workers() for queue in worker.queues]
        return [
            self._queue_state(queue, counts, from_time(text(head)), now, listening.count(queue))
            for queue, counts, head in zip(queues, counted, heads)
        ]

    def _queue_state(
        self, queue: str, counts: list[Any], enqueued: Optional[float], now: float, workers: int
    ) -> contract.QueueState:
        waiting, intermediate, claims, expired, _head, scheduled, dead, kept, deferred, parked = counts
        claimed = {text(claim).partition(":")[0] for claim in claims}
        retrying = self._count_retrying(queue) if scheduled else 0
        return contract.QueueState(
            queue=queue,
            waiting=waiting + sum(text(task_id) not in claimed for task_id in intermediate),
            scheduled=scheduled - min(scheduled, retrying or 0),
            executing=len(claims) - expired,
            retrying=retrying,
            dead=dead + kept,
            parked=parked,
            abandoned=expired,
            deferred=deferred,
            oldest_waiting_seconds=None if enqueued is None else max(0.0, now - enqueued),
            workers=workers,
        )

    def _count_retrying(self, queue: str) -> Optional[int]:
        retries = 0
        for first in range(0, _RETRYING_COUNTED_AT_MOST, BATCH):
            seen, some = self._link.run(scripts.COUNT_RETRYING, queue, first, BATCH)
            retries += int(some)
            if seen < BATCH:
                return retries
        return None

    def task_ids(self, queue: str, state: str, limit: int) -> contract.TaskIds:
        ids = [task_id for task_id in self._all_ids(queue, state, limit + 1) if not task_id.startswith(CANARY_PREFIX)]
        return contract.TaskIds(tuple(ids[:limit]), len(ids) > limit)

    def _all_ids(self, queue: str, state: str, count: int) -> list[str]:
        wip = f"rq:wip:{queue}"
        if state in (contract.EXECUTING, contract.ABANDONED):
            now = self._link.now()
            bounds = (f"{now}", "+inf") if state == contract.EXECUTING else ("-inf", f"({now}")
            claims = self._link.ask("ZRANGEBYSCORE", wip, *bounds, "LIMIT", 0, count)
            return [text(claim).partition(":")[0] for claim in claims]
        if state == contract.WAITING:
            listed, popped, claims = self._link.ask_all([
                ("LRANGE", f"rq:queue:{queue}", 0, count - 1),
                ("LRANGE", f"rq:queue:{queue}:intermediate", 0, count - 1),
                ("ZRANGE", wip, 0, -1),
            ])  # fmt: skip
            claimed = {text(claim).partition(":")[0] for claim in claims}
            return [task_id for task_id in map(text, [*popped, *listed]) if task_id not in claimed]
        if state == contract.PARKED:
            return list(map(text, self._link.ask("ZRANGE", f"{scripts.OURS}parked:{queue}", 0, count - 1)))
        registry = _REGISTRIES[contract.SCHEDULED if state == contract.RETRYING else state]
        ids = [text(task_id) for task_id in self._link.ask("ZRANGE", f"rq:{registry}:{queue}", 0, count - 1)]
        if registry != "scheduled":
            return ids
        jobs = self._link.ask_all([("HMGET", f"rq:job:{task_id}", "started_at", "repeats_left") for task_id in ids])
        retries = [bool(started) and repeats is None for started, repeats in jobs]
        return [task_id for task_id, retry in zip(ids, retries) if retry == (state == contract.RETRYING)]

    def workers(self) -> list[contract.WorkerSeen]:
        names = sorted(text(key)[len("rq:worker:") :] for key in self._link.ask("SMEMBERS", "rq:workers"))
        hashes = self._link.ask_all([("HMGET", f"rq:worker:{name}", *_WORKER_FIELDS) for name in names])
        canaries = self._link.ask_all(
            [("HMGET", f"{scripts.OURS}canaries:{name}", "finished", "failed") for name in names]
        )
        connected = self._link.connected_names()
        return [
            _worker(name, fields, canary, None if connected is None else name in connected)
            for name, fields, canary in zip(names, hashes, canaries)
            if fields[4] and not fields[9]  # without a birth the registration has run out; with a death it has ended
        ]

    def executing(self, queues: Sequence[str]) -> list[contract.ExecutingTask]:
        claims = self._link.ask_all([("ZRANGE", f"rq:wip:{queue}", 0, -1) for queue in queues])
        found = [(queue, text(claim)) for queue, some in zip(queues, claims) for claim in some]
        ids = [claim.partition(":")[0] for _queue, claim in found]
        held = self._link.ask_all([("HMGET", f"rq:execution:{x}", "worker_name", "created_at") for _queue, x in found])
        jobs = self._link.ask_all([("HMGET", f"rq:job:{task_id}", "worker_name", "started_at") for task_id in ids])
        return [
            contract.ExecutingTask(
                id=task_id,
                task=name,
                queue=queue,
                worker=text(worker or job[0]) or None,
                started=float(created) if created else from_time(text(job[1])),
            )
            for (queue, _claim), task_id, name, (worker, created), job in zip(found, ids, self._names(ids), held, jobs)
        ]

    def parked_by(self, queues: Sequence[str]) -> set[str]:
        pages = (page for queue in queues for (page,) in self._link.pages(scripts.LIST_OWNERS, queue, count=BATCH))
        return {text(owner) for page in pages for owner in page}

    def _dead_of(self, queue: str, rows: Sequence[Sequence[bytes]]) -> list[contract.DeadTask]:
        told = []
        for known, task, enqueued, died, mark, error, worker, expires in rows:
            at = from_time(text(enqueued))
            shown = b"" if at is None else b"%.6f" % at
            told.append((known, task, shown, died, mark, traceback_of(error).encode(), worker, expires))
        found = super()._dead_of(queue, told)
        hidden = [task.id for task in found if task.task is None]
        names = dict(zip(hidden, payload_names(self._link, hidden)))
        return [replace(task, task=task.task or names[task.id]) for task in found]

    def _names(self, ids: Sequence[str]) -> list[Optional[str]]:
        """Task names, from the payload where it is small enough, else from the description."""
        descriptions = self._link.ask_all([("HGET", f"rq:job:{task_id}", "description") for task_id in ids])
        return [
            name or name_in_description(text(description))
            for name, description in zip(payload_names(self._link, ids), descriptions)
        ]

    def pause_state(self) -> contract.PauseState:
        paused, lease, left = self._link.ask_all([
            ("GET", "rq:suspended"),
            ("HMGET", f"{scripts.OURS}pause", "owner", "since"),
            ("PTTL", f"{scripts.OURS}pause"),
        ])  # fmt: skip
        held = lease[0] is not None
        return contract.PauseState(
            paused=paused is not None,
            by_person=paused is not None and not paused.startswith(scripts.PAUSE_MARK),
            owner=text(lease[0]) if held else None,
            since=float(lease[1]) if held else None,
            expires_in=left / 1000 if held else None,
        )

    def pause(
        self, queues: Sequence[str], owner: str, seconds: int, reach: str, dry_run: bool = False
    ) -> contract.PauseResult:
        if not owner or seconds < 1:
            raise BadInput("A pause needs an owner and an expiry of at least 1 second.", left="Nothing was paused.")
        if reach != "broker":
            self._refuse_others(queues)
        answer = self._link.run(scripts.PAUSE, owner, seconds, "dry" if dry_run else "")
        _refuse_foreign(answer)
        idle = tuple(worker.name for worker in self.workers() if worker.state not in ("suspended", "busy"))
        return contract.PauseResult(changed=answer[0] == b"taken", state=self.pause_state(), one_more=idle)

    def _refuse_others(self, queues: Sequence[str]) -> None:
        others = [queue for queue in self.known_queues() if queue not in queues]
        in_use = [
            state.queue
            for state in self.queue_states(others)
            if state.workers or any((state.waiting, state.scheduled, state.executing, state.retrying))
        ]
        if in_use:
            raise PauseRefused(
                f"RQ's pause stops every queue in this Redis database; also in use there: {', '.join(in_use)}.",
                left="Nothing was paused.",
                next_step="Allow it with reach=broker, or give the pool a Redis database of its own.",
                queues=in_use,
            )

    def resume(self, owner: str, dry_run: bool = False) -> contract.PauseResult:
        answer = self._link.run(scripts.RESUME, owner, "dry" if dry_run else "")
        _refuse_foreign(answer)
        return contract.PauseResult(changed=answer[0] == b"ended", state=self.pause_state())

    def recover(
        self,
        queues: Sequence[str],
        workers_gone: Collection[str],
        to: str,
        wait: contract.Wait = contract.once,
        dry_run: bool = False,
    ) -> list[contract.RecoveredTask]:
        contract.require_end(to)
        why = "Taken back by Backstep: its worker is gone."
        unclaimed = Unclaimed(self._link, queues, workers_gone)
        wait(unclaimed.settled)
        want = {
            "gone": dict.fromkeys(workers_gone, True),
            "nobodys": dict.fromkeys(unclaimed.nobodys, True),
            "to": to,
            "now": to_time(self._link.now()),
            "dry": dry_run,
            "result": base64.b64encode(zlib.compress(why.encode())).decode(),
        }
        found: list[tuple[str, list[str]]] = []
        for queue in queues:
            facts = [text(fact) for fact in self._link.run(scripts.RECOVER, queue, json.dumps(want))]
            found += [(queue, facts[at : at + 4]) for at in range(0, len(facts), 4)]
        if not dry_run:
            self._bury(workers_gone)
        names = self._names([facts[0] for _queue, facts in found])
        return [
            contract.RecoveredTask(task_id, name, queue, worker or None, state, started == "1")
            for (queue, (task_id, worker, state, started)), name in zip(found, names)
        ]

    def _bury(self, workers: Collection[str]) -> None:
        """Unregister dead workers as they would have done themselves."""
        for worker in self.workers():
            if worker.name in workers:
                key = f"rq:worker:{worker.name}"
                self._link.ask_all([
                    ("SREM", "rq:workers", key),
                    *(("SREM", f"rq:workers:{queue}", key) for queue in worker.queues),
                    ("HSET", key, "death", to_time(self._link.now())),
                    ("EXPIRE", key, _BURIED_SECONDS),
                ])  # fmt: skip

    def send_canary(self, queue: str, task: str, count: int, seconds: int) -> list[str]:
        ids = [f"{CANARY_PREFIX}{uuid.uuid4().hex}" for _number in range(count)]
        now = to_time(self._link.now())
        lives = dict.fromkeys(("timeout", "ttl", "result_ttl", "failure_ttl"), seconds)
        fields = {
            "status": "queued", "origin": queue, "created_at": now, "enqueued_at": now, "started_at": "",
            "ended_at": "", "description": f"{task}()", "data": canary_payload(task), **lives,
        }  # fmt: skip
        flat = [part for pair in fields.items() for part in pair]
        self._link.ask_all([
            ("SADD", "rq:queues", f"rq:queue:{queue}"),
            *(("HSET", f"rq:job:{task_id}", *flat) for task_id in ids),
            *(("EXPIRE", f"rq:job:{task_id}", seconds) for task_id in ids),
            ("LPUSH", f"rq:queue:{queue}", *ids),
        ])  # fmt: skip
        return ids

    def canaries(self, ids: Sequence[str]) -> list[contract.CanaryOutcome]:
        jobs = self._link.ask_all([("HMGET", f"rq:job:{task_id}", "status", "worker_name") for task_id in ids])
        return [
            contract.CanaryOutcome(task_id, _CANARY_STATES.get(text(status), "gone"), text(worker) or None)
            for task_id, (status, worker) in zip(ids, jobs)
        ]

    def withdraw(self, queue: str, ids: Sequence[str]) -> None:
        for task_id in ids:
            self._link.run(scripts.WITHDRAW, queue, task_id)


def _state_commands(queue: str, now: float) -> list[tuple[Any, ...]]:
    return [
        ("LLEN", f"rq:queue:{queue}"),
        ("LRANGE", f"rq:queue:{queue}:intermediate", 0, -1),
        ("ZRANGE", f"rq:wip:{queue}", 0, -1),
        ("ZCOUNT", f"rq:wip:{queue}", "-inf", f"({now}"),
        ("LINDEX", f"rq:queue:{queue}", 0),
        ("ZCARD", f"rq:scheduled:{queue}"),
        ("ZCOUNT", f"rq:failed:{queue}", now, "+inf"),
        ("ZCOUNT", f"rq:failed:{queue}", "-inf", "(0"),  # RQ's way of writing "for ever"
        ("ZCARD", f"rq:deferred:{queue}"),
        ("ZCARD", f"{scripts.OURS}parked:{queue}"),
    ]


def _worker(name: str, fields: list[Any], canaries: list[Any], connected: Optional[bool]) -> contract.WorkerSeen:
    queues, state, pid, hostname, birth, heartbeat, task, finished, failed, _death, gates = map(text, fields)
    return contract.WorkerSeen(
        name=name,
        parsed=parse_worker_name(name),
        queues=tuple(queues.split(",")) if queues else (),
        state=state or "started",
        pid=int(pid) if pid else None,
        hostname=hostname or None,
        birth=from_time(birth),
        last_heartbeat=from_time(heartbeat),
        current_task=task or None,
        finished=max(0, int(finished or 0) - int(canaries[0] or 0)),
        failed=max(0, int(failed or 0) - int(canaries[1] or 0)),
        connected=connected,
        gates=gates or None,
    )


def _refuse_foreign(answer: list[Any]) -> None:
    if answer[0] != b"held":
        return
    owner, since, left = text(answer[1]), float(answer[2]), int(answer[3]) / 1000
    raise PauseRefused(
        f"{owner} holds the pause since {to_time(since)}; it expires in {left:.0f} s.",
        left="Their pause goes on as it was.",
        next_step="Wait for it, or ask them to resume.",
        owner=owner,
        since=since,
        expires_in=left,
    )
