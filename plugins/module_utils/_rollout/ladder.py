# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the times that end a task stand in the right order: the drain's is to come first, as only it asks. Pure.

The units that Backstep writes never kill by themselves, so of the supervisor no time is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from .errors import BadInput


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
            f"acknowledged late out again after {times.again:.0f} s (its visibility time-out): it would run twice.",
            left="Nothing was changed.",
            next_step=f"Set pool_drain.timeout to less than {times.again:.0f}; or, where the app sets another "
            "visibility time-out, pool_visibility_timeout to that.",
        )
