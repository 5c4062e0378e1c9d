# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a change of version would strand in the queues: tasks that the release which comes next can't run. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Optional

from .errors import TasksStranded

WOULD_RUN = ("waiting", "scheduled", "retrying")
"""The states out of which a worker takes tasks by itself, sooner or later."""
REFUSE, LEAVE = "refuse", "leave"
_NAMED_AT_MOST = 10
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def names_of(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of tasks that workers would take.

    :param tasks: each with ``queue``, ``state``, ``task`` (a name, or None), ``count`` and ``oldest`` (epoch seconds,
        or None).
    """
    return sorted({some["task"] for some in tasks if some["state"] in WOULD_RUN and some["task"] is not None})


def require_known(
    release: str, tasks: Sequence[Mapping[str, Any]], unknown: Collection[str], now: Optional[float]
) -> None:
    """Refuse to go on to a release that can't run what waits.

    :param unknown: the names that it doesn't know.
    :param now: the broker's clock (epoch seconds), for the ages.
    :raises TasksStranded: with names, queues, counts and ages.
    """
    found = [some for some in tasks if some["state"] in WOULD_RUN and some["task"] in unknown]
    if not found:
        return
    shown = "; ".join(sentence(some, now) for some in found[:_NAMED_AT_MOST])
    more = f"; and {len(found) - _NAMED_AT_MOST} more" if len(found) > _NAMED_AT_MOST else ""
    raise TasksStranded(
        f"Release {release} doesn't know tasks that wait to be executed: {shown}{more}.",
        left="Nothing was switched.",
        next_step="Let the workers that run now finish them, or park them (backstep.workers.task_move), and deploy "
        "again; or set pool_stranded: leave.",
        tasks=[dict(some) for some in found],
    )


def require_consumers(listened: Collection[str], queues: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to leave a queue without consumers in which tasks are to be executed.

    :param listened: the queues that the next release listens to.
    :param queues: what each queue holds, by state; None for what can't be told.
    :raises TasksStranded: with the queues and their counts.
    """
    held = {name: [(counts.get(state), state) for state in WOULD_RUN] for name, counts in queues.items()}
    left = {
        name: ", ".join(f"{count} {state}" for count, state in counts if count)
        for name, counts in held.items()
        if name not in listened and any(count for count, _state in counts)
    }
    if left:
        shown = "; ".join(f"{name} ({counts})" for name, counts in sorted(left.items()))
        raise TasksStranded(
            f"Nobody would listen any more to queues that hold tasks: {shown}.",
            left="Nothing was changed.",
            next_step="Keep them in pool_queues until they are empty; or set pool_stranded: leave.",
            queues=sorted(left),
        )


def sentence(some: Mapping[str, Any], now: Optional[float]) -> str:
    """Tasks of one name and state, for people."""
    age = "" if now is None or some["oldest"] is None else f", the oldest since {duration(now - some['oldest'])}"
    return f"{some['task']} ({some['count']} {some['state']} in {some['queue']}{age})"


def duration(seconds: float) -> str:
    """A time span in the largest unit of which there is at least one."""
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
