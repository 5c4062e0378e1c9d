# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tasks of a rollout that need care, by id: whatever did not simply end, and what became of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

from .names import parse_worker_name

KILLED, AGAIN, PUT_BACK, LOST, PARKED, DEAD = "killed", "runs again", "put back", "lost", "parked", "dead"
MOST_NOTED = 100
"""How many of them a journal has by their ids. Of the others it has the number."""

Answer = Mapping[str, Any]
Needing = dict[str, Any]


def tasks_of_care(
    recovered: Iterable[Mapping[str, Any]],
    drained: Iterable[Mapping[str, Any]],
    parked: Iterable[Optional[Answer]],
    died: Optional[Answer],
) -> dict[str, Any]:
    """The tasks that need care.

    :param recovered: tasks that were taken back from workers that are gone, as from the module ``task_move``.
    :param drained: how releases were drained; see ``record.note_step``.
    :param parked: what was parked on the way back: answers of ``task_move``.
    :param died: what died in the rollout: its answer in check mode.
    :returns: ``tasks``: ``{id, what, now, task, queue, release, worker}``, the ones that may be lost first, and
        ``more``: how many there are besides, whose ids nobody was told. What isn't known is None.
    """
    ended = [worker for each in drained if each["outcome"] == KILLED for worker in each.get("running") or []]
    killed = {str(worker["worker"]): "" for worker in ended}
    found = [_recovered(task, killed) for task in recovered]
    held = {task["worker"] for task in found}
    found += [_entry(None, KILLED, "not known", worker=name) for name in killed if name not in held]
    more = 0
    for answer in parked:
        some, cut = _moved(answer, PARKED)
        found, more = [*found, *some], more + cut
    some, cut = _dead(died)
    order = (LOST, KILLED, AGAIN, DEAD, PARKED, PUT_BACK)
    return {"tasks": sorted([*found, *some], key=lambda task: order.index(task["what"])), "more": more + cut}


def bounded(care: Mapping[str, Any], most: int = MOST_NOTED) -> dict[str, Any]:
    """The same, with at most so many tasks by their ids, and the others counted."""
    tasks: Sequence[Needing] = care["tasks"]
    return {"tasks": tasks[:most], "more": care["more"] + max(0, len(tasks) - most)}


def _entry(task_id: Optional[str], what: str, now: str, **known: Any) -> Needing:
    worker = known.get("worker")
    named = parse_worker_name(worker or "")
    return {
        "id": task_id,
        "what": what,
        "now": now,
        "task": known.get("task"),
        "queue": known.get("queue"),
        "release": known.get("release") or (named.release if named else None),
        "worker": worker,
    }


def _recovered(task: Mapping[str, Any], killed: Mapping[str, str]) -> Needing:
    what = LOST if task["to"] == LOST else KILLED if task.get("worker") in killed else AGAIN
    if what == AGAIN and task["to"] in (DEAD, PARKED):
        what = str(task["to"])
    elif what == AGAIN and not task["started"] and not task.get("worker"):
        what = PUT_BACK
    known = {name: task.get(name) for name in ("task", "queue", "worker")}
    return _entry(task["id"], what, str(task["to"]), **known)


def _moved(answer: Optional[Answer], what: str) -> tuple[list[Needing], int]:
    """The tasks of a move; their names only where all have the same, as a move doesn't tell them one by one."""
    moved = (answer or {}).get("moved")
    if not moved:
        return [], 0
    names, queues = {some["task"] for some in moved["tasks"]}, list(moved["by_queue"])
    known = {
        "task": names.pop() if len(names) == 1 else None,
        "queue": queues[0] if len(queues) == 1 else None,
    }
    return [_entry(task, what, what, **known) for task in moved["ids"]], moved["count"] - len(moved["ids"])


def _dead(died: Optional[Answer]) -> tuple[list[Needing], int]:
    if not died or "dead" not in died:
        return [], 0
    listed = died.get("listed") or []
    total = sum(group["count"] for group in died["dead"])
    found = [
        _entry(task["id"], DEAD, DEAD, **{name: task[name] for name in ("task", "queue", "release", "worker")})
        for task in listed
    ]
    return found, total - len(found)
