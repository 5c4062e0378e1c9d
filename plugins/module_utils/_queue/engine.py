# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every engine can be asked: the contract between the modules and one broker.

Common to all operations: a connection or a reading that fails raises ``BrokerUnreachable``, a missing right
``BrokerRefused``; neither is ever an empty answer. A count that the engine can't tell is ``None``, never 0. Times are
epoch seconds by the broker's clock. No operation loads a payload; task arguments are never returned.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Callable, Optional

from .._rollout.errors import BadInput
from .._rollout.names import WorkerName
from .books import Books

WAITING = "waiting"
SCHEDULED = "scheduled"
EXECUTING = "executing"
RETRYING = "retrying"
DEAD = "dead"
PARKED = "parked"
ABANDONED = "abandoned"
DEFERRED = "deferred"
LOST = "lost"
LISTED_STATES = (WAITING, SCHEDULED, EXECUTING, RETRYING, DEAD, PARKED, ABANDONED, DEFERRED)

LISTED_AT_MOST = 1000

Wait = Callable[[Callable[[], bool]], bool]
"""Asks a predicate again and again until it holds or a deadline has passed, and returns whether it holds."""
RECOVER_SECONDS = 3.0
"""How long ``recover`` is given for its proofs, where nobody asks for another time. A worker claims what it has popped
within milliseconds; only one that is stopped or cut off takes longer."""
CANARY_PREFIX = "backstep-canary-"


def once(predicate: Callable[[], bool]) -> bool:
    """The ``Wait`` of those who have no time."""
    return predicate()


@dataclass(frozen=True)
class Capabilities:
    """What this engine's mechanisms are like."""

    pause_scope: str
    """``process``, ``queue`` or ``broker``: how far the pause reaches at least; ``none``: it is refused."""
    pause_survives_worker_restart: bool
    pause_survives_broker_restart: bool
    """Whether the pause is stored like a task is: as durable as the broker's own persistence."""
    quiet_can_be_undone: bool
    """Whether a worker that was quieted can be told to take tasks again without a restart."""
    uncountable_states: tuple[str, ...]
    """The states whose tasks it can't count."""
    counts_failures: bool
    """Whether a worker's failed tasks are counted apart from its finished ones."""
    kill_effect: str
    """What SIGKILL does to an executing task: it ``loses``, ``repeats`` or ``sticks``."""
    stuck_seconds: Optional[float]
    """Seconds until a killed worker's task comes back by itself; ``None`` when it doesn't without a recovery step."""
    unknown_task: str
    """What a task comes to that the worker doesn't know: ``dead``, ``lost``, ``retried``, ``done`` or ``parked``."""
    put_back: str = "first"
    """Where a task goes that is replayed or recovered to waiting: ``first``, before all that wait, or ``last``.
    What the broker gives back by itself (``kill_effect`` is ``repeats``) has its old place."""
    reroutes: bool = False
    """Whether tasks can be moved to another queue; else their own queue's workers have to finish them."""


@dataclass(frozen=True)
class QueueState:
    """Tasks of one queue, counted at one instant."""

    queue: str
    waiting: Optional[int]
    scheduled: Optional[int]
    """Due later. Contains the retrying ones when these can't be told apart (``retrying`` is ``None``)."""
    executing: Optional[int]
    retrying: Optional[int]
    dead: Optional[int]
    parked: Optional[int]
    abandoned: Optional[int]
    """Claimed by a worker that has stopped reporting, and not given back yet."""
    deferred: Optional[int]
    """Waiting for another task to finish first."""
    oldest_waiting_seconds: Optional[float]
    """Age of the task that is next; ``None`` when nothing waits or its age is unknown."""
    workers: Optional[int]
    """Live workers that listen to this queue."""


@dataclass(frozen=True)
class WorkerSeen:
    """A worker that is registered with the broker."""

    name: str
    parsed: Optional[WorkerName]
    """``None`` when Backstep did not give the name."""
    queues: tuple[str, ...]
    state: str
    """``started``, ``idle``, ``busy`` (with a task), or ``suspended`` (has seen the pause and takes nothing)."""
    pid: Optional[int]
    hostname: Optional[str]
    birth: Optional[float]
    last_heartbeat: Optional[float]
    current_task: Optional[str]
    finished: int
    """Tasks finished since its birth, canaries not counted; failed ones too where these can't be told apart."""
    failed: Optional[int]
    """Tasks failed since its birth, canaries not counted; ``None`` when the engine doesn't count them."""
    connected: Optional[bool]
    """Its connection is seen. ``False`` alone proves no death: one that had to reconnect may carry no name."""
    gates: Optional[str] = None
    """Which state of the book of gates it keeps to: ``books.ALWAYS_FRESH``, or a ``books.digest``; ``None``: none."""


@dataclass(frozen=True)
class ExecutingTask:
    """A task that a worker holds."""

    id: str
    task: Optional[str]
    """The task's name, or ``None`` when it can't be told without loading the payload."""
    queue: str
    worker: Optional[str]
    started: Optional[float]


@dataclass(frozen=True)
class TaskIds:
    """Task ids of one queue and state; ``cut`` when there are more than were asked for."""

    ids: tuple[str, ...]
    cut: bool


