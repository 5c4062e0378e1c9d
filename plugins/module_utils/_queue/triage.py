# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dead tasks: which of them are meant, and how they are put back without a second flood of failures.

A run has a name. Before it puts tasks back, it notes in the broker which ones and how each had died; so whoever goes
on with a run that was cut short puts none back twice, and sees what has failed again since.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional, TypeVar

from .._rollout.errors import BadInput, ReplayStopped
from .._rollout.names import parse_worker_name, utc
from .engine import (
    DEAD,
    EXECUTING,
    LISTED_AT_MOST,
    RETRYING,
    SCHEDULED,
    WAITING,
    DeadTask,
    Engine,
    Moved,
    Selection,
    unique,
)
from .engines._moves import Tally

_RUN = re.compile(r"[A-Za-z0-9_.-]{1,80}")
_KIND = re.compile(r"[A-Za-z_][\w.:]*(?=:|$)")
_CHUNK = 500
_LOOK_SECONDS = 0.5
# How long a run can be gone on with.
_NOTES_SECONDS = 7 * 24 * 3600
_LISTED_AT_MOST = 100_000
# In the order in which a task moves on.
_UNDER_WAY = (SCHEDULED, RETRYING, WAITING, EXECUTING)

Until = Callable[[float, Callable[[], bool]], bool]
"""Asks a predicate again and again until it holds or so many seconds have passed; whether it holds."""
_Seen = TypeVar("_Seen")


@dataclass(frozen=True)
class Wanted:
    """Which dead tasks are meant. All criteria have to hold; an empty one doesn't restrict."""

    ids: Collection[str] = ()
    tasks: Collection[str] = ()
    releases: Collection[str] = ()
    """In whose workers they failed. A task whose worker nobody has noted is not meant then."""
    error: str = ""
    """A part of the line that says what they failed with."""
    enqueued_after: Optional[float] = None
    enqueued_before: Optional[float] = None
    died_after: Optional[float] = None
    died_before: Optional[float] = None

    def __contains__(self, task: object) -> bool:
        return (
            isinstance(task, DeadTask)
            and (not self.ids or task.id in self.ids)
            and (not self.tasks or task.task in self.tasks)
            and (not self.releases or release_of(task) in self.releases)
            and self.error in task.error
            and _between(task.enqueued, self.enqueued_after, self.enqueued_before)
            and _between(task.died, self.died_after, self.died_before)
        )


@dataclass(frozen=True)
class Pace:
    """How fast dead tasks are put back, and when that is stopped.

    :param rate: tasks per second; ``None`` for as fast as the broker takes them.
    :param canary: so many are put back first, and have to end well before the others follow; 0 for none.
    :param canary_seconds: how long those may take.
    :param max_failed: how many may fail again before the rest is left where it is.
    """

    rate: Optional[float] = None
    canary: int = 0
    canary_seconds: float = 300.0
    max_failed: int = 0


def select(tasks: Iterable[DeadTask], wanted: Wanted, limit: Optional[int] = None) -> list[DeadTask]:
    """Those that are meant, the one that died first coming first.

    :param limit: at most so many, those that died first.
    """
    found = sorted((task for task in tasks if task in wanted), key=lambda task: (task.died or 0.0, task.id))
    return found[:limit]


def groups(tasks: Iterable[DeadTask]) -> list[dict[str, Any]]:
    """Dead tasks by queue, name, kind of error and release, the most frequent first.

    :returns: ``queue``, ``task``, ``error`` (its kind alone, or ""), ``release`` (or None), ``count``, ``first`` and
        ``last`` (when they died, epoch seconds, or None), ``expires`` (when the engine drops the first, or None).
    """
    found: dict[tuple[str, str, str, str], list[DeadTask]] = defaultdict(list)
    for task in tasks:
        found[task.queue, task.task or "", kind_of(task.error), release_of(task) or ""].append(task)
    told = [
        {
            "queue": queue,
            "task": name or None,
            "error": error,
            "release": release or None,
            "count": len(some),
            "first": min((task.died for task in some if task.died is not None), default=None),
            "last": max((task.died for task in some if task.died is not None), default=None),
            "expires": min((task.expires for task in some if task.expires is not None), default=None),
        }
        for (queue, name, error, release), some in sorted(found.items())
    ]
    return sorted(told, key=lambda group: -int(group["count"]))


