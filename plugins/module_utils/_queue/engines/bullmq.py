# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""BullMQ 5 and 6 on Redis, by raw commands and without Node: no job's data is read.

BullMQ registers its workers nowhere but in the names of their connections, and keeps no counts of theirs: what a worker
has finished and failed is told by the jobs that are kept (measured with bullmq 6.7).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Any, Optional

from ..._rollout.errors import BadInput, BrokerRefused
from ..._rollout.names import parse_worker_name
from .. import engine as contract
from ..books import ALWAYS_FRESH
from ..engine import CANARY_PREFIX, Capabilities, unique
from ..url import PREFIX_OPTION, clustered, taken_out
from . import _bullmq_scripts as scripts
from ._bullmq_dead import LIST_DEAD
from ._bullmq_keys import BULL, OURS, PrefixedLink
from ._bullmq_moves import Move
from ._bullmq_outcomes import Outcomes, outcomes
from ._redis import acl_rule, text
from ._redis_engine import PauselessEngine
from ._redis_moves import BATCH

_RETRYING_COUNTED_AT_MOST = 20 * BATCH
_STALLED_SECONDS = 90.0
# What a prefix may consist of; it becomes a part of scripts.
_PREFIX = re.compile(r"[A-Za-z0-9_.:{}-]+")
_HASH_TAG = re.compile(r"\{[^{}]+\}")
_CANARY_ID = re.compile(re.escape(CANARY_PREFIX) + r"[0-9a-f]{32}-(.*)", re.DOTALL)
_PLACES = {
    contract.WAITING: ("wait", "paused", "prioritized"), contract.SCHEDULED: ("delayed",),
    contract.RETRYING: ("delayed",), contract.DEAD: ("failed",), contract.DEFERRED: ("waiting-children",),
    contract.PARKED: ("parked",),
}  # fmt: skip
# One harmless use of each command that reading takes.
_READING = (
    ("SCAN", 0), ("CLIENT", "LIST"), ("EVAL", "return 1", 0), ("LLEN", "bull:a:wait"),
    ("LRANGE", "bull:a:active", 0, 0), ("LINDEX", "bull:a:wait", -1), ("ZCARD", "bull:a:failed"),
    ("ZRANGE", "bull:a:failed", 0, 0), ("ZREVRANGE", "bull:a:completed", 0, 0), ("ZSCORE", "bull:a:failed", "b"),
    ("ZREVRANGEBYSCORE", f"{OURS}parked:a", 0, 0), ("EXISTS", "bull:a:b:lock"), ("HGET", "bull:a:b", "name"),
    ("HMGET", "bull:a:b", "name"), ("HEXISTS", "bull:a:meta", "paused"), ("ZCARD", f"{OURS}parked:a"),
    ("HGETALL", f"{OURS}worker:a"),
)  # fmt: skip


