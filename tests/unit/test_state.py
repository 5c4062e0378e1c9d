# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a journal adds up to, event by event."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout import rules
from ansible_collections.backstep.workers.plugins.module_utils._rollout import state as states
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import JournalDamaged, StepOutOfOrder
from ansible_collections.backstep.workers.plugins.module_utils._rollout.pool_state import OPEN_PHASES, PoolState
from ansible_collections.backstep.workers.plugins.module_utils._rollout.snapshot import CUT, SO_FAR
from ansible_collections.backstep.workers.plugins.module_utils._rollout.state import EVENTS, fold

from tests.unit.story import Story

A, B, C = "1.0-aaaaaaaa", "2.0-bbbbbbbb", "3.0-cccccccc"


def test_nothing_has_happened() -> None:
    assert fold([]) == PoolState()
    assert PoolState().good_releases() == []
    assert PoolState().state_of(None) is None


def test_a_release_from_unfinished_to_staged() -> None:
    story = Story().lease().note("stage_started", release=A, version="1.0")
    assert story.state.state_of(A) == states.UNFINISHED
    assert story.state.releases[A].version == "1.0"
    assert story.state.releases[A].seal == ""
    story.note("staged", release=A, seal="digest")
    assert story.state.state_of(A) == states.STAGED
    assert story.state.releases[A].seal == "digest"
    assert story.state.current is None


def test_a_switch_is_open_until_it_is_confirmed() -> None:
    story = Story().good(A).lease().stage(B)
    story.note("switch_started", origin=A, target=B, safe=A, mode="replace")
    rollout = story.state.rollout
    assert rollout is not None
    assert (rollout.phase, rollout.origin, rollout.target, rollout.safe) == (states.SWITCHING, A, B, A)
    assert (rollout.kind, rollout.mode, rollout.token, rollout.open) == (states.DEPLOY, "replace", 2, True)
    assert story.state.state_of(B) == states.UNCONFIRMED
    assert story.state.current == A
    story.note("guard_armed", seconds=60, deadline=777.0)
    rollout = story.state.rollout
    assert rollout is not None
    assert rollout.deadline == 777.0
    story.note("switched", target=B, processes={"1": 11})
    rollout = story.state.rollout
    assert rollout is not None
    assert (rollout.phase, rollout.processes, story.state.current) == (states.SWITCHED, {"1": 11}, B)
    assert story.state.good_releases() == [A]
    story.confirm()
    rollout = story.state.rollout
    assert rollout is not None
    assert (rollout.phase, rollout.open) == (states.CONFIRMED, False)
    assert story.state.good_releases() == [B, A]
    assert story.state.arrived_by == states.DEPLOY


def test_the_guard_s_deadline_belongs_to_the_boot_that_it_was_armed_in() -> None:
    story = Story().good(A).lease().stage(B).switch(B)
    story.boot = "boot-2"
    story.note("guard_armed", seconds=60, deadline=70.0)
    rollout = story.state.rollout
    assert rollout is not None
    assert (rollout.boot, rollout.deadline) == ("boot-2", 70.0)


def test_a_good_release_that_is_switched_to_again_stays_good() -> None:
    story = Story().good(A).good(B).lease().switch(A)
    assert story.state.state_of(A) == states.GOOD


def test_a_bad_release_is_left_for_the_last_good_one() -> None:
    story = Story().good(A).lease().stage(B).switch(B).back(A, "bad", "worker 1 has died")
    rollout = story.state.rollout
    assert rollout is not None
    assert (rollout.kind, rollout.phase, rollout.safe) == (states.ROLLBACK, states.RESTORED, A)
    assert (rollout.processes, rollout.reason) == ({"1": 4243}, "worker 1 has died")
    assert story.state.state_of(B) == states.BAD
    assert story.state.releases[B].reason == "worker 1 has died"
    assert story.state.current == A
    story.settle()
    assert story.state.state_of(B) == states.BAD
    assert story.state.arrived_by == states.ROLLBACK
    rollout = story.state.rollout
    assert rollout is not None
    assert rollout.phase == states.ROLLED_BACK
    assert not rollout.open


def test_a_release_of_which_nothing_bad_is_known_is_staged_again_after_the_way_back() -> None:
    story = Story().good(A).lease().stage(B).switch(B).back(A, "unknown", "no answer")
    assert story.state.state_of(B) == states.UNCONFIRMED
    story.settle()
    assert (story.state.state_of(B), story.state.releases[B].reason) == (states.STAGED, "no answer")


