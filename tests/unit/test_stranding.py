# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a change of version would strand, and how a release is asked for its tasks."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host.manifest import engine_arguments
from ansible_collections.backstep.workers.plugins.module_utils._release_args import manifest_of
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput, TasksStranded
from ansible_collections.backstep.workers.plugins.module_utils._rollout.stranding import (
    changed_tasks,
    duration,
    names_of,
    require_consumers,
    require_consumers_back,
    require_known,
)
from ansible_collections.backstep.workers.plugins.plugin_utils.text import (
    deserted_lines,
    parking_lines,
    schedule_lines,
    staying_lines,
)
from ansible_collections.backstep.workers.plugins.plugin_utils.text_queues import to_park_lines

NOW = 1_000_000.0


def some(task: str | None, state: str = "waiting", count: int = 1, oldest: float | None = None) -> dict[str, Any]:
    return {"queue": "mail", "state": state, "task": task, "count": count, "oldest": oldest}


def test_all_but_what_is_parked_is_asked_for() -> None:
    held = [some("b"), some("a", "retrying"), some("a", "scheduled"), some("c", "dead"), some("d", "parked")]
    assert names_of([*held, some(None), some("e", "executing")]) == ["a", "b", "c", "e"]


def test_a_release_that_knows_them_all_is_let_through() -> None:
    require_known("2.0", [some("a"), some("b", "dead"), some(None, count=7)], ["b"], NOW)


def test_what_it_does_not_know_is_told_with_count_queue_and_age() -> None:
    held = [some("a", count=5, oldest=NOW - 7300), some("b"), some("c", "retrying", 2)]
    with pytest.raises(TasksStranded) as refused:
        require_known("2.0", held, ["a", "c"], NOW)
    assert "a (5 waiting in mail, the oldest since 2 h); c (2 retrying in mail)." in str(refused.value)
    assert "Nothing was switched." in str(refused.value)
    assert [task["task"] for task in refused.value.details["tasks"]] == ["a", "c"]


@pytest.mark.parametrize(("seconds", "words"), [(-5, "0 s"), (59, "59 s"), (90, "2 min"), (7200, "2 h"), (2e5, "2 d")])
def test_a_time_span_is_told_in_its_largest_unit(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_queue_with_a_backlog_needs_a_listener() -> None:
    queues = {
        "mail": {"waiting": 9}, "old": {"waiting": 3, "scheduled": None, "retrying": 1},
        "empty": {"waiting": 0, "scheduled": 0, "retrying": None}, "dead": {"waiting": 0, "dead": 4},
    }  # fmt: skip
    with pytest.raises(TasksStranded) as refused:
        require_consumers(["mail"], queues)
    assert "old (3 waiting, 1 retrying)." in str(refused.value)
    assert refused.value.details["queues"] == ["old"]
    require_consumers(["mail", "old"], queues)


def test_a_rollback_that_leaves_a_queue_with_tasks_is_refused_with_the_way_round() -> None:
    queues = {
        "mail": {"waiting": 9}, "fast": {"waiting": 3, "retrying": None}, "mail.for-2": {"waiting": 5},
        "elsewhere": {"waiting": 7}, "empty": {"waiting": 0, "dead": 2},
    }  # fmt: skip
    now = ["mail", "fast", "mail.for-2", "empty"]
    tasks = [{**some("a", count=2), "queue": "fast"}, {**some("b", count=1), "queue": "fast"}, some("b", count=9)]
    with pytest.raises(TasksStranded) as refused:
        require_consumers_back(now, ["mail"], queues, tasks, {"a"})
    assert "queues that hold tasks: fast (1 waiting)." in str(refused.value)
    assert refused.value.next_step.endswith("ansible-playbook backstep.workers.rollback -e pool_leave_queues=fast")
    require_consumers_back(now, ["mail"], queues, tasks, {"a", "b"})
    require_consumers_back(now, ["mail", "fast"], queues, tasks, ())
    with pytest.raises(TasksStranded, match=r"-e .\{\"pool_leave_queues\": "):
        require_consumers_back(["a b"], [], {"a b": {"waiting": 1}}, [], ())


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (["/opt/mail/venv/bin/celery", "-A", "mail", "worker"], ["-A", "mail", "worker"]),
        (["/usr/bin/python3", "-m", "celery", "worker"], ["worker"]),
        (["python3.11", "-m", "celery.bin.celery", "worker"], ["worker"]),
        (["/usr/bin/python3", "-m", "mail"], None),
        (["/usr/bin/python3", "celery"], None),
        (["/opt/mail/run-celery"], None),
    ],
)
def test_the_engine_s_own_program_is_known_by_its_name(command: list[str], arguments: list[str] | None) -> None:
    assert engine_arguments(command, "{app}/venv/bin/celery") == arguments


def test_how_a_release_is_asked_is_what_was_given_or_the_engine_s_own_way() -> None:
    command = ["/opt/mail/venv/bin/rq", "worker"]
    own = {"command": ["{python}", "{manifest}", "{command}"]}
    assert manifest_of({}, command, "rq") == own
    assert manifest_of({"ask": False}, command, "rq") == {}
    assert manifest_of({}, command, "") == {}
    assert manifest_of({"tasks": ["b", "a", "b"]}, command, "rq") == {"tasks": ["a", "b"]}
    assert manifest_of({"command": "bin/tasks --all"}, command, "rq") == {"command": ["bin/tasks", "--all"]}
    with pytest.raises(BadInput):
        manifest_of({"tasks": [], "command": "bin/tasks"}, command, "rq")
    versions = {"a": 2, "b": [1, "x"]}
    texts = {"a": ["2"], "b": ["1", "x"]}
    assert manifest_of({"tasks": ["a"], "versions": versions}, command, "rq") == {"tasks": ["a"], "versions": texts}
    assert manifest_of({"versions": versions}, command, "") == {"versions": texts}
    with pytest.raises(BadInput, match="no version for a"):
        manifest_of({"versions": {"a": []}}, command, "")