@dataclass(frozen=True)
class PauseState:
    """Whether workers are told to take nothing, and by whom."""

    paused: bool
    by_person: bool
    """Paused by somebody other than Backstep; stays when the lease ends."""
    owner: Optional[str]
    """Who holds the lease, also when the pause itself is a person's."""
    since: Optional[float]
    expires_in: Optional[float]
    """Seconds until the lease runs out."""


@dataclass(frozen=True)
class PauseResult:
    """What ``pause`` or ``resume`` did."""

    changed: bool
    state: PauseState
    one_more: tuple[str, ...] = ()
    """Names of idle workers that may each take one more task in spite of the pause."""


@dataclass(frozen=True)
class Selection:
    """Which tasks to move. All criteria have to hold; an empty one doesn't restrict."""

    states: tuple[str, ...]
    ids: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    """Task names."""
    enqueued_after: Optional[float] = None
    enqueued_before: Optional[float] = None
    limit: Optional[int] = None
    """At most so many tasks: the oldest when replaying, any when parking."""


@dataclass(frozen=True)
class NamedTasks:
    """How many tasks of one name are in one state of a queue."""

    queue: str
    state: str
    task: Optional[str]
    """``None`` where a task doesn't tell its name."""
    count: int
    oldest: Optional[float]
    """When the oldest was enqueued (epoch seconds); ``None`` where none of them tells that."""


@dataclass(frozen=True)
class DeadTask:
    """A task that its engine tries no more."""

    id: str
    task: Optional[str]
    queue: str
    enqueued: Optional[float]
    died: Optional[float]
    """When it failed last (epoch seconds), by the clock that the engine takes: the broker's or its worker's."""
    mark: str
    """Another one each time that it dies."""
    error: str
    """One line of what it failed with, or "". May hold what it was called with, so it is compared and never shown."""
    worker: Optional[str]
    """Whose worker it failed in."""
    expires: Optional[float]
    """When the engine drops it, unless the app has set another time; ``None`` when it keeps it."""


@dataclass(frozen=True)
class Moved:
    """What a move did, or would do (``dry_run``)."""

    by_queue: Mapping[str, int]
    before: Mapping[str, int]
    """Tasks by the state that they were in."""
    after: Mapping[str, int]
    """Tasks by the state that they are in now."""
    ids: tuple[str, ...]
    """At most ``LISTED_AT_MOST`` ids."""
    vanished: tuple[str, ...] = ()
    """Ids that were parked and that somebody has since deleted; forgotten."""
    tasks: tuple[NamedTasks, ...] = ()
    """The same by name, in the states that they were in."""

    @property
    def count(self) -> int:
        """Tasks moved."""
        return sum(self.by_queue.values())

    @property
    def cut(self) -> bool:
        """Whether ``ids`` lists only some of them."""
        return self.count > len(self.ids)


@dataclass(frozen=True)
class RecoveredTask:
    """A task that was taken back from a worker that is gone. It may have run in part, and may run twice."""

    id: str
    task: Optional[str]
    queue: str
    worker: Optional[str]
    to: str
    """The state it is in now: ``waiting``, ``scheduled`` (a retry that is due later) or ``dead``; ``parked`` where the
    engine has no place for dead ones; or ``lost``, when the worker had the only copy of it."""
    started: bool
    """Whether a worker had begun to execute it."""


@dataclass(frozen=True)
class CanaryOutcome:
    """What became of one canary task."""

    id: str
    state: str
    """``waiting``, ``executing``, ``finished``, ``failed`` or ``gone``."""
    worker: Optional[str]