def listed(tasks: Sequence[DeadTask]) -> list[dict[str, Any]]:
    """The first of them by their ids: ``id``, ``task``, ``queue``, ``release`` and ``worker`` (None: not known)."""
    return [
        {"id": task.id, "task": task.task, "queue": task.queue, "release": release_of(task), "worker": task.worker}
        for task in tasks[:LISTED_AT_MOST]
    ]


def told(tasks: Sequence[DeadTask], after: str) -> Moved:
    """What a move of these would be.

    :param after: the state that they would be in.
    """
    tally = Tally(None)
    for queue in unique(task.queue for task in tasks):
        some = [task for task in tasks if task.queue == queue]
        facts = [(task.task, task.enqueued) for task in some]
        tally.add(queue, [task.id for task in some], [DEAD] * len(some), [after] * len(some), facts)
    return tally.result()


def park(engine: Engine, queues: Sequence[str], tasks: Sequence[DeadTask], owner: str, reason: str) -> Moved:
    """Park these, not too many at once: each step of a move is told the ids of all."""
    tally = Tally(None)
    for start in range(0, len(tasks), _CHUNK):
        ids = tuple(task.id for task in tasks[start : start + _CHUNK])
        tally.join(engine.park(queues, Selection(states=(DEAD,), ids=ids), owner, reason))
    return tally.result()


def release_of(task: DeadTask) -> Optional[str]:
    """The release in whose worker a task failed, where that is known."""
    worker = parse_worker_name(task.worker or "")
    return worker.release if worker else None


def kind_of(error: str) -> str:
    """``ZeroDivisionError`` of ``ZeroDivisionError: division by zero``: what may be shown of an error."""
    found = _KIND.match(error)
    return found.group() if found else ""


