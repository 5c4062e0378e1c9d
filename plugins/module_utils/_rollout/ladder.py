# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the times that end a task stand in the right order: the drain's is to come first, as only it asks. Pure.

The units that Backstep writes never kill by themselves, so of the supervisor no time is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from .errors import BadInput
from .plans import ABORT, KILL, OVERLAP, REPLACE, REQUEUE

_NAMED_AT_MOST = 10


@dataclass(frozen=True)
class WorkerTimes:
    """The times of an engine's workers, in seconds."""

    stop: Optional[float] = None
    """After which a worker that was told to stop cuts its tasks off by itself; ``None`` when it never does."""
    stop_option: str = ""
    """The option of the worker's command that sets it, with its unit."""
    again: Optional[float] = None
    """After which a task is given out again that a living worker has taken and not acknowledged; ``None``: never."""


def require_drain_time(engine: str, drain_seconds: float, times: WorkerTimes) -> None:
    """Refuse a drain that would be overtaken by the engine.

    :param drain_seconds: how long tasks may take to end.
    :raises BadInput: with the numbers.
    """
    if times.stop is not None and times.stop <= drain_seconds:
        raise BadInput(
            f"pool_drain.timeout lets a task take {drain_seconds:.0f} s to end, but a {engine} worker that was told to "
            f"stop cuts its tasks off after {times.stop:.0f} s by itself.",
            left="Nothing was changed.",
            next_step=f"Give pool_command {times.stop_option} with more than that, or set pool_drain.timeout to less "
            f"than {times.stop:.0f}.",
        )
    if times.again is not None and times.again <= drain_seconds:
        raise BadInput(
            f"pool_drain.timeout lets a task take {drain_seconds:.0f} s to end, but {engine} gives a task that is "
            f"acknowledged late out again after {times.again:.0f} s (its visibility time-out, or what RabbitMQ calls "
            "consumer_timeout): it would run twice.",
            left="Nothing was changed.",
            next_step=f"Set pool_drain.timeout to less than {times.again:.0f}; or, where the app sets another "
            "visibility time-out, pool_visibility_timeout to that.",
        )


def require_put_back(engine: str, policy: str, lost: Sequence[str]) -> None:
    """Refuse to promise that killed tasks are put back where they would be lost.

    :param policy: of the drain, when its time is over.
    :param lost: the names of tasks that go with a worker that is killed.
    :raises BadInput: with these names.
    """
    if policy == REQUEUE and lost:
        raise BadInput(
            f"pool_drain.on_timeout is {REQUEUE}, but {engine} acknowledges these tasks before they are executed, so a "
            f"killed one is lost and can't be put back: {_some(lost)}.",
            left="Nothing was changed.",
            next_step="Have the app acknowledge them late (Celery: acks_late=True, reject_on_worker_lost=True), or "
            f"choose pool_drain.on_timeout: abort, leave, or {KILL} to lose them.",
        )


def forecast(policy: str, mode: str, lost: Sequence[str]) -> str:
    """What a drain would lose whose time is over, as a line for people; "" when it would lose nothing.

    :param policy: of the drains of a deploy; a way back doesn't give up where the deploy would.
    """
    if not lost or (policy, mode) not in ((KILL, OVERLAP), (KILL, REPLACE), (ABORT, REPLACE)):
        return ""
    way = "when a drain's time is over" if policy == KILL else "on a way back when the drain's time is over"
    return f"  what still executes {way} is killed, and of these tasks lost: {_some(lost)}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