class Engine(Books):
    """One broker, asked in one engine's language. A context manager: leaving it closes the connection."""

    name: str
    capabilities: Capabilities
    rights: str
    """What Backstep's own user of the broker needs, as the broker's administrator writes it."""
    default_canary: str
    """A task that any worker of this engine can run and that has no effect."""

    @abstractmethod
    def __init__(self, url: str, timeout: float) -> None:
        """Connect, or be ready to.

        :param timeout: seconds that any single answer may take.
        :raises BadInput: the URL can't be used.
        """

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Give the connection back. Never raises."""

    @abstractmethod
    def check(self, write: bool) -> dict[str, Any]:
        """Facts about the server that answered: ``version``, ``role``, ``address``, ``uptime`` (seconds, or ``None``
        when that isn't told to this user), ``time`` (epoch seconds).

        :param write: also prove that the rights for pausing and moving are there (leaves nothing behind).
        :raises BrokerRefused: rights are missing; ``details['missing']`` lists them by name.
        """

    @abstractmethod
    def known_queues(self) -> list[str]:
        """Every queue that the broker knows of, sorted."""

    @abstractmethod
    def queue_states(self, queues: Sequence[str]) -> list[QueueState]:
        """The state of each queue, all taken at one instant. A queue that doesn't exist has zeros."""

    @abstractmethod
    def task_ids(self, queue: str, state: str, limit: int) -> TaskIds:
        """Ids of tasks in one of ``LISTED_STATES``, canaries left out, at most ``limit``."""

    @abstractmethod
    def named_tasks(self, queues: Sequence[str]) -> list[NamedTasks]:
        """Every task by its name, sorted by queue, state and name: what lies in these queues, what workers have taken
        ahead, and what they execute (what is abandoned counts as that). Canaries are left out; no argument is decoded.
        """

    @abstractmethod
    def dead_tasks(self, queues: Sequence[str]) -> list[DeadTask]:
        """Every dead task, canaries left out; none where the engine has no place for them (``uncountable_states``)."""

    @abstractmethod
    def workers(self) -> list[WorkerSeen]:
        """Every registered worker, sorted by name."""

    @abstractmethod
    def executing(self, queues: Sequence[str]) -> list[ExecutingTask]:
        """Tasks that workers hold, abandoned ones too."""

    def lost_when_killed(self) -> list[str]:
        """Names of the tasks, sorted, that are lost with a worker that is killed while it executes them.

        As the living workers say it, so where none lives there are none; and none where nothing is ever lost.
        """
        return []

    @abstractmethod
    def pause_state(self) -> PauseState:
        """The pause as the workers see it now."""

    @abstractmethod
    def pause(self, queues: Sequence[str], owner: str, seconds: int, reach: str, dry_run: bool = False) -> PauseResult:
        """Have the queues hand out nothing, for ``seconds`` unless extended; the same owner extends by asking again.

        :param reach: ``queue`` (these queues and no others) or ``broker`` (whatever the engine's pause reaches).
        :raises PauseRefused: another owner holds the lease, the pause would reach further than ``reach``, or the engine
            has none that ends by itself.
        """

    @abstractmethod
    def resume(self, owner: str, dry_run: bool = False) -> PauseResult:
        """End the lease. A pause that a person made, before or since, stays.

        :raises PauseRefused: another owner holds the lease, or the engine has no pause.
        """

    @abstractmethod
    def park(
        self, queues: Sequence[str], selection: Selection, owner: str, reason: str, dry_run: bool = False
    ) -> Moved:
        """Move tasks out of the workers' reach, everything about them kept.

        Killed at any moment, each task is in exactly one place, and the same call finishes the rest. Moves what is
        there when it is called; tasks that arrive meanwhile may be left.

        :param selection: states ``waiting``, ``scheduled``, ``retrying``, ``dead``.
        """

    @abstractmethod
    def parked_by(self, queues: Sequence[str]) -> set[str]:
        """Who has parked what is parked: owners, and the names of workers that did so by themselves."""

    @abstractmethod
    def replay(self, queues: Sequence[str], selection: Selection, dry_run: bool = False) -> Moved:
        """Put parked tasks back where they were: waiting ones in front in their old order (or behind what waits, see
        ``Capabilities.put_back``), scheduled ones at their due time, dead ones as waiting.

        State ``dead`` in the selection does the latter without parking first.

        :param selection: states ``parked``, ``dead``.
        """

    @abstractmethod
    def reroute(self, source: str, target: str, dry_run: bool = False) -> Moved:
        """Move what lies in one queue to another, where it is in the state that it was in; canaries and what is parked
        stay. Where ``Capabilities.put_back`` says so, waiting ones go first there, in their old order; else last.

        Everything about a task is kept but for the place that names its queue. Killed at any moment, each task is in
        exactly one place, and the same call finishes the rest.

        :raises BadInput: the engine can't (``Capabilities.reroutes``), and something lies there.
        """

    @abstractmethod
    def recover(
        self,
        queues: Sequence[str],
        workers_gone: Collection[str],
        to: str,
        wait: Wait = once,
        dry_run: bool = False,
    ) -> list[RecoveredTask]:
        """Take back at once what dead workers held, what is abandoned, and what a worker has taken and let go of.

        :param workers_gone: names of workers whose processes the caller has proven dead, with all their children.
        :param to: ``waiting`` (run again), or ``dead`` (the engine's own treatment of a failed task, retries included;
            parked where it has none).
        :param wait: for a proof that takes several looks, of a task that no living worker is about to start.
        """

    @abstractmethod
    def send_canary(self, queue: str, task: str, count: int, seconds: int) -> list[str]:
        """Put ``count`` canary tasks in front of a queue, or behind what waits where the broker knows no front; they
        dissolve by themselves after ``seconds``.

        :param task: a task's name (``default_canary`` for one that any worker can run); called without arguments.
        """

    @abstractmethod
    def canaries(self, ids: Sequence[str]) -> list[CanaryOutcome]:
        """What became of canaries."""

    @abstractmethod
    def withdraw(self, queue: str, ids: Sequence[str]) -> None:
        """Remove canaries with their traces, also from the workers' counts. Executing ones run to their end."""


def require_end(to: str) -> None:
    """Refuse an end that recovered tasks can't come to.

    :raises BadInput: neither ``waiting`` nor ``dead``.
    """
    if to not in (WAITING, DEAD):
        raise BadInput(f"Tasks can be recovered to waiting or dead, not to '{to}'.", left="No task was moved.")


def unique(names: Iterable[str]) -> list[str]:
    """Names without repetitions, in the order of their first appearance."""
    return list(dict.fromkeys(names))
