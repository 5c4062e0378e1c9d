# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A chart shows what was seen, and nothing where nobody has seen anything."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.plugin_utils.report_charts import Chart, charts, nice
from ansible_collections.backstep.workers.plugins.plugin_utils.report_journal import data_from_journals
from ansible_collections.backstep.workers.plugins.plugin_utils.report_marks import marks
from ansible_collections.backstep.workers.plugins.plugin_utils.report_scale import scale_of

from tests.support.reports import NEW, OLD, answer, confirmed, course, observed, staged, went_back


def data(**hosts: Any) -> dict[str, Any]:
    return data_from_journals("mail", hosts, {}, None)


def failed(**changed: Any) -> dict[str, Any]:
    told = {**course(), **changed}
    return data(w1=answer([*went_back(), *observed(course=told)], OLD))


def strokes(chart: Chart) -> list[int]:
    """How many strokes each line of a chart has."""
    return [len(re.findall("M", path)) for path in re.findall(r'<path [^>]* d="([^"]*)"', chart.svg)]


def test_three_charts_with_every_release_and_queue() -> None:
    depth, finished, fails = charts(failed())
    assert depth.names == ["mail", "newsletter"]
    assert finished.names == fails.names == [OLD, NEW]
    assert "105 failed" in fails.words[0]
    assert "parked: not counted by this engine" in depth.words[0]


def test_where_nobody_could_look_the_lines_end() -> None:
    assert [strokes(chart) for chart in charts(failed())] == [[2, 2], [2, 2], [2, 2]]
    whole = failed(waiting={"mail": list(range(60))})
    assert strokes(charts(whole)[0]) == [1]


def test_a_release_is_drawn_from_when_it_came_and_not_from_the_look_before() -> None:
    at = [1795244400.0 + second for second in (0, 12, 14)]
    found = failed(at=at, finished={OLD: [0, 24, 28], NEW: [0, 8, 10]}, failed={NEW: [0, 0, 0]})
    scale = scale_of(found)
    assert scale
    old, new = re.findall(r'<path [^>]* d="M([\d.]+) ', charts(found)[1].svg)
    assert float(old) == pytest.approx(scale.share(at[0]) * 10, abs=0.1)
    assert float(new) == pytest.approx(scale.share(at[0] + 4) * 10, abs=0.1), "four seconds later it was switched to"
    late = failed(at=at, finished={NEW: [None, 8, 10]}, failed={})
    assert re.findall(r'<path [^>]* d="M([\d.]+) ', charts(late)[1].svg) == [f"{scale.share(at[1]) * 10:.1f}"]


def test_what_the_engine_does_not_count_is_not_drawn() -> None:
    none: list[int | None] = [None] * 60
    chart = charts(failed(failed={NEW: none}, totals={NEW: [35, None]}))[2]
    assert (chart.svg, chart.words) == ("", [f"{NEW}: not counted by this engine."])


def test_nothing_that_failed_is_said_and_not_drawn() -> None:
    chart = charts(failed(failed={NEW: [0] * 60}, totals={NEW: [35, 0]}, least=[NEW]))[2]
    assert (chart.svg, chart.words) == ("", [f"{NEW}: at least 0 failed."])


def test_slow_work_is_told_by_the_minute() -> None:
    assert "per minute" in charts(failed(finished={NEW: [0] * 30 + [1] * 30}))[1].title
    assert "per second" in charts(failed())[1].title


def test_the_events_are_marked_in_order() -> None:
    found = marks(data(w1=answer([*went_back(), *observed()], OLD), w2=answer(went_back(6, 41), OLD)))
    assert [(mark.number, mark.words.partition(" ")[2]) for mark in found] == [
        (1, "the first host is switched (w1)"),
        (2, "the last host is switched (w2)"),
        (3, "the verdict is not good"),
        (4, "the way back begins (w1)"),
        (5, "the release gone back to runs on the last host that went back (w2)"),
    ]
    assert charts(failed())[0].svg.count('<circle class="event') == 4


def test_one_host_is_the_host() -> None:
    found = marks(data(w1=answer([*confirmed(), *observed(noticed=None)], NEW)))
    assert [mark.words.partition(" ")[2] for mark in found] == [
        "the host is switched (w1)",
        "the release is confirmed on the host (w1)",
    ]


def test_the_guard_is_marked() -> None:
    found = marks(data(w1=answer(went_back(by="guard"), OLD)))
    assert [mark.kind for mark in found] == ["plain", "bad", "bad", "good"]
    assert "the guard of a host fires (w1)" in found[1].words


def test_between_looks_that_are_far_from_each_other_a_line_is_hinted_at() -> None:
    at = [1795244400.0, 1795244401.0, 1795244430.0, 1795244431.0]
    depth = charts(failed(at=at, waiting={"mail": [1, 2, 3, 4]}, finished={}, failed={}))[0]
    assert strokes(depth) == [2, 1]
    assert 'class="line far s0"' in depth.svg


def test_nothing_seen_is_no_chart() -> None:
    assert charts(data(w1=answer(staged(), OLD))) == []


def test_a_look_while_nothing_was_there_is_drawn_as_nothing_was_there() -> None:
    assert ">2</text>" in charts(failed(waiting={"mail": [0] * 60}))[0].svg


@pytest.mark.parametrize(("highest", "top"), [(0, 0.01), (0.9, 1), (1, 1), (1.1, 2), (3, 5), (174, 200), (501, 1000)])
def test_an_axis_ends_at_a_round_number(highest: float, top: float) -> None:
    assert nice(highest) == pytest.approx(top)