class Replay:
    """One run that puts dead tasks back."""

    def __init__(self, engine: Engine, queues: Sequence[str], run: str, pace: Pace, until: Until) -> None:
        """:param until: waits.

        :raises BadInput: a name or a pace that can't be meant.
        """
        if not _RUN.fullmatch(run):
            raise BadInput(
                f"'{run}' can't be the name of a run: give up to 80 letters, digits, _, . and -.",
                left="No task was moved.",
            )
        if (pace.rate is not None and pace.rate <= 0) or min(pace.canary, pace.canary_seconds, pace.max_failed) < 0:
            raise BadInput("A rate has to be above 0, and no figure below 0.", left="No task was moved.")
        self._engine = engine
        self._queues = queues
        self._run = run
        self._pace = pace
        self._until = until
        self._book = f"replay.{run}"
        self._noted = engine.read_book(self._book)
        self._tally = Tally(None)
        self._next_look = time.monotonic()

    def open(self, tasks: Sequence[DeadTask], limit: Optional[int]) -> list[DeadTask]:
        """Those that this run hasn't put back yet, within the limit of the whole run."""
        left = [task for task in tasks if self._noted.get(task.id, task.mark) == task.mark]
        if limit is None:
            return left
        not_yet = {task.id for task in left}
        return left[: max(0, limit - sum(task_id not in not_yet for task_id in self._noted))]

    def put_back(self, tasks: Sequence[DeadTask]) -> Moved:
        """Put these back, those of the canary batch first.

        :raises ReplayStopped: too many failed again (they are parked), or the canary batch didn't end in time.
        """
        canary, rest = tasks[: self._pace.canary], tasks[self._pace.canary :]
        if canary:
            self._move(canary)
            self._await(canary, rest)
        step = _CHUNK if self._pace.rate is None else max(1, min(_CHUNK, round(self._pace.rate)))
        due = time.monotonic()
        for start in range(0, len(rest), step):
            self._until(due - time.monotonic(), _never)
            due = time.monotonic() + (0.0 if self._pace.rate is None else step / self._pace.rate)
            if time.monotonic() >= self._next_look:
                self._stop_at_failures(rest[start:])
            self._move(rest[start : start + step])
        self._stop_at_failures(())
        return self._tally.result()

    def _move(self, tasks: Sequence[DeadTask]) -> None:
        marks = {task.id: task.mark for task in tasks}
        self._engine.write_book(self._book, marks, _NOTES_SECONDS)
        self._noted.update(marks)
        self._tally.join(self._engine.replay(self._queues, Selection(states=(DEAD,), ids=tuple(marks))))

    def _await(self, canary: Sequence[DeadTask], rest: Sequence[DeadTask]) -> None:
        """Wait until the canary batch has ended."""
        ids = {task.id for task in canary}
        under_way = ids

        def has_ended() -> bool:
            nonlocal under_way
            if time.monotonic() < self._next_look:
                return False
            before, under_way = under_way, self._looking(lambda: self._under_way(ids))
            # A task that is tried again moves back; what two looks don't find has ended.
            return not before and not under_way

        ended = self._until(self._pace.canary_seconds, has_ended)
        self._stop_at_failures(rest)
        if not ended:
            raise ReplayStopped(
                f"{len(under_way)} of the {len(canary)} task(s) that were put back first had not ended after "
                f"{self._pace.canary_seconds:g} s.",
                left=self._left(rest),
                next_step=self._go_on("When they have ended"),
                run=self._run,
                under_way=sorted(under_way),
            )

    def _looking(self, look: Callable[[], _Seen]) -> _Seen:
        """Look, and not again before nine times as long has passed: no broker is to be busy with that."""
        began = time.monotonic()
        seen = look()
        ended = time.monotonic()
        self._next_look = ended + max(_LOOK_SECONDS, 9 * (ended - began))
        return seen

    def _under_way(self, ids: Collection[str]) -> set[str]:
        found: set[str] = set()
        for queue in self._queues:
            for state in _UNDER_WAY:
                if state not in self._engine.capabilities.uncountable_states:
                    listed = self._engine.task_ids(queue, state, _LISTED_AT_MOST)
                    found.update(ids if listed.cut else set(listed.ids).intersection(ids))
        return found

    def failed_again(self) -> list[DeadTask]:
        """What this run has put back and what is dead again."""
        dead = self._engine.dead_tasks(self._queues)
        return [task for task in dead if self._noted.get(task.id, task.mark) != task.mark]

    def _stop_at_failures(self, rest: Sequence[DeadTask]) -> None:
        failed = self._looking(self.failed_again)
        if len(failed) <= self._pace.max_failed:
            return
        ids = [task.id for task in failed]
        park(self._engine, self._queues, failed, f"replay {self._run}", "failed again when it was put back")
        kinds = ", ".join(sorted({kind_of(task.error) or "an error" for task in failed}))
        raise ReplayStopped(
            f"{len(failed)} task(s) that were put back failed again ({kinds}) and are parked now.",
            left=self._left(rest),
            next_step=self._go_on("Deploy a release that can do them; then"),
            run=self._run,
            failed_again=ids,
        )

    def _left(self, rest: Sequence[DeadTask]) -> str:
        return f"{self._tally.result().count} task(s) were put back, {len(rest)} are dead as before; none was deleted."

    def _go_on(self, when: str) -> str:
        return f"{when} go on with the same run: {self._run}."


def expiring(tasks: Iterable[DeadTask], before: float) -> str:
    """Says which dead tasks their engine drops before a point in time (epoch seconds); "" when there is none."""
    times = [task.expires for task in tasks if task.expires is not None and task.expires < before]
    if not times:
        return ""
    first = utc(min(times))
    return f"{len(times)} dead task(s) are dropped by their engine soon, the first at {first}; parked ones stay."


def _never() -> bool:
    return False


def _between(at: Optional[float], after: Optional[float], before: Optional[float]) -> bool:
    if after is None and before is None:
        return True
    return at is not None and (after is None or at > after) and (before is None or at < before)
