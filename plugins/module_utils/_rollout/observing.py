# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was seen of a pool's queues in a rollout: single looks in, a course that fits into a journal's line out. Pure.

A look is plain JSON: ``{at, queues, workers, gone}``. ``at`` is epoch seconds by the clock of whoever asked the broker,
``queues`` the number of tasks by queue and state (None: can't be counted), ``workers`` what each has done since its
birth: ``[release, finished, failed]`` (tasks; ``failed`` None: not counted). ``gone`` names those that are not there
any more since the look before; where it is None, ``workers`` has all that are there. A look at which the broker gave
no answer has None for ``queues``: that is a gap, and never nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

from .names import parse_worker_name

STATES = ("executing", "retrying", "dead", "parked")
"""The states that are added up over the queues; ``waiting`` is kept for each."""
MOST_POINTS = 60
_MOST_QUEUES = 6
OTHERS = "other queues"
STRANGERS = "not this pool's"
"""The release of workers that Backstep did not name, or that are another pool's, on the same queues."""

AT_LENGTH = ("course", "care")
"""What an event ``observed`` tells at length."""
BEGINNINGS = ("stage_started", "switch_started", "rollback_started")
"""A rollout with one of these in a journal is one that can be reported."""

Look = Mapping[str, Any]
Point = dict[str, Any]


def look(pool: str, at: float, queues: Iterable[Mapping[str, Any]], workers: Iterable[Mapping[str, Any]]) -> Look:
    """One look at the broker.

    :param queues: each with its ``queue`` and its tasks by state.
    :param workers: each with ``name``, ``queues``, ``finished`` and ``failed``; of other queues they are left out.
    """
    counted = {str(queue["queue"]): {state: queue.get(state) for state in ("waiting", *STATES)} for queue in queues}
    ours = [worker for worker in workers if not set(worker["queues"]).isdisjoint(counted)]
    done = {str(worker["name"]): [_release(pool, worker), worker["finished"], worker["failed"]] for worker in ours}
    return {"at": at, "queues": counted, "workers": done, "gone": None}


def no_answer(at: float) -> Look:
    """A look at which the broker gave none."""
    return {"at": at, "queues": None, "workers": {}, "gone": []}


def look_of(pool: str, broker: Mapping[str, Any], now: float) -> list[Look]:
    """The look that an answer of the module ``queue_info`` is; none where nobody has asked.

    :param now: about when it was asked, for a failure, which doesn't tell.
    """
    if not broker or broker.get("skipped"):
        return []
    if broker.get("queues") is None:
        return [no_answer(now)]
    if "asked" not in broker:
        return []
    queues = [{**queue, "queue": name} for name, queue in broker["queues"].items()]
    return [look(pool, broker["asked"], queues, broker.get("workers") or [])]


def _release(pool: str, worker: Mapping[str, Any]) -> str:
    named = parse_worker_name(str(worker["name"]))
    return named.release if named and named.pool == pool else STRANGERS


def observe(course: Mapping[str, Any], looks: Iterable[Look]) -> dict[str, Any]:
    """A course, with further looks in it; the one that was given is left alone.

    :param course: ``{points, workers, totals, least}``; empty before the first look. A point is a look in short:
        ``{at, waiting, states, done, ended}``, ``waiting`` by queue, ``states`` added up, ``done`` by release the tasks
        that finished and failed since the first point; these three are None in a gap. ``ended`` has the releases of
        workers that have gone since the point before: what they did last nobody has seen, so ``done`` says nothing of
        these releases there, and in ``least`` they stay, as their ``totals`` may be higher.
    """
    points: list[Point] = list(course.get("points") or [])
    workers = dict(course.get("workers") or {})
    totals = {release: list(counts) for release, counts in (course.get("totals") or {}).items()}
    least = set(course.get("least") or ())
    for each in sorted(looks, key=lambda each: float(each["at"])):
        if each["queues"] is None:
            at = round(each["at"], 1)
            points.append({"at": at, "waiting": None, "states": None, "done": None, "ended": []})
            continue
        ended = _leave(workers, each)
        least |= ended
        # Who is there at the first look has done things before that; who comes later has done all of it since.
        _count(totals, workers, each["workers"], first=not any(point["done"] is not None for point in points))
        here = {release for release, _finished, _failed, is_here in workers.values() if is_here}
        known = {release: list(counts) for release, counts in totals.items() if release in here - ended}
        points.append({**_point(each), "done": known, "ended": sorted(ended)})
    return {"points": thin(points, MOST_POINTS), "workers": workers, "totals": totals, "least": sorted(least)}


def _leave(workers: dict[str, list[Any]], each: Look) -> set[str]:
    """Note who has gone; the releases of these."""
    here = [name for name, (_release, _finished, _failed, is_here) in workers.items() if is_here]
    gone = [
        name for name in here if (name in each["gone"] if each["gone"] is not None else name not in each["workers"])
    ]
    for name in gone:
        workers[name] = [*workers[name][:3], False]
    return {workers[name][0] for name in gone}


def _count(
    totals: dict[str, list[Any]], known: dict[str, list[Any]], seen: Mapping[str, Sequence[Any]], *, first: bool
) -> None:
    for name, (release, finished, failed) in seen.items():
        before = known.get(name) or ([release, finished, failed] if first else [release, 0, 0])
        done_before, failed_before = before[1:3]
        total = totals.setdefault(release, [0, 0])
        # A canary that is withdrawn goes out of the counts again.
        total[0] += max(0, finished - done_before)
        if failed is None or failed_before is None or total[1] is None:
            total[1] = None
        else:
            total[1] += max(0, failed - failed_before)
        known[name] = [release, finished, failed, True]


def _point(each: Look) -> Point:
    queues = each["queues"]
    return {
        "at": round(each["at"], 1),
        "waiting": {name: states["waiting"] for name, states in queues.items()},
        "states": {state: _sum(states[state] for states in queues.values()) for state in STATES},
    }


def _sum(counts: Iterable[Optional[int]]) -> Optional[int]:
    found = list(counts)
    return None if None in found else sum(count for count in found if count is not None)


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many points: of those in the middle the ones go that stand closest to their neighbours.

    Gaps stay as long as there are others, and so does where workers have gone. What is left is exact, as points tell
    totals and not differences.
    """
    kept = list(points)
    while len(kept) > max(2, most):
        middle = range(1, len(kept) - 1)
        solid = [place for place in middle if kept[place]["done"] is not None and not kept[place]["ended"]] or list(
            middle
        )
        kept.pop(min(solid, key=lambda place: float(kept[place + 1]["at"]) - float(kept[place - 1]["at"])))
    return kept


def columns(course: Mapping[str, Any]) -> dict[str, Any]:
    """A course as it goes into a journal: lists of equal length, None where something was not known.

    :returns: ``at`` (epoch seconds), ``waiting`` (tasks by queue; the busiest, and the rest together), ``states``
        (tasks by state), ``finished`` and ``failed`` (tasks by release, since the first point), ``totals`` (by release
        how many in the end, ``[finished, failed]``) and ``least`` (the releases of which it may be more); empty without
        a point.
    """
    points = course.get("points") or []
    if not points:
        return {}
    names = _in_order(point["waiting"] for point in points)
    most = {name: max((point["waiting"] or {}).get(name) or 0 for point in points) for name in names}
    named = sorted(names, key=lambda name: -most[name])[: _MOST_QUEUES if len(names) > _MOST_QUEUES else None]
    rest = [name for name in names if name not in named]
    waiting = {name: [_of(point["waiting"], name) for point in points] for name in named}
    if rest:
        waiting[OTHERS] = [
            None if point["waiting"] is None else _sum(point["waiting"].get(name) for name in rest) for point in points
        ]
    done = {name: _done(points, name) for name in _in_order(point["done"] for point in points)}
    return {
        "at": [point["at"] for point in points],
        "waiting": waiting,
        "states": {state: [_of(point["states"], state) for point in points] for state in STATES},
        "finished": {release: [each[0] if each else None for each in found] for release, found in done.items()},
        "failed": {release: [each[1] if each else None for each in found] for release, found in done.items()},
        "totals": course["totals"],
        "least": course["least"],
    }


def _done(points: Sequence[Point], release: str) -> list[Optional[Sequence[Any]]]:
    """What a release has done so far at each point: from the last one on at which nobody had seen it, nothing then."""
    found: list[Optional[Sequence[Any]]] = [_of(point["done"], release) for point in points]
    first, done = next((place, done) for place, done in enumerate(found) if done is not None)
    if first and points[first - 1]["done"] is not None:
        found[first - 1] = [0, None if done[1] is None else 0]
    return found


def of_last_rollout(journal: Sequence[Mapping[str, Any]], most: int) -> list[dict[str, Any]]:
    """The last events of a journal; what was seen in rollouts before the last one is left out of them.

    Many hosts are asked at once for hundreds of events, of which a report needs these long ones of one rollout alone.

    :param most: how many events.
    """
    last = max((event["token"] for event in journal if event["event"] in BEGINNINGS), default=0)
    return [
        {name: value for name, value in event.items() if event["token"] >= last or name not in AT_LENGTH}
        for event in journal[max(0, len(journal) - most) :]
    ]


def _in_order(found: Iterable[Optional[Mapping[str, Any]]]) -> list[str]:
    return list(dict.fromkeys(name for each in found for name in each or ()))


def _of(found: Optional[Mapping[str, Any]], name: str) -> Any:
    return (found or {}).get(name)
