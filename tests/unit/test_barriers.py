# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Releases that can't be undone: from when on, for which ways back, and until when."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout import barriers, fleet
from ansible_collections.backstep.workers.plugins.module_utils._rollout import record as records
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import RollbackBarrier
from ansible_collections.backstep.workers.plugins.module_utils._rollout.pool_state import UNCONFIRMED

from tests.unit.story import Story
from tests.unit.test_fleet import back as host_back
from tests.unit.test_record import planned, start

A, B, C = "1.0-aaaaaaaa", "2.0-bbbbbbbb", "3.0-cccccccc"
WHY = "drops a column"


def barred() -> Story:
    """On B, not confirmed, which can't be undone."""
    return Story().good(A).lease().stage(B, barrier=WHY).switch(B)


def test_it_counts_from_the_switch_on() -> None:
    story = Story().good(A).lease().stage(B, barrier=WHY)
    story.note("switch_started", origin=A, target=B, safe=A, mode="overlap")
    story.note("guard_armed", seconds=60, deadline=500.0)
    assert barriers.barred_by(story.state, A) is None
    story.note("switched", target=B, processes={})
    assert barriers.barred_by(story.state, A) == B


def test_a_release_without_one_bars_nothing() -> None:
    assert barriers.barred_by(Story().good(A).lease().stage(B, barrier="").switch(B).state, A) is None


def test_the_way_to_nothing_running_and_the_way_to_itself_are_free() -> None:
    state = Story().lease().stage(B, barrier=WHY).switch(B).state
    assert [barriers.barred_by(state, target) for target in (None, B)] == [None, None]


def test_it_is_refused_with_what_to_type() -> None:
    with pytest.raises(RollbackBarrier) as refused:
        barriers.require_crossing(barred().state, A, False)
    assert refused.value.message == f"The way back to {A} is barred: {B} can't be undone ({WHY})."
    assert refused.value.left == f"This host stays on {B}, which goes on consuming."
    assert "backstep.workers.rollback -e pool_cross_barrier=true" in refused.value.next_step
    assert "backstep rollback --cross-barrier" in refused.value.next_step
    assert "backstep.workers.deploy -e pool_version=2.0" in refused.value.next_step
    barriers.require_crossing(barred().state, A, True)


def test_what_is_good_already_is_not_to_be_confirmed() -> None:
    with pytest.raises(RollbackBarrier) as refused:
        barriers.require_crossing(barred().confirm().state, A, False)
    assert "backstep.workers.deploy" not in refused.value.next_step


def test_it_stands_behind_later_releases_too() -> None:
    story = Story().good(A).good(B, barrier=WHY).good(C)
    assert barriers.barred_by(story.state, B) is None
    assert barriers.barred_by(story.state, A) == B


def test_it_stands_when_a_later_release_takes_its_place_unconfirmed() -> None:
    story = barred().note("lease_released").lease().stage(C).switch(C)
    assert barriers.barred_by(story.state, A) == B
    assert story.state.rollout
    assert story.state.rollout.safe == A


def test_a_pruned_release_leaves_its_barrier() -> None:
    story = Story().good(A).good(B, barrier=WHY).good(C).note("pruned", release=B)
    assert barriers.barred_by(story.state, A) == B
    assert barriers.describe(story.state, A) == {"release": B, "reason": WHY, "keep": ""}


def test_a_way_back_that_somebody_asked_for_is_not_stopped_half_way() -> None:
    story = barred().lease(kind="rollback")
    story.note("rollback_started", origin=B, target=A, verdict="bad", reason="a person", mode="overlap")
    barriers.require_crossing(story.state, A, False)


def test_once_crossed_it_is_gone_and_back_with_the_next_switch() -> None:
    story = barred().lease(kind="rollback").back(A, "unknown").settle()
    assert story.state.barriers == {}
    story.lease().switch(B)
    assert barriers.barred_by(story.state, A) == B


def test_a_release_that_was_proven_after_it_is_not_behind_it() -> None:
    story = Story().good(A).good(B, barrier=WHY).lease().switch(A).confirm()
    story.lease().switch(B).confirm()
    assert barriers.barred_by(story.state, A) is None


def test_what_can_not_be_left_starts_at_boot_from_the_switch_on() -> None:
    story = Story().good(A).lease().stage(B, barrier=WHY).stage(C)
    assert [barriers.holds_at_boot(story.state, release) for release in (A, B, C)] == [False, True, False]
    story.switch(B)
    assert [barriers.holds_at_boot(story.state, release) for release in (B, C)] == [True, True]
    first = Story().lease().stage(B, barrier=WHY)
    assert not barriers.holds_at_boot(first.state, B), "there is nothing behind it"


def test_a_host_that_is_held_stays_unconfirmed() -> None:
    story = barred().note("barrier_held", release=B, target=A, reason=WHY)
    assert story.state.rollout
    assert (story.state.rollout.held, story.state.rollout.open) == (B, True)
    assert story.state.state_of(B) == UNCONFIRMED


# -- the fleet ----------------------------------------------------------------------------------------------------


def way(**changed: Any) -> dict[str, Any]:
    answer = host_back(**changed)
    answer["pool_state"]["rollback"]["barrier"] = {"release": B, "reason": WHY, "keep": "2.0"}
    return answer


def test_a_rollback_is_refused_before_anything_is_touched() -> None:
    answers = {"w1": host_back(), "w2": way()}
    with pytest.raises(RollbackBarrier, match="pool_cross_barrier=true") as refused:
        fleet.plan_rollback(answers, (), False)
    assert refused.value.left == "Nothing was changed: w2 would have to cross it."
    assert fleet.plan_rollback(answers, (), False, cross=True).hosts == ["w1", "w2"]


def test_a_host_that_is_back_already_crosses_nothing() -> None:
    assert fleet.plan_rollback({"w1": way(needed=False, current=A)}, (), False).hosts == []


def test_hosts_that_are_held_are_named_where_they_are() -> None:
    record = start()
    refused = barriers.refusal({"release": B, "reason": WHY, "keep": "2.0"}, A, "It stays.").result()
    records.note_step(record, ["w1"], "switch", {"w1": {"release": B}}, "release", touches=True)
    records.note_verdicts(record, {"w1": {"verdict": "bad", "reason": "it fails"}})
    records.note_step(record, ["w1"], "go back", {"w1": {**refused, "failed": True}}, "release", touches=True)
    found = records.outcome(planned(), record)
    assert (found["ok"], found["ended"], found["hosts"]) == (False, "mixed", {"w1": B, "w2": A})
    assert found["exceptions"] == {"w1": f"go back: The way back to {A} is barred: {B} can't be undone ({WHY})."}
    assert "pool_cross_barrier" in record["held"]["w1"]["next"]