def test_a_release_takes_the_arguments_that_it_declares() -> None:
    newer = {"a": ["1", "2"], "b": ["2"]}
    assert changed_tasks(["a", "b", "c"], newer, {}) == {"a": "2", "b": "2"}
    assert changed_tasks(["a", "b", "c"], {}, newer) == {"b": "1"}
    assert changed_tasks(["a", "b"], newer, newer) == {}
    with pytest.raises(TasksStranded) as refused:
        require_known("2.0", [some("a"), some("b"), some("c", count=2)], ["c"], NOW, {"b": "1"})
    assert "b with version 1 of its arguments (1 waiting in mail); c (2 waiting in mail)." in str(refused.value)


def told(tasks: list[str] | None, problem: str = "", changed: dict[str, str] | None = None) -> dict[str, Any]:
    return {"release": "1.0", "tasks": tasks, "problem": problem, "changed": changed or {}}


def test_what_was_parked_on_the_way_back_is_said() -> None:
    moved = {"moved": {"count": 5, "tasks": [some("a", count=5)]}}
    named = {"tasks": []}
    (said, then) = parking_lines({"named": named, "told": [told(["a"]), told(None, "no")], "parked": [moved]})
    assert said == "  5 task(s) were parked, as 1.0 doesn't know them: a (5 waiting in mail)"
    assert "replay" in then
    newer = {"moved": {"count": 2, "tasks": [some("b", count=2)]}}
    both = [told(["a", "b"], changed={"b": "2"})]
    (said, _then) = parking_lines({"named": named, "told": both, "parked": [moved, newer]})
    assert said.startswith("  7 task(s) were parked, as 1.0 doesn't know them: a (5 waiting in mail); b with version 2")
    assert parking_lines({}) == []
    assert parking_lines({"named": named, "told": [told([])], "parked": []}) == []


def test_what_stays_where_it_is_is_said_and_not_called_parked() -> None:
    named = {"tasks": [some("a"), some("a", "dead", 3), some("b", "executing"), some("c", "dead")]}
    moved = {"moved": {"count": 1, "tasks": [some("a")]}}
    lines = parking_lines({"named": named, "told": [told(["a", "b"])], "parked": [moved]})
    assert lines[0] == "  1 task(s) were parked, as 1.0 doesn't know them: a (1 waiting in mail)"
    stay = "  ! 1.0 doesn't know, of what is executing or dead: a (3 dead in mail); b (1 executing in mail)"
    assert lines[-1] == stay
    assert parking_lines({"named": named, "told": [told(["b"])], "parked": []}) == [
        "  ! 1.0 doesn't know, of what is executing or dead: b (1 executing in mail)"
    ]
    assert staying_lines({"named": named, "told": [told(None, "no"), told([])]}) == []


def test_queues_that_the_old_release_does_not_listen_to_are_named_after_a_way_back() -> None:
    broker = {"queues": {"mail": {"waiting": 1}, "new": {"waiting": 2, "scheduled": None, "retrying": 1, "dead": 5}}}
    (line,) = deserted_lines({"listened": ["mail"]}, broker)
    assert line.startswith("  ! nobody listens to new any more (2 waiting, 1 retrying); next: ")
    assert deserted_lines({"listened": ["mail", "new"]}, broker) == []
    assert deserted_lines({"listened": []}, broker) == []


def test_a_rollback_says_before_it_begins_what_it_will_park() -> None:
    tasks = [some("a", count=5, oldest=NOW - 180), some("b", "retrying"), some("a", "dead"), some("c")]
    broker = {"tasks": tasks, "server": {"time": NOW}}
    both = [told(None, "no"), told(["a"], changed={"b": "2"})]
    (said,) = to_park_lines({"told": both}, broker)
    assert said.startswith("  to be parked, as 1.0 doesn't know them: a (5 waiting in mail, the oldest since 3 min); b")
    assert said.endswith("b with version 2 of its arguments (1 retrying in mail)")
    assert to_park_lines({"told": [told([])]}, broker) == []
    assert to_park_lines({"told": both}, {"failed": True, "msg": "no answer"}) == []


def test_what_becomes_of_the_schedule_is_said() -> None:
    changes = {"begin": ["hourly (b)", "weekly (c)"], "end": [], "unknown": ["weekly (c)"]}
    assert schedule_lines([{}, {"schedules": changes}]) == [
        "    the schedule begins: hourly (b), weekly (c)",
        "  ! the schedule has tasks that the release itself doesn't know: weekly (c)",
    ]
    assert schedule_lines([]) == []


def test_what_could_not_be_found_out_or_parked_is_said() -> None:
    named = {"tasks": []}
    lost = {"named": {"failed": True, "msg": "no answer"}, "told": [], "parked": []}
    assert parking_lines(lost) == ["  ! nobody has looked for tasks that the old release doesn't know: no answer"]
    (silent,) = parking_lines({"named": named, "told": [told(None, "it ended with 1")], "parked": []})
    assert silent == "  ! which tasks 1.0 knows could not be found out: it ended with 1"
    (refused,) = parking_lines({"named": named, "told": [told(["a"])], "parked": [{"failed": True, "msg": "no right"}]})
    assert refused == "  ! 1.0 doesn't know a, which could not be parked: no right"
    (late,) = parking_lines({"named": named, "told": [told(["a"])], "parked": [{"moved": {"count": 0, "tasks": []}}]})
    assert late == "  1.0 doesn't know a; workers had taken all of them already"
