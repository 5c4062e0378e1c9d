# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Dramatiq's processes have taken and not acknowledged: whose it is, whether it was begun, and how it comes back.

Dramatiq knows a process by a random id and its last heartbeat. Whose process it is, and what it has begun of what it
has taken ahead, its reporter tells (``backstep_dramatiq.py``). Of one without, everything may have been begun.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple, Optional

from ..engine import ABANDONED, DEAD, EXECUTING, SCHEDULED, WAITING, RecoveredTask
from . import _dramatiq_held_scripts as scripts
from ._redis import RedisLink, text
from ._redis_moves import BATCH

# After so long without a heartbeat Dramatiq takes a process for dead, unless its app has set another time.
SILENT_SECONDS = 60.0


class Note(NamedTuple):
    """What a reporter has written of a message that is being executed."""

    started: float
    id: str
    task: str


def read_note(note: Any) -> Note:
    """Read one, as it lies in Redis."""
    started, _space, facts = text(note).partition(" ")
    known_as, task = json.loads(facts)
    return Note(float(started), known_as, task)


class Process(NamedTuple):
    """A process of a Dramatiq worker that holds something of a queue."""

    broker: str
    heartbeat: str
    """Milliseconds by its own clock, as Redis writes them."""
    worker: Optional[str]
    """``None`` when it has no reporter."""
    silent: bool
    """Whether Dramatiq takes it for dead."""
    ended: bool
    """Whether it has said that it takes and begins nothing any more."""
    later: int
    """How many messages that are due later it holds."""


class Held(NamedTuple):
    """A message that a process holds."""

    process: Process
    redis_id: str
    id: str
    task: Optional[str]
    enqueued: float
    """Epoch seconds; 0 when unknown."""
    state: str
    started: Optional[float]
    place: str
    """The place that it was taken from, as the scripts name it: ``waiting`` or ``later``."""

    @property
    def begun(self) -> bool:
        """Whether it may have been begun."""
        return self.place == WAITING and (self.started is not None or self.process.worker is None)


class Look(NamedTuple):
    """One queue at one instant, unless more than a thousand processes have a heartbeat."""

    now: float
    oldest: Optional[float]
    listed: int
    later: int
    dead: int
    parked: int
    processes: list[Process]
    held: list[Held]
    """Of what is not for later."""

    def in_state(self, state: str) -> list[Held]:
        """Those in a state, the oldest first."""
        return [held for held in self.held if held.state == state]


def look(link: RedisLink, queue: str) -> Look:
    """Look at a queue."""
    processes: dict[str, Process] = {}
    held: list[Held] = []
    skip, seen = 0, BATCH
    while seen == BATCH:
        now, oldest, listed, later, dead, parked, seen, *rest = link.run(scripts.LOOK, queue, skip, BATCH)
        skip += seen
        for at in range(0, len(rest), 5):
            process = _process(float(now), *rest[at : at + 4])
            if process.broker not in processes:
                processes[process.broker] = process
                held += _held(process, rest[at + 4])
    held.sort(key=_age)
    times = [one.enqueued for one in held if one.state == WAITING and one.enqueued]
    times += [int(oldest) / 1000] if oldest else []
    first = min(times, default=None)
    return Look(float(now), first, listed, later, dead, parked, list(processes.values()), held)


def _age(held: Held) -> tuple[float, str]:
    return held.enqueued, held.id


def _process(now: float, broker: bytes, heartbeat: bytes, facts: Sequence[bytes], later: int) -> Process:
    worker, beat, timeout, ended = map(text, facts)
    # Its own clock may be wrong, and its reporter may be hindered: silent is who is silent by both.
    heard = max(float(heartbeat) / 1000, float(beat or 0))
    allowed = int(timeout) / 1000 if timeout else SILENT_SECONDS
    return Process(text(broker), text(heartbeat), worker or None, now - heard > allowed, bool(ended), later)


def _held(process: Process, facts: Sequence[bytes]) -> Iterator[Held]:
    for at in range(0, len(facts), 5):
        redis_id, note, known_as, task, enqueued = map(text, facts[at : at + 5])
        read = read_note(note) if note else None
        unsure = read is not None or process.worker is None
        state = ABANDONED if process.silent else EXECUTING if unsure else WAITING
        when = int(enqueued) / 1000 if enqueued.isdecimal() else 0.0
        name, started = (read.task, read.started) if read else (task or None, None)
        yield Held(process, redis_id, read.id if read else known_as, name, when, state, started, WAITING)


def recover(
    link: RedisLink, queue: str, workers_gone: Collection[str], to: str, dry_run: bool
) -> list[RecoveredTask]:
    """As ``Engine.recover``, for one queue. What was begun goes where it is asked to, the rest where it was."""
    found = look(link, queue)
    entries = [held for held in found.held if _is_nobodys(held, workers_gone)]
    for process in found.processes:
        if process.later and (process.worker in workers_gone or process.silent or process.ended):
            entries += held_for_later(link, queue, process)
    entries.sort(key=_age)
    taken = {held.redis_id for held in entries} if dry_run else _take_back(link, queue, entries, workers_gone, to)
    return [
        RecoveredTask(
            id=held.id,
            task=held.task,
            queue=queue,
            worker=held.process.worker,
            to=SCHEDULED if held.place == "later" else to if held.begun else WAITING,
            started=held.begun,
        )
        for held in entries
        if held.redis_id in taken
    ]


def forget(link: RedisLink, broker: str) -> None:
    """Forget a process that has ended, unless it still holds something; its reporter's keys only."""
    link.run(scripts.FORGET, broker)


def _is_nobodys(held: Held, workers_gone: Collection[str]) -> bool:
    """Whether nobody works on it, or is about to."""
    let_go = held.process.ended and not held.begun
    return held.process.worker in workers_gone or held.state == ABANDONED or let_go


def held_for_later(link: RedisLink, queue: str, process: Process) -> list[Held]:
    """What a process has taken that is due later."""
    found: dict[str, Held] = {}
    for (facts,) in link.pages(scripts.HELD_FOR_LATER, queue, process.broker, count=BATCH):
        for at in range(0, len(facts), 5):
            redis_id, known_as, task, enqueued, state = map(text, facts[at : at + 5])
            when = int(enqueued) / 1000 if enqueued.isdecimal() else 0.0
            found[redis_id] = Held(process, redis_id, known_as, task or None, when, state, None, "later")
    return list(found.values())


def _take_back(
    link: RedisLink, queue: str, entries: Sequence[Held], workers_gone: Collection[str], to: str
) -> Collection[str]:
    """Put entries in front of what waits; the Redis ids of those that were still held."""
    taken: set[str] = set()
    for end in range(len(entries), 0, -BATCH):
        facts: list[str] = []
        for held in entries[max(0, end - BATCH) : end]:
            # Who was only taken for dead may just have come back.
            heartbeat = "" if held.process.worker in workers_gone else held.process.heartbeat
            target = DEAD if held.begun and to == DEAD else held.place
            facts += [held.process.broker, heartbeat, held.place, target, held.redis_id]
        taken.update(text(redis_id) for redis_id in link.run(scripts.TAKE_BACK, queue, *facts))
    return taken
