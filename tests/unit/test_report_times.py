# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a report tells of time follows from the journal's events."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.plugin_utils.report_times import phases, skew, times


def events(*named: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"event": name, "time": at} for name, at in named]


def test_phases_of_a_deploy_that_is_good() -> None:
    found = phases(
        events(
            ("lease_granted", 1), ("stage_started", 2), ("staged", 3), ("switch_started", 5), ("guard_armed", 5.5),
            ("switched", 6), ("confirm_started", 10), ("confirmed", 11), ("guard_disarmed", 11.5),
        )
    )  # fmt: skip
    assert [tuple(phase.values()) for phase in found] == [
        ("stage", 2, 3), ("switch", 5, 6), ("prove", 6, 10), ("confirm", 10, 11),
    ]  # fmt: skip


def test_phases_of_a_deploy_that_goes_back() -> None:
    found = phases(
        events(
            ("switch_started", 5), ("switched", 6), ("rollback_started", 9), ("restored", 10), ("confirm_started", 12),
            ("rolled_back", 13),
        )
    )  # fmt: skip
    assert [tuple(phase.values()) for phase in found] == [
        ("switch", 5, 6), ("prove", 6, 9), ("go back", 9, 10), ("prove the way back", 10, 13),
    ]  # fmt: skip


def test_a_phase_without_its_end_stays_open() -> None:
    assert phases(events(("switch_started", 5)))[-1] == {"phase": "switch", "began": 5, "ended": None}


def test_a_confirmation_that_was_refused_ends_with_the_first_step_back() -> None:
    found = phases(events(("switched", 6), ("confirm_started", 8), ("rollback_started", 9)))
    assert [tuple(phase.values()) for phase in found] == [("prove", 6, 8), ("confirm", 8, 9), ("go back", 9, None)]


def test_times_of_a_deploy_that_goes_back() -> None:
    found = times(
        events(("lease_granted", 1), ("switched", 4), ("switched", 6), ("rollback_started", 12), ("restored", 13),
               ("rollback_started", 14), ("restored", 15), ("rolled_back", 17)),
        noticed=10.0,
    )  # fmt: skip
    assert (found["detect"], found["decide"], found["restore"], found["all"]) == (6, 2, 3, 16)


def test_what_was_not_recorded_is_not_known() -> None:
    found = times(events(("switched", 4), ("rollback_started", 12)), noticed=None)
    assert (found["detect"], found["decide"], found["detect_and_decide"], found["restore"]) == (None, None, 8, None)
    assert set(times([], None).values()) == {None}


def test_a_span_that_clocks_make_negative_is_not_known() -> None:
    assert times(events(("switched", 100)), noticed=90.0)["detect"] is None


@pytest.mark.parametrize(
    ("clock", "expected"),
    [(100.0, {}), (105.9, {}), (107.5, {"w1": 2.5}), (95.0, {"w1": -5.0}), (99.5, {})],
)
def test_skew_is_what_cannot_be_the_time_of_asking(clock: float, expected: dict[str, float]) -> None:
    assert skew({"w1": clock}, 100.0, 105.0) == expected


def test_without_the_time_of_asking_only_a_clock_that_is_ahead_is_seen() -> None:
    assert skew({"w1": 1.0, "w2": 200.0}, None, 105.0) == {"w2": 95.0}