class BullmqEngine(PauselessEngine):
    """BullMQ 5 and 6 on one Redis database, or on a cluster where its prefix of keys is a hash tag."""

    name = "bullmq"
    default_canary = "backstep-canary"
    rights = acl_rule(f"~{BULL}*", "~backstep:*")
    reading = _READING
    proof = scripts.PROVE_RIGHTS
    move = Move
    list_dead = LIST_DEAD
    no_pause = "BullMQ's pause has no end of its own: when whoever set it dies, the queue hands out nothing any more."
    none_to_end = "Backstep has paused no BullMQ queue, so there is no pause of its own to end."
    capabilities = Capabilities(
        pause_scope="none",
        pause_survives_worker_restart=False,
        pause_survives_broker_restart=False,
        quiet_can_be_undone=False,
        uncountable_states=(),
        counts_failures=True,
        kill_effect="sticks",
        stuck_seconds=_STALLED_SECONDS,
        unknown_task="dead",
    )

    def __init__(self, url: str, timeout: float) -> None:
        """:raises BadInput: no prefix that can be meant, or none that has a cluster keep all keys together."""
        url, prefix = taken_out(url, PREFIX_OPTION)
        if prefix and not _PREFIX.fullmatch(prefix):
            raise _no_prefix(prefix, "letters, digits and _.:{}-")
        if clustered(url) and not _HASH_TAG.search(prefix):
            raise _no_prefix(prefix or "bull", "a hash tag, which has a cluster keep all keys on one node")
        self._link: PrefixedLink = PrefixedLink(url, timeout, self.rights, prefix)
        self._connection = re.compile(re.escape(self._link.base) + r"([A-Za-z0-9+/]+=*):w:(.+)")

    def _ours(self) -> str:
        return self._link.ours

    def known_queues(self) -> list[str]:
        base = self._link.base
        keys = self._link.scan("hash", f"{base}*:meta")
        named = {key[len(base) : -len(":meta")] for key in keys}
        return sorted(named.union(*self._listening().values()))

    def queue_states(self, queues: Sequence[str]) -> list[contract.QueueState]:
        now = self._link.now()
        found = self._link.run(scripts.STATES, *queues)
        listening = Counter(queue for queues in self._listening().values() for queue in queues)
        return [self._queue_state(queue, facts, now, listening[queue]) for queue, facts in zip(queues, found)]

    def _queue_state(self, queue: str, facts: list[Any], now: float, workers: int) -> contract.QueueState:
        waiting, delayed, active, unlocked, failed, children, parked, since = facts
        retrying = self._count_retrying(queue) if delayed else 0
        return contract.QueueState(
            queue=queue,
            waiting=waiting,
            scheduled=delayed - min(delayed, retrying or 0),
            executing=active - unlocked,
            retrying=retrying,
            dead=failed,
            parked=parked,
            abandoned=unlocked,
            deferred=children,
            oldest_waiting_seconds=max(0.0, now - _seconds(since)) if since else None,
            workers=workers,
        )

    def _count_retrying(self, queue: str) -> Optional[int]:
        seen = list(islice(self._listed(queue, "delayed"), _RETRYING_COUNTED_AT_MOST))
        return None if len(seen) == _RETRYING_COUNTED_AT_MOST else sum(is_retry for _known, is_retry in seen)

    def _listed(self, queue: str, place: str) -> Iterator[tuple[str, bool]]:
        """The ids in a place, the next one first, and whether each is a retry that is due later."""
        skip, seen = 0, BATCH
        while seen == BATCH:
            seen, flat = self._link.run(scripts.LIST, queue, place, skip, BATCH)
            skip += seen
            yield from ((text(known), retry == b"1") for known, retry in zip(flat[::2], flat[1::2]))

    def task_ids(self, queue: str, state: str, limit: int) -> contract.TaskIds:
        ids: list[str] = []
        for known in self._ids(queue, state):
            if len(ids) > limit:
                break
            if not known.startswith(CANARY_PREFIX):
                ids.append(known)
        return contract.TaskIds(tuple(ids[:limit]), len(ids) > limit)

    def _ids(self, queue: str, state: str) -> Iterator[str]:
        if state in (contract.EXECUTING, contract.ABANDONED):
            for known, _task, _worker, _started, unlocked in self._active(queue):
                if bool(unlocked) == (state == contract.ABANDONED):
                    yield known
            return
        for place in _PLACES[state]:
            for known, is_retry in self._listed(queue, place):
                if place != "delayed" or is_retry == (state == contract.RETRYING):
                    yield known

    def _active(self, queue: str) -> list[list[str]]:
        """Id, task, worker, start, and "1" without a lock, of what workers hold."""
        flat = [text(fact) for fact in self._link.run(scripts.ACTIVE, queue)]
        return [flat[at : at + 5] for at in range(0, len(flat), 5)]

    def _listening(self) -> dict[str, list[str]]:
        """The queues of each worker that is connected, in the order in which it began to listen to them."""
        self._link.require_clients()
        found: dict[str, list[str]] = {}
        clients = [client for client in self._link.clients() if client["db"] == str(self._link.database)]
        for client in sorted(clients, key=lambda client: int(client["id"])):
            named = self._connection.fullmatch(client.get("name", ""))
            queue = _decoded(named.group(1)) if named else None
            if named and queue and queue not in found.setdefault(named.group(2), []):
                found[named.group(2)].append(queue)
        return found

    def workers(self) -> list[contract.WorkerSeen]:
        listening, now = self._listening(), self._link.now()
        queues = unique(queue for some in listening.values() for queue in some)
        held = {worker: known for queue in queues for known, _task, worker, _started, _lock in self._active(queue)}
        done, names = outcomes(self._link, queues), sorted(listening)
        told = self._link.ask_all([("HGETALL", f"{self._link.ours}worker:{name}") for name in names])
        return [
            _worker(name, tuple(listening[name]), held.get(name), done, now, {text(queue) for queue in gated})
            for name, gated in zip(names, told)
        ]

    def executing(self, queues: Sequence[str]) -> list[contract.ExecutingTask]:
        return [
            contract.ExecutingTask(
                id=known,
                task=task or None,
                queue=queue,
                worker=worker or None,
                started=_seconds(started) if started else None,
            )
            for queue in queues
            for known, task, worker, started, _unlocked in self._active(queue)
        ]

    def pause_state(self) -> contract.PauseState:
        """A queue may be paused by a person, and others not: told is a pause of all that there are."""
        queues = self.known_queues()
        paused = self._link.ask_all([("HEXISTS", f"{self._link.base}{queue}:meta", "paused") for queue in queues])
        everything = bool(queues) and all(paused)
        return contract.PauseState(everything, by_person=everything, owner=None, since=None, expires_in=None)

    def recover(
        self,
        queues: Sequence[str],
        workers_gone: Collection[str],
        to: str,
        wait: contract.Wait = contract.once,
        dry_run: bool = False,
    ) -> list[contract.RecoveredTask]:
        contract.require_end(to)
        want = {
            "gone": dict.fromkeys(workers_gone, True),
            "to": to,
            "dry": dry_run,
            "why": "Taken back by Backstep: its worker is gone.",
            "canary": CANARY_PREFIX,
        }
        found = []
        for queue in queues:
            facts = [text(fact) for fact in self._link.run(scripts.RECOVER, queue, json.dumps(want))]
            for known, task, worker, state in zip(*[iter(facts)] * 4):
                found.append(contract.RecoveredTask(known, task or None, queue, worker or None, state, True))
        return found

    def send_canary(self, queue: str, task: str, count: int, seconds: int) -> list[str]:
        ids = [f"{CANARY_PREFIX}{uuid.uuid4().hex}-{queue}" for _number in range(count)]
        if self._link.run(scripts.SEND_CANARIES, queue, task, seconds, *ids) == b"paused":
            raise BrokerRefused(
                f"A person has paused the queue {queue}, so its workers can't be tried with a canary task.",
                left="The pause goes on as it was, and no canary was sent.",
                next_step="Have it resumed, with the library's own queue.resume(), and run again.",
                queues=[queue],
            )
        return ids

    def canaries(self, ids: Sequence[str]) -> list[contract.CanaryOutcome]:
        facts = [fact for known in ids for fact in (_queue_of(known), known)]
        flat = [text(fact) for fact in self._link.run(scripts.CANARIES, *facts)]
        return [
            contract.CanaryOutcome(known, state, worker or None)
            for known, state, worker in zip(ids, flat[::2], flat[1::2])
        ]

    def withdraw(self, queue: str, ids: Sequence[str]) -> None:
        if ids:
            self._link.run(scripts.WITHDRAW, queue, *ids)


