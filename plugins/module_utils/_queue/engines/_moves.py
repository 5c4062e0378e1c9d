# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parking and replaying on any broker: which selections make sense, and a tally of what was moved."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Optional, Protocol

from ..._rollout.errors import BadInput
from ..engine import (
    CANARY_PREFIX,
    DEAD,
    EXECUTING,
    LISTED_AT_MOST,
    PARKED,
    RETRYING,
    SCHEDULED,
    WAITING,
    Engine,
    Moved,
    NamedTasks,
    Selection,
)

_NO_LIMIT = 2**53
Fact = tuple[Optional[str], Optional[float]]
"""A task's name, and when it was enqueued (epoch seconds); ``None`` for what it doesn't tell."""


class Tally:
    """What has been moved so far."""

    def __init__(self, limit: Optional[int]) -> None:
        self.left = _NO_LIMIT if limit is None else limit
        self.by_queue: Counter[str] = Counter()
        self.before: Counter[str] = Counter()
        self.after: Counter[str] = Counter()
        self.ids: list[str] = []
        self.vanished: list[str] = []
        self.tasks: list[NamedTasks] = []

    def add(
        self,
        queue: str,
        ids: Sequence[str],
        before: Sequence[str],
        after: Sequence[str],
        facts: Iterable[Fact],
        vanished: Sequence[str] = (),
    ) -> None:
        """:param before: the state that each of them was in. :param after: the one that each is in now."""
        one_by_one = (NamedTasks(queue, state, task, 1, at) for state, (task, at) in zip(before, facts))
        self.tasks = summed([*self.tasks, *one_by_one])
        self.by_queue[queue] += len(ids)
        self.before.update(before)
        self.after.update(after)
        self.left -= len(ids)
        self.ids.extend(ids[: max(0, LISTED_AT_MOST - len(self.ids))])
        self.vanished.extend(vanished)

    def join(self, moved: Moved) -> None:
        """Add what another move did."""
        self.by_queue.update(moved.by_queue)
        self.before.update(moved.before)
        self.after.update(moved.after)
        self.tasks = summed([*self.tasks, *moved.tasks])
        self.ids.extend(moved.ids[: max(0, LISTED_AT_MOST - len(self.ids))])
        self.vanished.extend(moved.vanished)

    def result(self) -> Moved:
        """The whole of it."""
        return Moved(
            by_queue={queue: count for queue, count in self.by_queue.items() if count},
            before=dict(self.before),
            after=dict(self.after),
            ids=tuple(self.ids),
            vanished=tuple(dict.fromkeys(self.vanished)),
            tasks=tuple(self.tasks),
        )


def summed(some: Iterable[NamedTasks]) -> list[NamedTasks]:
    """One entry for each queue, state and name, sorted by these."""
    counts: Counter[tuple[str, str, Optional[str]]] = Counter()
    oldest: dict[tuple[str, str, Optional[str]], float] = {}
    for tasks in some:
        key = (tasks.queue, tasks.state, tasks.task)
        counts[key] += tasks.count
        if tasks.oldest is not None:
            oldest[key] = min(tasks.oldest, oldest.get(key, tasks.oldest))
    return [
        NamedTasks(queue, state, task, count, oldest.get((queue, state, task)))
        for (queue, state, task), count in sorted(counts.items(), key=lambda entry: (*entry[0][:2], entry[0][2] or ""))
    ]


def require_owner(owner: str) -> None:
    """:raises BadInput: ``owner`` is empty."""
    if not owner:
        raise BadInput("Parking needs an owner, so that a second run can finish it.", left="No task was moved.")


def check_selection(selection: Selection, allowed: Sequence[str]) -> None:
    """:raises BadInput: it selects nothing, or by states that can't be moved here."""
    wrong = [state for state in selection.states if state not in allowed]
    if wrong or not selection.states:
        raise BadInput(
            f"Tasks can't be selected by the states {wrong or 'none'} here; these can: {', '.join(allowed)}.",
            left="No task was moved.",
        )
    if selection.limit is not None and selection.limit < 1:
        raise BadInput(f"A limit of {selection.limit} selects nothing; give at least 1.", left="No task was moved.")


def require_no_times(selection: Selection, engine: str) -> None:
    """:raises BadInput: it selects by times that this engine's tasks don't have."""
    if selection.enqueued_after is not None or selection.enqueued_before is not None:
        raise BadInput(
            f"{engine} notes nowhere when a task was enqueued, so tasks can't be selected by that.",
            left="No task was moved.",
            next_step="Select them by their names or ids.",
        )


class TaskMove(Protocol):
    """One park or replay, of a selection that has been found good."""

    def park(self, queues: Sequence[str], owner: str, reason: str) -> Moved:
        """As ``Engine.park``."""

    def replay(self, queues: Sequence[str]) -> Moved:
        """As ``Engine.replay``."""


class Moving(Engine):
    """Parks and replays. Dead tasks too, where the engine has a place for them, and so can count them."""

    @abstractmethod
    def _move(self, queues: Sequence[str], selection: Selection, allowed: Sequence[str], dry_run: bool) -> TaskMove:
        """A move of these queues' tasks.

        :raises BadInput: the selection names other states than the allowed ones, or can't be meant.
        """

    def park(
        self, queues: Sequence[str], selection: Selection, owner: str, reason: str, dry_run: bool = False
    ) -> Moved:
        # Where nothing is ever scheduled or retried, those find nothing.
        allowed = (WAITING, SCHEDULED, RETRYING, *self._dead())
        return self._move(queues, selection, allowed, dry_run).park(queues, owner, reason)

    def replay(self, queues: Sequence[str], selection: Selection, dry_run: bool = False) -> Moved:
        return self._move(queues, selection, (PARKED, *self._dead()), dry_run).replay(queues)

    def reroute(self, source: str, target: str, dry_run: bool = False) -> Moved:
        (state,) = self.queue_states([source])
        there = sum(count or 0 for count in (state.waiting, state.scheduled, state.retrying, state.dead))
        if there:
            raise BadInput(
                f"{there} tasks lie in {source}, and {self.name} has no safe way to move them to {target}.",
                left="They stay there.",
                next_step="Let the workers that listen to it finish them before they are stopped.",
            )
        return Tally(None).result()

    def named_tasks(self, queues: Sequence[str]) -> list[NamedTasks]:
        # In the order in which tasks move on: one that does so meanwhile is rather seen twice than not at all.
        return summed([*self._lying(queues), *self._taken(queues)])

    def _lying(self, queues: Sequence[str]) -> list[NamedTasks]:
        """What no worker has taken: all that could be parked, and what is."""
        resting = (WAITING, SCHEDULED, RETRYING, *self._dead())
        lying = self._move(queues, Selection(resting), resting, dry_run=True).park(queues, "named_tasks", "")
        parked = self._move(queues, Selection((PARKED,)), (PARKED,), dry_run=True).replay(queues)
        return [*lying.tasks, *parked.tasks]

    def _taken(self, queues: Sequence[str]) -> list[NamedTasks]:
        """What workers have taken: executing, or in the state in which it would be in its queue."""
        return [
            NamedTasks(task.queue, EXECUTING, task.task, 1, None)
            for task in self.executing(queues)
            if not task.id.startswith(CANARY_PREFIX)
        ]

    def _dead(self) -> tuple[str, ...]:
        return () if DEAD in self.capabilities.uncountable_states else (DEAD,)