def test_what_is_known_to_be_bad_stays_bad_when_the_way_back_is_begun_anew() -> None:
    story = Story().good(A).good(B).lease(kind="rollback").back(A, "bad", "it eats mail")
    story.note("rollback_started", origin=B, target=A, verdict="unknown", reason="guard", mode="overlap")
    story.note("restored", target=A, processes={})
    story.settle()
    assert (story.state.state_of(B), story.state.releases[B].reason) == (states.BAD, "it eats mail")


def test_the_first_deploy_of_a_host_goes_back_to_nothing() -> None:
    story = Story().lease().stage(A).switch(A).back(None, "bad").settle()
    assert story.state.current is None
    assert story.state.arrived_by == states.ROLLBACK
    assert story.state.good_releases() == []
    assert story.state.state_of(A) == states.BAD


def test_going_back_makes_the_target_the_latest_good_one() -> None:
    story = Story().good(A).good(B).lease(kind="rollback").back(A, "bad").settle()
    assert story.state.good_releases() == [A]
    story = Story().good(A).good(B).good(C).lease(kind="rollback").back(A).settle()
    assert story.state.good_releases()[0] == A


def test_a_quarantined_release_is_bad_and_says_why() -> None:
    story = Story().good(A).lease().stage(B).note("quarantined", release=B, reason="bad on w2")
    assert (story.state.state_of(B), story.state.releases[B].reason) == (states.BAD, "bad on w2")


def test_a_pruned_release_is_gone() -> None:
    story = Story().good(A).good(B).note("pruned", release=A)
    assert A not in story.state.releases
    assert story.state.good_releases() == [B]


def test_a_lease_is_held_given_back_and_only_by_its_own_number() -> None:
    story = Story().lease("ana", seconds=30.0)
    lease = story.state.lease
    assert lease is not None
    assert (lease.token, lease.kind, lease.owner["user"], lease.seconds) == (1, "deploy", "ana", 30.0)
    assert lease.expires == story.up - 1 + 30.0
    story.token = 7
    story.note("lease_released")
    lease = story.state.lease
    assert lease is not None
    assert not lease.released
    story.token = 1
    story.note("lease_released")
    lease = story.state.lease
    assert lease is not None
    assert lease.released


@pytest.mark.parametrize(
    ("by", "token", "boot", "renewed"),
    [
        ("controller", 1, "boot-1", True),
        ("guard", 1, "boot-1", False),
        ("controller", 2, "boot-1", False),
        ("controller", 1, "boot-2", False),
    ],
)
def test_only_the_owner_s_steps_in_the_same_boot_renew_a_lease(by: str, token: int, boot: str, renewed: bool) -> None:
    story = Story().lease(seconds=30.0)
    story.up += 20.0
    story.token, story.boot = token, boot
    story.note("drain_started", by=by, release=A, seconds=1, policy="abort")
    lease = story.state.lease
    assert lease is not None
    assert lease.expires == (story.up - 1 if renewed else 100.0) + 30.0


@pytest.mark.parametrize("phase", sorted(OPEN_PHASES))
def test_which_phases_are_open(phase: str) -> None:
    rollout = Story().lease().stage(A).switch(A).state.rollout
    assert rollout is not None
    rollout.phase = phase
    assert rollout.open


def left(story: Story, release: str, **terms: Any) -> Story:
    """Deploy a release on top of the one that runs, which has tasks to end."""
    story.lease().stage(release).switch(release)
    leaves = {"releases": [A], "seconds": 30.0, "policy": "kill", "keep": 2, **terms}
    return story.note("confirmed", target=release, leaves=leaves).note("lease_released")


def test_what_is_left_with_tasks_drains_from_the_commit_on() -> None:
    story = left(Story().good(A), B)
    entry = story.state.draining[A]
    assert (entry.token, entry.boot, entry.policy, entry.keep) == (2, "boot-1", "kill", 2)
    committed = next(event for event in story.events if event["event"] == "confirmed" and event["target"] == B)
    assert (entry.since, entry.deadline) == (committed["time"], committed["up"] + 30.0)


