# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was seen of the queues is counted once, and what nobody could see is never nothing."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout.observing import (
    MOST_POINTS,
    OTHERS,
    STRANGERS,
    columns,
    look,
    look_of,
    no_answer,
    observe,
    of_last_rollout,
    thin,
)
from ansible_collections.backstep.workers.plugins.plugin_utils.report_rates import rates
from hypothesis import given
from hypothesis import strategies as st

OLD, NEW = "1.0-aaaaaaaa", "2.0-bbbbbbbb"


def queue(name: str = "mail", **states: Any) -> dict[str, Any]:
    return {"queue": name, "waiting": 0, "executing": 0, "retrying": 0, "dead": 0, "parked": 0, **states}


def worker(release: str, finished: int, failed: int | None = 0, pid: int = 1, **changed: Any) -> dict[str, Any]:
    name = f"mail/{release}/w1/1/{pid}"
    return {"name": name, "queues": ["mail"], "finished": finished, "failed": failed, **changed}


def at(moment: float, *workers: dict[str, Any], **states: Any) -> Any:
    return look("mail", moment, [queue(**states)], workers)


def done(*looks: Any) -> Any:
    return observe({}, looks)["points"][-1]["done"]


def test_who_was_there_before_counts_from_the_first_look() -> None:
    assert done(at(1, worker(OLD, 1000, 7))) == {OLD: [0, 0]}
    assert done(at(1, worker(OLD, 1000, 7)), at(2, worker(OLD, 1004, 8))) == {OLD: [4, 1]}


def test_who_comes_later_counts_from_its_birth() -> None:
    assert done(at(1, worker(OLD, 1000)), at(2, worker(OLD, 1000), worker(NEW, 5, 2))) == {OLD: [0, 0], NEW: [5, 2]}


def test_what_a_worker_has_done_stays_when_it_is_gone() -> None:
    looks = [at(1), at(2, worker(NEW, 5)), at(3), at(4, worker(NEW, 2, pid=2))]
    assert done(*looks) == {NEW: [7, 0]}
    told = columns(observe({}, looks))
    assert (told["totals"], told["least"]) == ({NEW: [7, 0]}, [NEW])
    assert told["finished"] == {NEW: [0, 5, None, 7]}, "what it did last nobody has seen"


def test_of_a_release_with_other_workers_nothing_is_told_just_where_one_has_gone() -> None:
    both = [worker(OLD, 10), worker(OLD, 20, pid=2)]
    looks = [at(1, *both), at(2, *both), at(3, worker(OLD, 14)), at(4, worker(OLD, 15)), at(5, worker(OLD, 16))]
    told = columns(observe({}, looks))
    assert told["finished"] == {OLD: [0, 0, None, 5, 6]}
    assert rates(told["at"], told["finished"][OLD]) == [(1, 2, 0), (4, 5, 1)]


def test_who_is_away_for_a_while_is_counted_once() -> None:
    looks = [at(1, worker(OLD, 10)), at(2), at(3, worker(OLD, 13)), at(4, worker(OLD, 14))]
    assert columns(observe({}, looks))["totals"] == {OLD: [4, 0]}


def test_a_look_that_tells_only_what_has_changed_is_one_all_the_same() -> None:
    whole = [at(1, worker(OLD, 10), worker(NEW, 0)), at(2, worker(OLD, 10), worker(NEW, 3)), at(3, worker(OLD, 12))]
    short = [
        whole[0],
        {**at(2, worker(NEW, 3)), "gone": []},
        {**at(3, worker(OLD, 12)), "gone": [worker(NEW, 3)["name"]]},
    ]
    assert observe({}, short) == observe({}, whole)


def test_a_canary_that_is_withdrawn_takes_no_task_along() -> None:
    assert done(at(1), at(2, worker(NEW, 3)), at(3, worker(NEW, 2)), at(4, worker(NEW, 3))) == {NEW: [4, 0]}


def test_a_failure_that_the_engine_does_not_count_is_not_none_at_all() -> None:
    found = observe({}, [at(1), at(2, worker(NEW, 3, None)), at(3, worker(NEW, 4, None))])
    told = columns(found)
    assert (told["finished"], told["failed"]) == ({NEW: [0, 3, 4]}, {NEW: [None, None, None]})


def test_workers_of_other_queues_are_left_out_and_strangers_have_no_release() -> None:
    seen = at(
        1,
        worker(OLD, 9, queues=["other"]),
        worker(OLD, 9, name="celery@somewhere"),
        worker(NEW, 9, name=f"shop/{NEW}/w1/1/1"),
    )
    assert [release for release, *_counts in seen["workers"].values()] == [STRANGERS, STRANGERS]


def test_looks_can_come_in_parts_and_each_is_counted_once() -> None:
    looks = [at(1, worker(OLD, 10)), at(2, worker(OLD, 12)), at(3, worker(NEW, 1)), at(4, worker(OLD, 15))]
    whole = observe({}, looks)
    course: dict[str, Any] = {}
    for each in looks:
        before = repr(course)
        new = observe(course, [each])
        assert repr(course) == before, "what was given is left alone"
        course = new
    assert course == whole


