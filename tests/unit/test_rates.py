# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Failure rates: what is worse, and what is only a small sample."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput
from ansible_collections.backstep.workers.plugins.module_utils._rollout.rates import Tally, compare, tally, wilson
from hypothesis import given
from hypothesis import strategies as st

COUNTS = st.integers(min_value=0, max_value=100_000)


@given(COUNTS, COUNTS)
def test_bounds_enclose_the_share_and_stay_between_0_and_1(finished: int, failed: int) -> None:
    low, high = wilson(Tally(finished, failed))
    assert 0 <= low <= high <= 1
    if finished + failed:
        share = failed / (finished + failed)
        assert low - 1e-9 <= share <= high + 1e-9


@given(COUNTS, COUNTS)
def test_a_release_is_never_worse_than_itself(finished: int, failed: int) -> None:
    same = Tally(finished, failed)
    assert not compare(same, same, margin=0.0, minimum=1).worse


@given(st.integers(1, 1000), st.integers(0, 1000))
def test_one_more_failure_never_makes_it_look_better(total: int, failed: int) -> None:
    failed = min(failed, total - 1)
    less, more = Tally(total - failed, failed), Tally(total - failed - 1, failed + 1)
    assert wilson(less)[0] <= wilson(more)[0]


@pytest.mark.parametrize(
    ("new", "old", "worse"),
    [
        (Tally(0, 20), Tally(1000, 0), True),
        (Tally(0, 5), None, True),
        (Tally(0, 5), Tally(0, 0), True),
        (Tally(0, 10), Tally(3, 0), True),
        (Tally(0, 4), Tally(1000, 0), False),  # fewer tasks than the minimum
        (Tally(0, 0), Tally(1000, 0), False),  # no traffic is no failure
        (Tally(4, 1), Tally(1000, 0), False),  # one of five proves nothing
        (Tally(95, 5), Tally(1000, 10), False),  # within the margin
        (Tally(50, 50), Tally(500, 500), False),  # the old one was no better
        (Tally(300, 100), Tally(950, 50), True),
    ],
)
def test_worse_means_beyond_the_margin_on_enough_tasks(new: Tally, old: Tally | None, worse: bool) -> None:
    assert compare(new, old, margin=0.1, minimum=5).worse is worse


def test_the_reason_tells_the_counts() -> None:
    reason = compare(Tally(1, 9), Tally(98, 2), margin=0.1, minimum=5).reason
    assert reason == "9 of its 10 tasks failed (2 of 100 in the release before): more than a margin of 10% allows"


@pytest.mark.parametrize(
    ("counts", "expected"),
    [({}, None), ({"finished": "7", "failed": 1}, Tally(7, 1)), ({"finished": 0, "failed": 0}, Tally(0, 0))],
)
def test_a_tally_is_read_from_counts(counts: dict[str, Any], expected: Tally | None) -> None:
    assert tally(counts) == expected


@pytest.mark.parametrize("counts", [{"finished": 1}, {"finished": -1, "failed": 0}, {"finished": "x", "failed": 0}])
def test_counts_that_are_none_are_refused(counts: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        tally(counts)
