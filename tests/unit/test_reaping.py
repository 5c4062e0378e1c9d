# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the reaper may do, and what it must leave alone."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout import plans
from ansible_collections.backstep.workers.plugins.module_utils._rollout.reaping import Seen, plan_reap
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.story import Story

A, B, C, D = "1.0-aaaaaaaa", "2.0-bbbbbbbb", "3.0-cccccccc", "4.0-dddddddd"
WORKS, ENDED, COMES_BACK = Seen(alive=True, wanted=False), Seen(alive=False, wanted=False), Seen(True, wanted=True)


def left(*releases: str, policy: str = plans.LEAVE, seconds: float = 30.0, keep: int = 3) -> Story:
    """Each of these releases was deployed and left for the next one with tasks to end; the last one is current."""
    story = Story().good(releases[0])
    for number, release in enumerate(releases[1:], 1):
        story.lease().stage(release).switch(release)
        leaves = {"releases": list(releases[:number]), "seconds": seconds, "policy": policy, "keep": keep}
        story.note("confirmed", target=release, leaves=leaves).note("lease_released")
    return story


def words(story: Story, **seen: Seen) -> list[str]:
    names = {"a": A, "b": B, "c": C, "d": D}
    actions = plan_reap(story.state, {names[name]: look for name, look in seen.items()}, story.now)
    return [f"{action['action']} {action['release']}" for action in actions]


def test_tasks_go_on_in_peace() -> None:
    assert words(left(A, B), a=WORKS) == []


def test_what_has_ended_is_let_go_one_by_one() -> None:
    story = left(A, B, C)
    assert words(story, a=WORKS, b=ENDED) == [f"remove_units {B}"]
    assert words(story, a=ENDED, b=WORKS) == [f"remove_units {A}"]


def test_a_worker_that_comes_back_by_itself_is_told_to_stop_again() -> None:
    assert words(left(A, B), a=COMES_BACK) == [f"quiet {A}"]
    assert words(left(A, B), a=Seen(alive=False, wanted=True)) == [f"quiet {A}"]


@pytest.mark.parametrize(
    ("policy", "late", "killed"),
    [
        (plans.KILL, True, True),
        (plans.REQUEUE, True, True),
        (plans.LEAVE, True, False),
        (plans.KILL, False, False),
        (plans.REQUEUE, False, False),
    ],
)
def test_only_a_policy_that_says_so_kills_and_only_at_the_deadline(policy: str, late: bool, killed: bool) -> None:
    story = left(A, B, policy=policy, seconds=30.0)
    story.up = story.state.draining[A].deadline - (0.0 if late else 0.1)
    assert words(story, a=WORKS) == ([f"kill {A}"] if killed else [])


def test_what_was_started_since_a_reboot_has_no_task_of_before_and_is_not_killed() -> None:
    story = left(A, B, policy=plans.KILL, seconds=1.0)
    story.boot, story.up = "boot-2", 1e6
    assert words(story, a=WORKS) == []
    assert words(story, a=ENDED) == [f"remove_units {A}"]


def test_what_is_kept_only_because_it_ran_is_pruned_with_it() -> None:
    story = left(A, B, C, D, keep=1)
    assert words(story, a=ENDED, b=WORKS, c=WORKS) == [f"remove_units {A}", f"prune {A}"]
    assert words(story, a=ENDED, b=ENDED, c=ENDED)[3:] == [f"prune {B}", f"prune {A}"]


def test_nothing_is_pruned_while_somebody_is_at_work() -> None:
    story = left(A, B, C, keep=1).lease()
    assert words(story, a=ENDED, b=WORKS) == [f"remove_units {A}"]


def test_both_ends_of_an_open_rollout_are_left_alone() -> None:
    story = left(A, B, C).lease().switch(A)
    assert story.state.draining.keys() == {B}
    assert words(story, b=ENDED) == [f"remove_units {B}"]
    story = left(A, B).lease().stage(C).switch(C)
    assert words(story, a=ENDED, b=ENDED) == [f"remove_units {A}"]


STEPS = st.sampled_from(["deploy", "switch", "back", "settle", "left", "time"])


@given(
    st.lists(st.tuples(STEPS, st.sampled_from([A, B, C])), max_size=12),
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=4, max_size=4),
    st.sampled_from([plans.LEAVE, plans.KILL]),
)
def test_whatever_has_happened_what_is_wanted_is_never_touched(
    steps: list[tuple[str, str]], looks: list[tuple[bool, bool]], policy: str
) -> None:
    story = Story().good(D)
    for step, release in steps:
        _happen(story, step, release, policy)
    state = story.state
    seen = {release: Seen(*look) for release, look in zip((A, B, C, D), looks, strict=True)}
    touched = {action["release"] for action in plan_reap(state, seen, story.now)}
    rollout = state.rollout
    assert state.current not in touched
    if rollout and rollout.open:
        assert not touched & {rollout.origin, rollout.target, rollout.safe}
    gone = [action for action in plan_reap(state, seen, story.now) if action["action"] in ("remove_units", "prune")]
    assert not any(seen[action["release"]].alive for action in gone)


def _happen(story: Story, step: str, release: str, policy: str) -> None:
    state = story.state
    others: dict[str, Any] = {"seconds": 5.0, "policy": policy, "keep": 1}
    going = state.rollout is not None and state.rollout.open
    if step == "time":
        story.up += 10.0
    elif step == "switch" and not going:
        story.lease().stage(release).switch(release)
    elif step == "back" and state.good_releases():
        story.back(state.good_releases()[0])
    elif step in ("left", "settle") and going and state.rollout:
        leaves = {"releases": [each for each in (A, B, C, D) if each != state.rollout.target], **others}
        kind = "confirmed" if state.rollout.phase == "switched" else "rolled_back"
        story.note(kind, target=state.rollout.target, origin=state.rollout.origin, reason="", leaves=leaves)
        story.note("lease_released")
