# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each task that did not simply end is named, and no more is said of it than is known."""

from __future__ import annotations

from typing import Any

from ansible_collections.backstep.workers.plugins.module_utils._rollout.care import bounded, tasks_of_care

NEW = "2.0-bbbbbbbb"
WORKER = f"mail/{NEW}/w1/1/4711"


def recovered(to: str = "waiting", **changed: Any) -> dict[str, Any]:
    task = {"id": "t1", "task": "mail.send", "queue": "mail", "worker": WORKER, "to": to, "started": True}
    return {**task, **changed}


def killed(worker: str = WORKER) -> dict[str, Any]:
    return {"host": "w1", "release": NEW, "outcome": "killed", "running": [{"worker": worker, "pids": [4711]}]}


def kinds(care: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(task["id"], task["what"], task["now"]) for task in care["tasks"]]


def test_nothing_needs_care() -> None:
    assert tasks_of_care([], [], [None, {"skipped": True}], None) == {"tasks": [], "more": 0}


def test_a_task_of_a_killed_worker_with_all_that_is_known_of_it() -> None:
    care = tasks_of_care([recovered()], [killed()], [], None)
    assert care["tasks"] == [
        {"id": "t1", "what": "killed", "now": "waiting", "task": "mail.send", "queue": "mail", "release": NEW,
         "worker": WORKER}
    ]  # fmt: skip


def test_a_killed_worker_whose_task_nobody_knows_is_named_all_the_same() -> None:
    care = tasks_of_care([], [killed()], [], None)
    assert kinds(care) == [(None, "killed", "not known")]
    assert care["tasks"][0]["worker"] == WORKER


def test_what_drained_by_itself_needs_none() -> None:
    assert tasks_of_care([], [{**killed(), "outcome": "clean", "running": []}], [], None)["tasks"] == []


def test_what_became_of_tasks_that_were_taken_back() -> None:
    tasks = [
        recovered(id="again"),
        recovered("dead", id="dead"),
        recovered("parked", id="parked"),
        recovered("lost", id="lost"),
        recovered(id="never", worker=None, started=False),
    ]
    assert kinds(tasks_of_care(tasks, [], [], None)) == [
        ("lost", "lost", "lost"),
        ("again", "runs again", "waiting"),
        ("dead", "dead", "dead"),
        ("parked", "parked", "parked"),
        ("never", "put back", "waiting"),
    ]


def test_parked_tasks_have_a_name_only_where_all_have_the_same() -> None:
    moved = {
        "ids": ["a", "b"],
        "count": 5,
        "by_queue": {"mail": 5},
        "tasks": [{"task": "mail.send", "queue": "mail", "count": 5}],
    }
    care = tasks_of_care([], [], [{"moved": moved}], None)
    assert [(task["task"], task["queue"]) for task in care["tasks"]] == [("mail.send", "mail")] * 2
    assert care["more"] == 3
    moved["tasks"].append({"task": "mail.other", "queue": "mail", "count": 1})  # type: ignore[attr-defined]
    assert tasks_of_care([], [], [{"moved": moved}], None)["tasks"][0]["task"] is None


def test_dead_tasks_each_with_its_own_release() -> None:
    task = {"id": "d1", "task": "mail.send", "queue": "mail", "release": NEW, "worker": None}
    died = {"dead": [{"count": 4}], "listed": [task]}
    care = tasks_of_care([], [], [], died)
    assert kinds(care) == [("d1", "dead", "dead")]
    assert (care["tasks"][0]["release"], care["more"]) == (NEW, 3)


def test_a_list_that_is_too_long_for_a_journal_tells_how_many_more() -> None:
    care = tasks_of_care([recovered(id=str(number)) for number in range(120)], [], [], None)
    cut = bounded({**care, "more": 7}, 100)
    assert (len(cut["tasks"]), cut["more"]) == (100, 27)
