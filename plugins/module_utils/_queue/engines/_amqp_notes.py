# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What workers tell of themselves in RabbitMQ, for engines whose workers keep it.

A worker's notes are the one message of the queue ``backstep.worker.<name>`` (JSON), which a new message replaces
(``x-max-length`` 1). It lives for as long as the queue ``backstep.alive.<name>`` is there, which is its connection's
own: the broker removes that in the moment in which it sees the connection end. The notes stay. Where several processes
are one worker, each has such queues, with ``#`` and something of its own behind the name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional

from ..._rollout.errors import BrokerUnreachable
from ..._rollout.names import parse_worker_name
from ..engine import ExecutingTask, WorkerSeen
from ._amqp import OURS, AmqpLink
from ._amqp_messages import is_canary

_NOTES, _ALIVE = f"{OURS}worker.", f"{OURS}alive."


class Later(NamedTuple):
    """Tasks of one queue that a worker has taken and that are due later."""

    queue: str
    state: str
    """``scheduled`` or ``retrying``."""
    tasks: int
    ids: tuple[str, ...]
    """The first of them."""
    names: dict[str, int]
    """How many there are of each name, as far as it tells."""


@dataclass
class Notes:
    """The last that a worker has told."""

    name: str
    queues: tuple[str, ...] = ()
    pid: Optional[int] = None
    birth: Optional[float] = None
    finished: int = 0
    failed: Optional[int] = None
    held: list[ExecutingTask] = field(default_factory=list)
    """What it has taken; what has no start was taken ahead."""
    canaries: dict[str, str] = field(default_factory=dict)
    """What became of canaries: ``finished`` or ``failed``, by their ids."""
    later: list[Later] = field(default_factory=list)
    """What it has taken that is due later."""
    loses: tuple[str, ...] = ()
    """Names of the tasks that are lost with it when it executes them."""
    acknowledged: frozenset[str] = frozenset()
    """Ids of what it executes and has acknowledged already: the broker doesn't give it back."""
    gates: Optional[str] = None
    """Which state of the book of gates it keeps to; ``None`` when it keeps none."""

    def add(self, other: Notes) -> None:
        """Put another process's notes to these."""
        self.queues = tuple(dict.fromkeys((*self.queues, *other.queues)))
        self.birth = min(filter(None, (self.birth, other.birth)), default=None)
        self.finished += other.finished
        self.failed = None if self.failed is None or other.failed is None else self.failed + other.failed
        self.held += other.held
        self.later += other.later
        self.canaries.update(other.canaries)
        self.loses += other.loses
        self.acknowledged |= other.acknowledged
        if self.gates is None or other.gates is None:
            self.gates = None
        elif self.gates != other.gates:
            self.gates += f" {other.gates}"  # one of them is behind, so this equals no state of the book

    @property
    def begun(self) -> list[ExecutingTask]:
        """What it executes."""
        return [task for task in self.held if task.started is not None]


class Workers:
    """All workers of a virtual host that keep notes."""

    def __init__(self, link: AmqpLink) -> None:
        self._link = link

    def living(self) -> list[Notes]:
        """The notes of the workers that live, by name."""
        names = sorted(self._alive())
        with self._link.locked(""):
            found = [(name, self._read(name)) for name in names]
        silent = [name for name, notes in found if notes is None]
        if silent and set(silent) & self._alive():
            raise BrokerUnreachable(
                f"Workers are connected to {self._link.shown} and have told nothing: {', '.join(silent)}.",
                left="What they execute is unknown, and nothing is concluded from that.",
                next_step="See that they keep the convention in docs/engines.md, and that nobody empties their queues.",
            )
        return _by_worker(notes for _name, notes in found if notes is not None)

    def gone(self, names: Collection[str]) -> list[Notes]:
        """The notes that dead workers have left, of these names."""
        left = self._of(names, _NOTES)
        with self._link.locked(""):
            found = [self._read(name) for name in sorted(left)]
        return _by_worker(notes for notes in found if notes is not None)

    def are_alive(self, names: Collection[str]) -> bool:
        """Whether the broker still has a connection of one of them."""
        return bool(self._of(names, _ALIVE))

    def forget(self, names: Collection[str]) -> None:
        """Delete the notes of dead workers."""
        for name in sorted(self._of(names, _NOTES) - self._alive()):
            self._link.delete(f"{_NOTES}{name}")

    def _alive(self) -> set[str]:
        """The processes that live."""
        queues = self._link.management.queues()
        return {queue[len(_ALIVE) :] for queue, own in queues.items() if own and queue.startswith(_ALIVE)}

    def _of(self, names: Collection[str], kind: str) -> set[str]:
        """The processes of these workers that have a queue of this kind."""
        found = (queue[len(kind) :] for queue in self._link.management.queues() if queue.startswith(kind))
        return {process for process in found if _worker_of(process) in names}

    def _read(self, name: str) -> Optional[Notes]:
        if not self._link.count(f"{_NOTES}{name}"):
            return None
        with self._link.channel() as channel:
            last = b""
            while True:
                method, _properties, body = channel.basic_get(f"{_NOTES}{name}")
                if method is None:
                    return _parsed(name, last) if last else None
                last = body


