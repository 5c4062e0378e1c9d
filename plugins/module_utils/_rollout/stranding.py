# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a change of version would strand in the queues: tasks that the release which comes next can't run. Pure."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Optional

from .errors import TasksStranded
from .routes import is_tagged

WOULD_RUN = ("waiting", "scheduled", "retrying")
"""The states out of which a worker takes tasks by itself, sooner or later."""
STAY = ("executing", "dead")
"""The states in which tasks are compared as well, and left where they are."""
FIRST = ("1",)
"""The versions of the arguments of a task for which none is declared."""
REFUSE, LEAVE = "refuse", "leave"
_NAMED_AT_MOST = 10
_PLAIN = re.compile(r"[\w.:-]+")
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def names_of(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of tasks that workers would take, have taken, or could not do.

    :param tasks: each with ``queue``, ``state``, ``task`` (a name, or None), ``count`` and ``oldest`` (epoch seconds,
        or None).
    """
    return sorted({some["task"] for some in tasks if some["state"] in (*WOULD_RUN, *STAY) and some["task"] is not None})


def changed_tasks(
    names: Collection[str], enqueued: Mapping[str, Sequence[str]], run: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Those of these tasks whose arguments a release can't take in the version in which another one enqueues them.

    :param enqueued: what the other release declares, by name: the versions that it can run, of which it enqueues the
        last. A task that isn't declared has version 1.
    :param run: what the release declares.
    :returns: the versions in which they are enqueued, by name.
    """
    found = {}
    for name in names:
        version = enqueued.get(name, FIRST)[-1]
        if version not in run.get(name, FIRST):
            found[name] = version
    return found


def require_known(
    release: str,
    tasks: Sequence[Mapping[str, Any]],
    unknown: Collection[str],
    now: Optional[float],
    changed: Optional[Mapping[str, str]] = None,
) -> None:
    """Refuse to go on to a release that can't run what waits.

    :param unknown: the names that it doesn't know.
    :param now: the broker's clock (epoch seconds), for the ages.
    :param changed: the names that it knows with other arguments, with the version of those that wait.
    :raises TasksStranded: with names, queues, counts and ages.
    """
    changed = changed or {}
    found = [
        {**some, "version": None if some["task"] in unknown else changed.get(some["task"])}
        for some in tasks
        if some["state"] in WOULD_RUN and (some["task"] in unknown or some["task"] in changed)
    ]
    if not found:
        return
    shown = "; ".join(sentence(some, now) for some in found[:_NAMED_AT_MOST])
    more = f"; and {len(found) - _NAMED_AT_MOST} more" if len(found) > _NAMED_AT_MOST else ""
    raise TasksStranded(
        f"Release {release} doesn't know tasks that wait to be executed: {shown}{more}.",
        left="Nothing was switched.",
        next_step="Let the workers that run now finish them, or park them (backstep.workers.task_move), and deploy "
        "again; or set pool_stranded: leave.",
        tasks=found,
    )


def staying(release: str, tasks: Sequence[Mapping[str, Any]], unknown: Collection[str]) -> str:
    """Says which tasks of unknown names are left where they are; "" when there are none.

    :param unknown: the names that the release doesn't know.
    """
    found = [some for some in tasks if some["state"] in STAY and some["task"] in unknown]
    if not found:
        return ""
    shown = "; ".join(sentence(some, None) for some in found[:_NAMED_AT_MOST])
    more = f"; and {len(found) - _NAMED_AT_MOST} more" if len(found) > _NAMED_AT_MOST else ""
    return f"{release} doesn't know, of what is executing or dead: {shown}{more}"


def deserted(listened: Collection[str], queues: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The queues in which tasks are to be executed and to which nobody would listen, each with how many in which state.

    :param listened: the queues that the next release listens to.
    :param queues: what each queue holds, by state; None for what can't be told.
    """
    held = {name: [(counts.get(state), state) for state in WOULD_RUN] for name, counts in queues.items()}
    return {
        name: ", ".join(f"{count} {state}" for count, state in counts if count)
        for name, counts in held.items()
        if name not in listened and any(count for count, _state in counts)
    }


def require_consumers(listened: Collection[str], queues: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a deploy that would leave a queue without consumers in which tasks are to be executed.

    :param listened: and ``queues``: as for ``deserted``.
    :raises TasksStranded: with the queues and their counts.
    """
    left = deserted(listened, queues)
    if left:
        instead = (
            "Take the routes to their version away (backstep.workers.queue_route), which moves what lies there"
            if all(map(is_tagged, left))
            else "Keep them in pool_queues until they are empty"
        )
        raise _deserts(left, f"{instead}; or leave the tasks there: -e {_leaving(left)}")


def require_consumers_back(
    now: Collection[str],
    listened: Collection[str],
    queues: Mapping[str, Mapping[str, Any]],
    tasks: Sequence[Mapping[str, Any]],
    parked: Collection[str],
) -> None:
    """Refuse a rollback that would leave a queue without consumers in which tasks are to be executed.

    What lies in a queue for the workers of one version alone is moved back on the way, so it doesn't count.

    :param now: the queues that are listened to as it is.
    :param listened: and ``queues``: as for ``deserted``.
    :param tasks: as for ``names_of``.
    :param parked: the names of those that are parked on the way.
    :raises TasksStranded: with the queues and their counts.
    """
    stay = {name: dict(counts) for name, counts in queues.items() if name in now and not is_tagged(name)}
    for some in tasks:
        held = stay.get(some["queue"], {})
        if some["task"] in parked and held.get(some["state"]) is not None:
            held[some["state"]] = max(0, held[some["state"]] - some["count"])
    left = deserted(listened, stay)
    if left:
        command = f"ansible-playbook backstep.workers.rollback -e {_leaving(left)}"
        raise _deserts(left, f"Go back all the same, and the tasks stay there until a release listens again: {command}")


def _leaving(queues: Iterable[str]) -> str:
    """What to add to a command after ``-e`` so that these queues may be left, to be copied into a shell."""
    names = sorted(queues)
    if all(map(_PLAIN.fullmatch, names)):
        return f"pool_leave_queues={','.join(names)}"
    return shlex.quote(json.dumps({"pool_leave_queues": names}))


def _deserts(left: Mapping[str, str], next_step: str) -> TasksStranded:
    shown = "; ".join(f"{name} ({counts})" for name, counts in sorted(left.items()))
    return TasksStranded(
        f"Nobody would listen any more to queues that hold tasks: {shown}.",
        left="Nothing was changed.",
        next_step=next_step,
        queues=sorted(left),
    )


def sentence(some: Mapping[str, Any], now: Optional[float]) -> str:
    """Tasks of one name and state, for people."""
    age = "" if now is None or some["oldest"] is None else f", the oldest since {duration(now - some['oldest'])}"
    version = f" with version {some['version']} of its arguments" if some.get("version") else ""
    return f"{some['task']}{version} ({some['count']} {some['state']} in {some['queue']}{age})"


def duration(seconds: float) -> str:
    """A time span in the largest unit of which there is at least one."""
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
