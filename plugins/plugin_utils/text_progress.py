# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What people read while a step takes long: a line for all hosts together, however many there are. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

# Nothing is shown of what is over sooner.
FIRST_SECONDS = 10.0
_MOST_HOSTS = 3
# Said of a step that waits by itself, by its module; of one that doesn't, that its host gives no answer.
_DOING = {
    "release": "building and sealing the release",
    "release_hooks": "running hooks",
    "release_info": "watching the workers",
    "release_switch": "switching",
    "rollout_verdict": "waiting until each worker has finished a task",
    "task_move": "moving tasks",
    "queue_route": "changing routes",
    "worker_drain": "draining",
}


@dataclass
class Waiting:
    """How long a step has been under way on one host.

    :param module: the step's, without the collection's name.
    :param asked: who is asked for it: the host, or who reaches the broker.
    :param known: how many seconds it may wait by itself.
    :param limit: after how many it is given up; 0 is never.
    :param drain: how far its drain is; see ``drain_progress``.
    """

    host: str
    module: str
    elapsed: float
    known: float
    limit: float
    asked: str = ""
    drain: Mapping[str, Any] = field(default_factory=dict)


def pause_after(elapsed: float) -> float:
    """How long nothing is shown after a line, in seconds: the longer it takes, the less often."""
    return 10.0 if elapsed < 60 else 30.0 if elapsed < 300 else 60.0


def estimate(counts: Sequence[Sequence[float]]) -> Optional[float]:
    """How many seconds a drain will still take, at the pace so far; None when nothing has ended to tell by.

    :param counts: ``[seconds since it began, how many are left]``, oldest first.
    """
    if not counts:
        return None
    (began, most), (now, left) = counts[0], counts[-1]
    if left == 0:
        return 0.0
    return left * (now - began) / (most - left) if most > left and now > began else None


def drain_progress(
    still: Mapping[str, Any], counts: list[list[float]], tasks: Optional[Sequence[Optional[float]]]
) -> dict[str, Any]:
    """How far the drain of one host is: ``{release, count, what, oldest, estimate, left}``.

    :param still: what the host has told.
    :param counts: of the looks before; this one is added.
    :param tasks: how many seconds each task has been under way that its workers still have, as the broker tells it
        (None: it doesn't); None when the broker wasn't, or could not be, asked.
    """
    running = still["running"]
    # A worker that is just ending, or of which the broker doesn't know: what the host sees is counted then.
    told = tasks if tasks and len(tasks) >= len(running) else None
    counts.extend([*still["counts"], [still["waited"], len(running)]])
    ages = [age for age in told or () if age is not None]
    return {
        "release": still["release"],
        "count": len(told) if told else len(running),
        "what": "task" if told else "worker",
        "oldest": max(ages) if ages else None,
        "estimate": estimate(counts),
        "left": still["left"],
    }


def span(seconds: float) -> str:
    """A length of time as people say it: ``41 s``, ``4 min 10 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 120:
        return f"{minutes} min" + (f" {rest} s" if rest else "")
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h" + (f" {minutes} min" if minutes else "")


def some_hosts(hosts: Sequence[str], most: int = _MOST_HOSTS) -> str:
    """The first of them by name, and how many more."""
    rest = len(hosts) - most
    return ", ".join(hosts[:most]) + (f" and {rest} more" if rest > 0 else "")


def progress_lines(waits: Sequence[Waiting]) -> list[str]:
    """A line for each kind of step that is under way, whatever the number of hosts."""
    kinds: dict[tuple[str, str, bool], list[Waiting]] = {}
    for wait in waits:
        silent = wait.elapsed > wait.known and not wait.drain
        kinds.setdefault((wait.module, str(wait.drain.get("release", "")), silent), []).append(wait)
    return [_line(module, release, silent, group) for (module, release, silent), group in sorted(kinds.items())]


def _line(module: str, release: str, silent: bool, group: Sequence[Waiting]) -> str:
    longest = max(group, key=lambda wait: wait.elapsed)
    names = some_hosts(sorted(wait.host for wait in group))
    where = f"{len(group)} hosts ({names})" if len(group) > 1 else names
    if release:
        return _drain_line(release, where, group)
    limit = f" (given up after {span(longest.limit)})" if longest.limit else ""
    if silent:
        who = f"{where}: no answer from {longest.asked}" if longest.asked not in ("", longest.host) else where
        verb = "" if who is not where else ": no answer"
        return f"... {who}{verb} for {span(longest.elapsed)}{limit}"
    of = f" of at most {span(longest.known)}" if longest.known != float("inf") else ""
    return f"... {where}: {_DOING.get(module, 'at work')}, {span(longest.elapsed)}{of}"


def _drain_line(release: str, where: str, group: Sequence[Waiting]) -> str:
    drains = {wait.host: wait.drain for wait in group}
    whats = {drain["what"] for drain in drains.values()}
    total = sum(drain["count"] for drain in drains.values())
    what = "task" if whats == {"task"} else "worker"
    left = f"{total} {what}{'' if total == 1 else 's'} left" + ("" if what == "task" else " with a task")
    if len(drains) > 1:
        by_count = sorted(drains.items(), key=lambda item: (-item[1]["count"], item[0]))
        most = ", ".join(f"{host}: {drain['count']}" for host, drain in by_count[:_MOST_HOSTS])
        left += f" (most on {most})"
    ages = {host: drain["oldest"] for host, drain in drains.items() if drain["oldest"] is not None}
    parts = [left]
    if ages:
        host = max(ages, key=lambda name: ages[name])
        parts.append(f"oldest {span(ages[host])}" + (f" on {host}" if len(drains) > 1 else ""))
    guesses = [drain["estimate"] for drain in drains.values()]
    known = [guess for guess in guesses if guess is not None]
    parts.append(f"about {span(max(known))} more" if len(known) == len(guesses) else "no estimate yet")
    parts.append(f"deadline in {span(min(drain['left'] for drain in drains.values()))}")
    return f"... {where}: draining {release}, {', '.join(parts)}"