def _worker_of(process: str) -> str:
    return process.partition("#")[0]


def _by_worker(processes: Iterable[Notes]) -> list[Notes]:
    """The notes of workers, out of those of their processes."""
    found: dict[str, Notes] = {}
    for notes in processes:
        there = found.setdefault(notes.name, notes)
        if there is not notes:
            there.add(notes)
    return list(found.values())


def _parsed(process: str, body: bytes) -> Notes:
    name = _worker_of(process)
    try:
        told = json.loads(body)
        failed = told.get("failed")
        return Notes(
            name=name,
            queues=tuple(str(queue) for queue in told["queues"]),
            pid=_number(told.get("pid")),
            birth=told.get("birth"),
            finished=int(told["finished"]),
            failed=None if failed is None else int(failed),
            held=[_task(name, task) for task in told["held"]],
            canaries={str(known): str(state) for known, state in told.get("canaries", {}).items()},
            later=[_later(some) for some in told.get("later", ())],
            loses=tuple(map(str, told.get("loses", ()))),
            acknowledged=frozenset(str(task["id"]) for task in told["held"] if task.get("acknowledged")),
            gates=told.get("gates"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokerUnreachable(
            f"The notes of the worker {name} can't be read: {error!r}.",
            left="What it executes is unknown, and nothing is concluded from that.",
            next_step="See that it keeps the convention in docs/engines.md.",
        ) from None


def _number(value: Any) -> Optional[int]:
    return value if isinstance(value, int) else None


def _task(worker: str, told: dict[str, Any]) -> ExecutingTask:
    return ExecutingTask(
        id=str(told["id"]), task=told.get("task"), queue=str(told["queue"]), worker=worker, started=told.get("started")
    )


def _later(told: dict[str, Any]) -> Later:
    return Later(
        queue=str(told["queue"]),
        state=str(told["state"]),
        tasks=int(told["tasks"]),
        ids=tuple(map(str, told["ids"])),
        names={str(name): int(tasks) for name, tasks in told.get("names", {}).items()},
    )


def seen(notes: Notes, ignored: Collection[str]) -> WorkerSeen:
    """A living worker as the contract tells of it.

    :param ignored: ids of canaries that were withdrawn.
    """
    parsed = parse_worker_name(notes.name)
    counted = [state for known, state in notes.canaries.items() if known not in ignored]
    begun = [task.id for task in notes.begun]
    real = [known for known in begun if not is_canary(known)]
    return WorkerSeen(
        name=notes.name,
        parsed=parsed,
        queues=notes.queues,
        state="busy" if begun else "idle" if notes.queues else "suspended",
        pid=notes.pid if notes.pid is not None else parsed.pid if parsed else None,
        hostname=parsed.host if parsed else None,
        birth=notes.birth,
        last_heartbeat=time.time(),
        current_task=next(iter([*real, *begun]), None),
        finished=notes.finished + counted.count("finished"),
        failed=None if notes.failed is None else notes.failed + counted.count("failed"),
        connected=True,
        gates=notes.gates,
    )