def test_a_gap_is_a_gap_in_every_column() -> None:
    told = columns(observe({}, [at(1, worker(OLD, 1), waiting=3), no_answer(2), at(3, worker(OLD, 2), waiting=5)]))
    assert told["at"] == [1, 2, 3]
    assert told["waiting"] == {"mail": [3, None, 5]}
    assert told["states"]["executing"] == [0, None, 0]
    assert told["finished"] == {OLD: [0, None, 1]}


def test_what_one_queue_cannot_count_nobody_can_add_up() -> None:
    seen = look("mail", 1, [queue("mail", dead=3), queue("shop", dead=None)], [])
    assert columns(observe({}, [seen]))["states"]["dead"] == [None]


def test_a_release_begins_at_nothing_just_before_it_is_first_seen() -> None:
    told = columns(observe({}, [at(1), at(2), at(3, worker(NEW, 4))]))
    assert told["finished"] == {NEW: [None, 0, 4]}
    after_a_gap = columns(observe({}, [at(1), no_answer(2), at(3, worker(NEW, 4))]))
    assert after_a_gap["finished"] == {NEW: [None, None, 4]}, "nobody knows when"


def test_of_many_queues_the_busiest_are_told_and_the_rest_together() -> None:
    queues = [queue(f"q{number}", waiting=number) for number in range(9)]
    told = columns(observe({}, [look("mail", 1, queues, [])]))["waiting"]
    assert told == {"q8": [8], "q7": [7], "q6": [6], "q5": [5], "q4": [4], "q3": [3], OTHERS: [3]}


def test_a_journal_s_line_stays_short() -> None:
    course: dict[str, Any] = {}
    for moment in range(500):
        seen = [worker(OLD, moment), worker(NEW, 0)] if moment != 250 else []
        course = observe(course, [at(moment, *seen) if seen else no_answer(moment)])
    told = columns(course)
    assert len(told["at"]) == MOST_POINTS
    assert (told["at"][0], told["at"][-1], told["finished"][OLD][-1]) == (0, 499, 499)
    assert 250 in told["at"], "a gap is not dropped for looks that stand close"


@given(st.lists(st.integers(0, 1000), min_size=1, unique=True), st.integers(2, 20))
def test_thinning_keeps_the_ends_and_the_order(moments: list[int], most: int) -> None:
    points = [{"at": moment, "done": {} if moment % 3 else None, "ended": []} for moment in sorted(moments)]
    kept = thin(points, most)
    assert len(kept) == min(len(points), most)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert kept == sorted(kept, key=lambda point: point["at"])


def test_an_answer_about_the_queues_is_a_look() -> None:
    broker = {"asked": 5.0, "queues": {"mail": queue(waiting=2)}, "workers": [worker(OLD, 1)]}
    assert look_of("mail", broker, 9.0) == [at(5.0, worker(OLD, 1), waiting=2)]


@pytest.mark.parametrize("broker", [{}, {"skipped": True, "changed": False}])
def test_nobody_asked_is_no_look(broker: dict[str, Any]) -> None:
    assert look_of("mail", broker, 9.0) == []


def test_a_broker_that_gave_no_answer_is_a_gap() -> None:
    assert look_of("mail", {"failed": False, "msg": "refused"}, 9.0) == [no_answer(9.0)]


def test_a_rate_is_the_mean_between_looks_and_leads_over_no_gap() -> None:
    assert rates([0, 10, 20], [0, 50, 50]) == [(0, 10, 5), (10, 20, 0)]
    assert rates([0, 10, 20, 30], [0, None, 50, 70]) == [(20, 30, 2)]
    assert rates([0, 10], [None, None]) == rates([], []) == rates([3], [7]) == []


def test_a_rate_over_less_than_a_second_says_nothing() -> None:
    assert rates([0, 0.2, 0.4, 1.2], [0, 1, 1, 6]) == [(0, 1.2, 5)]
    assert rates([0, 2, 2.5], [0, 4, 5]) == [(0, 2.5, 2)], "what is left over goes with the one before"


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 9)), min_size=1))
def test_rates_add_up_to_what_was_counted(steps: list[tuple[int, int]]) -> None:
    moments, totals = [0.0], [0]
    for seconds, more in steps:
        moments.append(moments[-1] + seconds / 4)
        totals.append(totals[-1] + more)
    counted = sum(step.value * (step.ended - step.began) for step in rates(moments, totals))
    assert counted == pytest.approx(totals[-1])


def test_of_a_journal_only_the_last_rollout_s_looks_are_sent() -> None:
    def rollout(token: int, *names: str) -> list[dict[str, Any]]:
        seen = {"course": {"at": [1]}, "care": {"tasks": [], "more": 0}, "noticed": None}
        return [{"event": name, "token": token, **(seen if name == "observed" else {})} for name in names]

    first = rollout(1, "stage_started", "observed", "lease_released")
    second = rollout(2, "rollback_started", "observed")
    refused = rollout(3, "lease_granted", "observed")
    journal = [*first, *second, *refused]
    sent = of_last_rollout(journal, 5)
    assert sent == [first[2], *second, *refused], "the third has nothing to report, and takes nothing from the second"
    assert of_last_rollout(journal, 100)[1] == {"event": "observed", "token": 1, "noticed": None}
    assert of_last_rollout(journal, 0) == []
    assert "course" in journal[1], "what was given is left alone"