def test_what_drains_already_keeps_its_deadline() -> None:
    story = left(Story().good(A), B)
    before = story.state.draining[A]
    assert left(story, C, releases=[A, B], seconds=900.0).state.draining[A] == before
    assert list(story.state.draining) == [A, B]


@pytest.mark.parametrize("again", ["switch", "back"])
def test_what_is_wanted_again_drains_no_more(again: str) -> None:
    story = left(Story().good(A), B).lease()
    story = story.switch(A) if again == "switch" else story.back(A)
    assert story.state.draining == {}


def test_what_is_let_go_is_remembered_until_it_is_pruned() -> None:
    killed = [{"worker": f"mail/{A}/w1/1/42", "pids": [42], "seconds": 9.0}]
    story = left(Story().good(A), B).note("drain_overran", by="reaper", release=A, running=killed)
    assert story.state.draining[A].overran == killed
    story.note("reaped", by="reaper", release=A, outcome="killed", waited=30.0, running=killed)
    assert story.state.draining == {}
    assert (story.state.reaped[A].running, story.state.reaped[A].again) == (killed, False)
    assert Story.back(story.lease(), A).state.reaped[A].again
    assert story.settle().note("pruned", release=A).state.reaped == {}


EVIDENCE: dict[str, dict[str, Any]] = {
    "observed": {"course": {}, "care": {"tasks": [], "more": 0}, "noticed": None},
    "scheduler_handed_over": {"release": B, "runs": True, "waited": 0.1, "killed": []},
    "drain_started": {"release": B, "seconds": 5, "policy": "abort"},
    "drain_ended": {"release": B, "outcome": "clean", "waited": 1, "running": []},
    "confirm_started": {"target": B},
    "guard_disarmed": {},
    "guard_fired": {"reason": "it was not confirmed in time"},
    "torn_line": {"bytes": 12},
}


@pytest.mark.parametrize("event", sorted(EVIDENCE))
def test_evidence_changes_nothing_that_a_decision_reads(event: str) -> None:
    story = Story().good(A).lease().stage(B).switch(B)
    before = story.state
    story.note(event, by="guard", **EVIDENCE[event])
    after = story.state
    assert after.changed == before.changed + 1
    after.changed = before.changed
    assert after == before


def stuck() -> Story:
    story = Story().good(A).lease().stage(B).switch(B)
    return story.back(A, "bad").note("rollback_failed", target=A, reason="no disk", running=[B])


def test_a_way_back_that_has_failed_stays_open_and_says_why() -> None:
    state = stuck().state
    assert state.rollout is not None
    assert (state.rollout.phase, state.rollout.open, state.rollout.safe, state.rollout.reason) == (
        "stuck", True, A, "no disk"
    )  # fmt: skip
    assert (state.good_releases(), state.state_of(B)) == ([A], "bad")


def test_from_there_it_can_be_tried_again_or_gone_forward() -> None:
    state = stuck().stage(C).state
    assert rules.rollback_target(state) == A
    rules.require_switch(state, C)
    with pytest.raises(StepOutOfOrder):
        rules.require_confirm(state, state.last_token, A)


def test_every_event_is_told_of_in_these_tests() -> None:
    story = Story().good(A).good(B).bad(C).note("quarantined", release=B, reason="").note("pruned", release=C)
    story.note("rollback_failed", target=A, reason="", running=[])
    story.note("drain_overran", release=A, running=[]).note("reaped", release=A, outcome="clean", running=[])
    story.note("notified", notice={"id": "letters-1", "rollout": 1, "left": []})
    story.note("barrier_held", release=B).hook(B, "before_rollback")
    story.note("drilled", kind="crash", ended=1.0, passed=True, times={})
    # What stands for lines that were cut off is of the journal's tests.
    assert {event["event"] for event in story.events} | set(EVIDENCE) | {SO_FAR, CUT} == set(EVENTS)


def test_an_event_of_a_newer_version_is_refused_politely() -> None:
    with pytest.raises(JournalDamaged) as refused:
        Story().good(A).note("teleported").state  # noqa: B018  # folding it is what raises
    assert "'teleported'" in refused.value.message
    assert refused.value.left == "Nothing was changed."
    assert "newer" in refused.value.next_step


def test_the_last_token_is_the_largest_one() -> None:
    story = Story().good(A).good(B)
    story.token = 1
    assert story.note("guard_fired", reason="").state.last_token == 2
