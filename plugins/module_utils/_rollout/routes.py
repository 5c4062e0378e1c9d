# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes: which share of a queue's tasks producers send to the workers of one version, and what share gets there. Pure.

A route is a lease: it ends by itself, so that nobody who dies leaves one behind for ever.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Optional

from .errors import BadInput, BrokerRefused, RouteRefused
from .ids import is_of_version
from .names import utc

_TAG = ".for-"
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")
STARTS_AT_LEAST = 20
"""Of fewer task starts no share is told."""


def tagged_queue(queue: str, version: str) -> str:
    """The queue to which tasks go that are for the workers of this version alone."""
    return f"{queue}{_TAG}{_NOT_IN_NAMES.sub('_', version)}"


def is_tagged(queue: str) -> bool:
    """Whether this is the queue of one version's workers."""
    return _TAG in queue


def with_tagged(groups: Sequence[Sequence[str]], version: str, apart: bool) -> list[list[str]]:
    """The queues of a release, and before each of them the one for its version.

    :param groups: one item per kind of worker process: the queues that it listens to, in order.
    :param apart: whether a queue that has worker processes of its own is to keep them: its tagged queue then gets some
        of its own, too.
    """
    found: list[list[str]] = []
    for group in groups:
        if apart and len(group) == 1:
            found += [[tagged_queue(group[0], version)], [group[0]]]
        else:
            found.append([name for queue in group for name in (tagged_queue(queue, version), queue)])
    return found


@dataclass(frozen=True)
class Route:
    """Where a share of one queue's tasks goes."""

    queue: str
    to: str
    """The queue of that version's workers."""
    version: str
    share: float
    """Per cent."""
    tasks: tuple[str, ...]
    """The names that it is for; empty for all."""
    by: str
    """Who has set it."""
    at: float
    """When (epoch seconds, by the broker's clock)."""
    until: float
    """When it ends by itself."""

    @property
    def line(self) -> str:
        """As it stands in the book of routes."""
        told = asdict(self)
        del told["queue"]
        return json.dumps(told, sort_keys=True)

    def says_as(self, other: Optional[Route]) -> bool:
        """Whether both send the same tasks to the same workers."""
        return other is not None and (self.to, self.share, self.tasks) == (other.to, other.share, other.tasks)


def route_of(
    queue: str, version: str, share: float, tasks: Iterable[str], by: str, at: float, seconds: int
) -> Route:
    """A route that is meant.

    :raises BadInput: it can't be.
    """
    if is_tagged(queue):
        raise _unusable(f"'{queue}' is itself the queue of one version's workers")
    if not version:
        raise _unusable("no version is named to whose workers tasks are to go")
    if not 0 < share <= 100:
        raise _unusable(f"a share of {share:g} % is none; give more than 0 and at most 100")
    if not by or seconds < 1:
        raise _unusable("it needs an owner and an expiry of at least 1 second")
    return Route(queue, tagged_queue(queue, version), version, share, tuple(sorted(set(tasks))), by, at, at + seconds)


def _unusable(why: str) -> BadInput:
    return BadInput(f"This route can't be: {why}.", left="Nothing was changed.")


def parse(book: Mapping[str, str]) -> dict[str, Route]:
    """The routes of a book, by their queues; also those that are over.

    :raises BrokerRefused: a line that no Backstep of this version has written.
    """
    found = {}
    for queue, line in book.items():
        try:
            told = json.loads(line)
            found[queue] = Route(queue, **{**told, "tasks": tuple(told["tasks"])})
        except (ValueError, TypeError, KeyError):
            raise BrokerRefused(
                f"The route of {queue} in the broker can't be read.",
                left="No route was changed.",
                next_step="Use the version of Backstep that has written it.",
            ) from None
    return found


def require_own(routes: Iterable[Route], owner: str, now: float) -> None:
    """Refuse to change a route that somebody else holds.

    :raises RouteRefused: one of these is another owner's, and not over.
    """
    for route in routes:
        if route.by != owner and route.until > now:
            raise RouteRefused(
                f"{route.by} sends {route.share:g} % of {route.queue} to version {route.version} until "
                f"{utc(route.until)}.",
                left="No route was changed.",
                next_step="Wait for its end, or ask them to take it away.",
                owner=route.by,
                queue=route.queue,
                until=route.until,
            )


@dataclass(frozen=True)
class Starts:
    """How many tasks a worker has begun since its birth."""

    release: str
    count: int


def effective(
    before: Mapping[str, Starts], after: Mapping[str, Starts], version: str
) -> dict[str, Any]:
    """Which share of the tasks that were begun between two looks the workers of a version have begun.

    :param before: the workers of the queue and its tagged ones, by name.
    :param after: the same, later. One that is new has begun nothing before.
    :returns: ``releases`` (task starts by release) and ``share`` (per cent; ``None`` when there were too few, or when a
        worker has ended meanwhile, which took its count along).
    """
    counts: Counter[str] = Counter()
    for name, seen in after.items():
        counts[seen.release] += max(0, seen.count - (before[name].count if name in before else 0))
    total = sum(counts.values())
    known = before.keys() <= after.keys() and total >= STARTS_AT_LEAST
    mine = sum(count for release, count in counts.items() if is_of_version(release, version))
    return {
        "releases": dict(sorted(counts.items())),
        "share": round(100 * mine / total, 1) if known else None,
    }
