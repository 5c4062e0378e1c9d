# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each step will do, in which order."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout import plans
from ansible_collections.backstep.workers.plugins.module_utils._rollout.plans import Action
from ansible_collections.backstep.workers.plugins.module_utils._rollout.pool_state import BAD, GOOD
from ansible_collections.backstep.workers.plugins.module_utils._rollout.rules import last_good
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.story import Story

A, B, C = "1.0-aaaaaaaa", "2.0-bbbbbbbb", "3.0-cccccccc"
TERMS: dict[str, Any] = {"mode": plans.OVERLAP, "seconds": 30.0, "policy": plans.ABORT}


def words(actions: list[Action]) -> list[str]:
    return [f"{action['action']} {action.get('release', '')}".strip() for action in actions]


def test_overlap_starts_the_new_release_before_the_old_one_is_quieted() -> None:
    actions = plans.plan_switch(B, [A], A, **TERMS)
    assert words(actions) == [
        f"verify {B}",
        f"verify {A}",
        f"arm_guard {A}",
        f"install_units {B}",
        f"start {B}",
        f"quiet {A}",
        f"link {B}",
    ]


def test_replace_drains_the_old_release_before_the_new_one_starts() -> None:
    actions = plans.plan_switch(B, [A], A, **{**TERMS, "mode": plans.REPLACE})
    assert words(actions)[-3:] == [f"drain {A}", f"start {B}", f"link {B}"]
    assert actions[-3] == {"action": "drain", "release": A, "seconds": 30.0, "policy": plans.ABORT}


@pytest.mark.parametrize("mode", [plans.OVERLAP, plans.REPLACE])
def test_nothing_is_touched_before_the_guard_is_armed(mode: str) -> None:
    for actions in (
        plans.plan_switch(B, [A], A, **{**TERMS, "mode": mode}),
        plans.plan_back(A, [B], **{**TERMS, "mode": mode}),
    ):
        names = [action["action"] for action in actions]
        assert set(names[: names.index("arm_guard")]) == {"verify"}


def test_the_first_deploy_has_nothing_to_verify_but_itself() -> None:
    assert words(plans.plan_switch(A, [], None, **TERMS))[:2] == [f"verify {A}", "arm_guard None"]


def test_back_to_nothing_brings_everything_to_rest() -> None:
    assert words(plans.plan_back(None, [A], **TERMS)) == ["arm_guard None", f"quiet {A}", "link None"]


def test_the_way_back_gives_nothing_up() -> None:
    for policy, effective in ((plans.ABORT, plans.REQUEUE), (plans.LEAVE, plans.LEAVE), (plans.KILL, plans.KILL)):
        actions = plans.plan_back(A, [B], mode=plans.REPLACE, seconds=30.0, policy=policy)
        assert [action["policy"] for action in actions if action["action"] == "drain"] == [effective]


def test_the_commit_comes_after_enable_and_the_guard_goes_when_nothing_else_starts_at_boot() -> None:
    actions = plans.plan_confirm(B, [A], seconds=30.0, policy=plans.ABORT, prune=[C])
    assert words(actions) == [
        f"enable {B}",
        f"commit {B}",
        f"disable {A}",
        f"reap {A}",
        "disarm_guard",
        f"prune {C}",
    ]
    assert actions[3] == {"action": "reap", "release": A, "seconds": 30.0, "policy": plans.LEAVE}


def test_nothing_is_enabled_when_there_is_no_target() -> None:
    assert words(plans.plan_confirm(None, [A], seconds=1.0, policy=plans.KILL))[0] == "commit None"


# -- pruning ------------------------------------------------------------------------------------------------------


def deployed(count: int) -> Story:
    story = Story()
    for number in range(count):
        story.good(f"{number}-00000000")
    return story


def test_good_releases_beyond_those_kept_may_go_the_oldest_ones() -> None:
    state = deployed(6).state
    gone = plans.to_prune(state, "5-00000000", 3, [])
    assert sorted(gone) == ["0-00000000", "1-00000000"]


@pytest.mark.parametrize("keep", [-1, 0, 1])
def test_one_way_back_is_kept_whatever_was_asked_for(keep: int) -> None:
    gone = plans.to_prune(deployed(3).state, "2-00000000", keep, [])
    assert gone == ["0-00000000"]


def test_what_still_runs_is_kept() -> None:
    assert plans.to_prune(deployed(3).state, "2-00000000", 1, ["0-00000000"]) == []


def test_releases_that_never_became_good_stay_as_evidence_the_newest_ones() -> None:
    story = deployed(1)
    for number in range(4):
        story.bad(f"{number}-bad00000")
    assert sorted(plans.to_prune(story.state, "0-00000000", 2, [])) == ["0-bad00000", "1-bad00000"]


@given(
    st.lists(st.sampled_from(["good", "bad", "staged"]), max_size=10),
    st.integers(-1, 4),
    st.lists(st.integers(0, 9), max_size=3),
)
def test_pruning_takes_no_way_back_and_nothing_that_runs(kinds: list[str], keep: int, running: list[int]) -> None:
    story = Story().good(A)
    for number, kind in enumerate(kinds):
        release = f"{number}-00000000"
        if kind == "staged":
            story.lease().stage(release).note("lease_released")
        else:
            story.good(release) if kind == "good" else story.bad(release)
    state = story.state
    live = [f"{number}-00000000" for number in running]
    gone = plans.to_prune(state, state.current, keep, live)
    assert last_good(state) not in gone
    assert state.current not in gone
    assert not set(gone) & set(live)
    spared = [release for release in state.good_releases() if release not in gone and release != state.current]
    assert len(spared) >= min(max(1, keep), len(state.good_releases()) - 1)
    assert len(gone) == len(set(gone))
    assert all(state.state_of(release) in (GOOD, BAD, "staged") for release in gone)
