# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What people read while a step takes long."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.plugin_utils.drain_parts import in_parts, may_drain
from ansible_collections.backstep.workers.plugins.plugin_utils.progress import Board
from ansible_collections.backstep.workers.plugins.plugin_utils.text_progress import (
    Waiting,
    drain_progress,
    estimate,
    pause_after,
    progress_lines,
    span,
)

A = "2.3.0-11d0a7b2"


def waiting(host: str = "w1", module: str = "release_info", **given: Any) -> Waiting:
    return Waiting(**{"host": host, "module": module, "elapsed": 12.0, "known": 30.0, "limit": 150.0, **given})


def still(waited: float, workers: int, counts: list[list[float]] | None = None) -> dict[str, Any]:
    running = [{"worker": f"w{number}"} for number in range(workers)]
    return {"release": A, "waited": waited, "left": 300.0 - waited, "running": running, "counts": counts or []}


def draining(host: str, count: int, oldest: float | None = None, guess: float | None = 60.0) -> Waiting:
    drain = {"release": A, "count": count, "what": "task", "oldest": oldest, "estimate": guess, "left": 288.0}
    return waiting(host, "release_switch", known=300.0, drain=drain)


def test_the_drain_of_one_host_tells_tasks_the_oldest_an_estimate_and_the_deadline() -> None:
    assert progress_lines([draining("w1", 3, oldest=41.2)]) == [
        f"... w1: draining {A}, 3 tasks left, oldest 41 s, about 60 s more, deadline in 4 min 48 s"
    ]


def test_what_is_not_known_is_not_claimed() -> None:
    (line,) = progress_lines([draining("w1", 1, guess=None)])
    assert line == f"... w1: draining {A}, 1 task left, no estimate yet, deadline in 4 min 48 s"
    (line,) = progress_lines([draining("w1", 1, guess=10.0), draining("w2", 1, guess=None)])
    assert "no estimate yet" in line, "the slowest host decides, and isn't known"


def test_a_hundred_hosts_are_one_line_that_names_the_slowest() -> None:
    group = [draining(f"w{number:03}", number % 7, float(number), float(number)) for number in range(100)]
    (line,) = progress_lines(group)
    assert line == (
        f"... 100 hosts (w000, w001, w002 and 97 more): draining {A}, 295 tasks left "
        "(most on w006: 6, w013: 6, w020: 6), oldest 99 s on w099, about 99 s more, deadline in 4 min 48 s"
    )


def test_hosts_in_different_steps_have_a_line_each() -> None:
    lines = progress_lines([draining("w1", 2), waiting("w2"), waiting("w3", elapsed=40.0, known=0.0)])
    assert len(lines) == 3


def test_a_bake_says_how_far_it_is_and_a_host_that_is_silent_when_it_is_given_up() -> None:
    assert progress_lines([waiting()]) == ["... w1: watching the workers, 12 s of at most 30 s"]
    assert progress_lines([waiting(module="release_confirm", known=0.0)]) == [
        "... w1: no answer for 12 s (given up after 2 min 30 s)"
    ]
    broker = waiting(module="queue_info", known=10.0, limit=0.0, asked="localhost")
    assert progress_lines([broker]) == ["... w1: no answer from localhost for 12 s"]
    endless = waiting(module="task_move", known=math.inf, limit=0.0)
    assert progress_lines([endless]) == ["... w1: moving tasks, 12 s"]


@pytest.mark.parametrize(
    ("counts", "seconds"),
    [
        ([], None),
        ([[2.0, 6]], None),
        ([[2.0, 6], [10.0, 6]], None),
        ([[2.0, 6], [10.0, 4]], 16.0),
        ([[2.0, 6], [10.0, 7]], None),
        ([[2.0, 6], [10.0, 4], [20.0, 0]], 0.0),
    ],
)
def test_the_estimate_is_the_pace_so_far(counts: list[list[float]], seconds: float | None) -> None:
    assert estimate(counts) == seconds


def test_tasks_are_told_where_the_broker_tells_them_and_else_workers() -> None:
    counts: list[list[float]] = []
    found = drain_progress(still(10.0, 4, [[2.0, 6]]), counts, [5.0, None, 70.0, 3.0, 1.0])
    assert (found["count"], found["what"], found["oldest"], found["estimate"]) == (5, "task", 70.0, 16.0)
    assert counts == [[2.0, 6], [10.0, 4]]
    for unheard in (None, [], [5.0]):
        found = drain_progress(still(10.0, 4), [], unheard)
        assert (found["count"], found["what"], found["oldest"]) == (4, "worker", None)


def test_lengths_of_time_are_as_people_say_them() -> None:
    assert [span(seconds) for seconds in (0.4, 119, 120, 290, 7200, 7500)] == [
        "0 s", "119 s", "2 min", "4 min 50 s", "2 h", "2 h 5 min",
    ]  # fmt: skip


def test_lines_come_at_growing_intervals() -> None:
    assert [pause_after(elapsed) for elapsed in (0, 59, 60, 299, 300)] == [10, 10, 30, 30, 60]


def test_only_steps_that_drain_are_asked_in_parts() -> None:
    assert may_drain("worker_drain", {})
    assert not may_drain("worker_drain", {"state": "running"})
    assert may_drain("release_switch", {"mode": "replace"})
    assert not may_drain("release_switch", {"mode": "overlap"})
    assert not may_drain("release_confirm", {"drain": {}})


def test_a_drain_in_parts_has_one_answer() -> None:
    answers = [
        {"changed": True, "still": still(10.0, 2), "hooks": [{"outcome": "failed"}]},
        {"changed": True, "still": still(20.0, 1), "hooks": []},
        {"changed": False, "hooks": [], "release": "2.0"},
    ]
    asked: list[tuple[float, bool]] = []
    noted: list[Any] = []

    def call(args: Any) -> dict[str, Any]:
        asked.append((args["part_seconds"], args["goes_on"]))
        return answers[len(asked) - 1]

    found = in_parts({"mode": "replace"}, call, noted.append)
    assert found == {"changed": True, "hooks": [{"outcome": "failed"}], "release": "2.0"}
    assert asked == [(10.0, False), (10.0, True), (10.0, True)]
    assert [each["count"] for each in noted] == [2, 1]


def test_a_part_that_fails_is_the_answer() -> None:
    answers = iter([{"still": still(10.0, 1)}, {"failed": True, "msg": "no"}])
    found = in_parts({}, lambda _args: next(answers), lambda _drain: None)
    assert (found["failed"], found["msg"]) == (True, "no")


def test_all_processes_of_a_run_share_one_board(tmp_path: Path) -> None:
    board, other = Board(tmp_path), Board(tmp_path)
    board.put(waiting("w1"))
    other.put(waiting("w2", known=math.inf))
    assert [entry.host for entry in sorted(board.under_way(), key=lambda entry: entry.host)] == ["w1", "w2"]
    assert (board.due(10.0), other.due(10.0), other.due(0.0)) == (True, False, True)
    board.remove("w1")
    assert [entry.host for entry in other.under_way()] == ["w2"]


def test_what_a_dead_process_has_left_is_not_shown(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.put(waiting("w1"))
    (entry,) = (tmp_path / "backstep-progress").glob("*.json")
    # No process has this number: it is above the kernel's highest.
    entry.write_text(entry.read_text().rpartition('"pid"')[0] + '"pid": 4194305}')
    assert board.under_way() == []