def _no_prefix(prefix: str, wanted: str) -> BadInput:
    return BadInput(
        f"The prefix '{prefix}' of BullMQ's keys can't be used here: it has to be {wanted}.",
        left="Nothing was changed.",
        next_step="Set pool_broker_url (broker_url), for example redis+cluster://host:6379,host:6379/?prefix={bull}.",
    )


def _seconds(milliseconds: Any) -> float:
    return float(milliseconds) / 1000


def _queue_of(canary: str) -> str:
    found = _CANARY_ID.fullmatch(canary)
    return found.group(1) if found else ""


def _decoded(encoded: str) -> Optional[str]:
    try:
        return base64.b64decode(encoded, validate=True).decode("utf-8", "surrogateescape")
    except binascii.Error:
        return None  # somebody else's name, which only looks like one of BullMQ's


def _worker(
    name: str, queues: tuple[str, ...], task: Optional[str], done: Outcomes, now: float, gated: Collection[str]
) -> contract.WorkerSeen:
    parsed = parse_worker_name(name)
    return contract.WorkerSeen(
        name=name,
        parsed=parsed,
        queues=queues,
        state="busy" if task else "idle",
        pid=parsed.pid if parsed else None,
        hostname=parsed.host if parsed else None,
        birth=None,
        last_heartbeat=now,
        current_task=task,
        finished=done.finished[name],
        failed=done.failed[name] if done.kept.intersection(queues) else None,
        connected=True,
        gates=ALWAYS_FRESH if set(queues) <= set(gated) else None,
    )
