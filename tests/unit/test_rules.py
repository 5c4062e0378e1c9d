# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may change a host, and where a rollback goes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout import rules
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import (
    LeaseHeld,
    NoGoodRelease,
    ReleaseRefused,
    StaleToken,
    StepOutOfOrder,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.pool_state import DEPLOY, ROLLBACK, PoolState
from ansible_collections.backstep.workers.plugins.module_utils._rollout.rules import Grant, Moment
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.story import Story, person

A, B, C = "1.0-aaaaaaaa", "2.0-bbbbbbbb", "3.0-cccccccc"


def ask(story: Story, token: int, kind: str = DEPLOY, run: str = "bob", adopt: str = "") -> Grant:
    return rules.decide_grant(story.state, story.now, token=token, kind=kind, owner=person(run), adopt=adopt)


# -- leases -------------------------------------------------------------------------------------------------------


def test_a_free_host_grants() -> None:
    assert ask(Story(), 1) == Grant(1, "granted")


def test_a_second_owner_is_refused_and_told_who_since_when_and_for_how_long() -> None:
    story = Story().lease("ana", seconds=300.0)
    with pytest.raises(LeaseHeld) as refused:
        ask(story, 2)
    text = str(refused.value)
    assert "ana@ops1 (pid 4711) holds this host for a deploy since 1970-01-12 13:48:20 UTC" in text
    assert "299 s" in text
    assert "Nothing was changed on this host." in text
    assert "ansible-playbook backstep.workers.rollback" in text
    assert refused.value.details["token"] == 1


def test_the_owner_itself_keeps_its_number() -> None:
    assert ask(Story().lease("ana"), 9, run="ana") == Grant(1, "kept")


def presses(story: Story, kind: str, run: str = "oncall", token: int = 9) -> bool:
    request = {"token": token, "kind": kind, "owner": person(run), "adopt": ""}
    return rules.pre_empts(story.state, story.now, request)


def test_a_drain_gives_way_to_a_rollback_and_to_nothing_else() -> None:
    story = Story().good(A).lease("ana").stage(B)
    assert presses(story, ROLLBACK)
    assert not presses(story, DEPLOY)
    assert not presses(story, ROLLBACK, token=1), "an old number that its asker has left lying there"
    story.note("lease_released")
    assert presses(story, ROLLBACK), "a person's drain, under no lease"
    assert not presses(story, DEPLOY)


def test_the_drain_of_a_rollback_gives_way_to_nobody() -> None:
    story = Story().good(A).good(B).lease("oncall", ROLLBACK)
    assert not presses(story, ROLLBACK)
    assert not presses(story, ROLLBACK, run="other")
    story.note("rollback_started", origin=B, target=A, verdict="bad", reason="", mode="replace")
    story.up += 1000.0
    assert not presses(story, ROLLBACK, run="other"), "not even when its lease has run out in the middle of the drain"


def test_a_dead_owner_s_lease_is_adopted() -> None:
    assert ask(Story().lease("ana"), 2, adopt="ana") == Grant(2, "adopted")
    with pytest.raises(LeaseHeld):
        ask(Story().lease("ana"), 2, adopt="somebody else")


def test_a_lease_without_a_run_is_not_adopted_by_naming_nobody() -> None:
    """The host program's own leases have no run, and an asker that adopts nobody names none."""
    story = Story().lease("ana", ROLLBACK)
    story.events[0]["owner"] = {"user": "root", "controller": "w1"}
    with pytest.raises(LeaseHeld):
        ask(story, 2)
    with pytest.raises(LeaseHeld):
        rules.decide_grant(story.state, story.now, token=2, kind=DEPLOY, owner={"user": "eve"}, adopt="")


def test_a_rollback_pre_empts_a_deploy_and_nothing_pre_empts_a_rollback() -> None:
    assert ask(Story().lease("ana", DEPLOY), 2, ROLLBACK) == Grant(2, "preempted")
    for kind in (DEPLOY, ROLLBACK):
        with pytest.raises(LeaseHeld, match="for a rollback"):
            ask(Story().lease("ana", ROLLBACK), 2, kind)


def test_who_asks_late_for_a_way_back_learns_that_a_rollback_has_come_after_him() -> None:
    story = Story().lease("ana", DEPLOY).lease("oncall", ROLLBACK)
    with pytest.raises(
        StaleToken, match=r"rollout 2 of oncall@ops1 \(pid 4711\) \(rollback\) has superseded it"
    ) as late:
        ask(story, 1, ROLLBACK)
    assert late.value.details["superseded_by"] == "rollout 2 of oncall@ops1 (pid 4711) (rollback)"
    with pytest.raises(LeaseHeld, match="holds this host for a rollback"):
        ask(story, 2, ROLLBACK)


@pytest.mark.parametrize("token", [0, 1])
@pytest.mark.parametrize("kind", [DEPLOY, ROLLBACK])
def test_a_number_that_was_seen_already_is_refused_however_the_lease_is_had(token: int, kind: str) -> None:
    for story in (Story().lease("ana").note("lease_released"), Story().lease("ana", seconds=1.0)):
        with pytest.raises(StaleToken, match="not newer than 1"):
            ask(story, token, kind, adopt="ana")


def test_expiry_another_boot_and_giving_back_end_a_lease() -> None:
    story = Story().lease("ana", seconds=10.0)
    lease = story.state.lease
    assert lease is not None
    assert rules.is_live(lease, Moment(story.boot, lease.expires - 0.001, 0))
    assert not rules.is_live(lease, Moment(story.boot, lease.expires, 0))
    assert not rules.is_live(lease, Moment("boot-2", 0.0, 0))
    assert not rules.is_live(None, story.now)
    assert not rules.is_live(story.note("lease_released").state.lease, story.now)


def test_a_wall_clock_that_jumps_ends_no_lease() -> None:
    story = Story().lease("ana", seconds=10.0)
    assert rules.is_live(story.state.lease, Moment(story.boot, story.up, 9e12))


def refusal(story: Story, token: int) -> str:
    with pytest.raises(StaleToken) as refused:
        rules.require_lease(story.state, story.now, token)
    return str(refused.value)


def test_a_run_that_has_lost_a_host_is_told_where_it_stands() -> None:
    lost = Story().good(A).lease("ana", seconds=50.0).stage(B).switch(B, deadline=600.0)
    lost.up += 60.0
    said = refusal(lost, lost.state.last_token)
    assert re.search(r"run out 1\d s ago, and nobody has taken it", said)
    assert re.search(f"It is on {B} and was not confirmed: its guard takes it back to {A} within 5\\d\\d s.", said)
    lost.up += 1000.0
    assert f"takes it back to {A} now." in refusal(lost, lost.state.last_token)
    lost.note("rollback_started", origin=B, target=A, verdict="bad", reason="", mode="overlap", by="guard")
    assert f"It is on {B}, and on its way back to {A}." in refusal(lost, 1)
    settled = Story().good(A)
    assert f"It is on {A}, and nothing is open on it." in refusal(settled, 1)


def test_what_a_host_was_still_doing_when_its_guard_s_time_came_is_not_made_good() -> None:
    story = Story().good(A).lease("ana").stage(B).switch(B, deadline=600.0)
    rules.require_in_time(story.state, story.now, B)
    story.up = story.state.rollout.deadline or 0.0  # type: ignore[union-attr]
    with pytest.raises(StepOutOfOrder, match="not confirmed: its guard's time came 0 s ago"):
        rules.require_in_time(story.state, story.now, B)


def test_a_step_needs_the_live_lease_and_is_told_why_it_has_not() -> None:
    story = Story().lease("ana")
    rules.require_lease(story.state, story.now, 1)
    assert "never granted it; it knows 1" in refusal(story, 2)
    assert "nobody holds" in refusal(Story(), 1)
    assert "has run out" in refusal(Story().lease("ana", seconds=0.5), 1)
    assert "was given back" in refusal(Story().lease("ana").note("lease_released"), 1)
    superseded = refusal(Story().lease("ana").lease("bob", ROLLBACK), 1)
    assert "rollout 2 of bob@ops1 (pid 4711) (rollback) has superseded it" in superseded
    assert "backstep.workers.status" in superseded


REQUEST = st.fixed_dictionaries(
    {
        "run": st.sampled_from(["ana", "bob", "cy"]),
        "kind": st.sampled_from([DEPLOY, ROLLBACK]),
        "ahead": st.integers(-1, 3),
        "adopt": st.sampled_from(["", "ana", "bob"]),
        "later": st.floats(0, 40),
        "reboot": st.booleans(),
        "release": st.booleans(),
    }
)


@given(st.lists(REQUEST, max_size=12))
def test_in_any_order_of_requests_numbers_only_grow_and_one_owner_holds(requests: list[dict[str, Any]]) -> None:
    story = Story()
    granted: list[int] = []
    for request in requests:
        story.up += request["later"]
        story.boot = "boot-2" if request["reboot"] else story.boot
        held = rules.is_live(story.state.lease, story.now)
        before = story.state.lease
        try:
            grant = ask(
                story, story.state.last_token + request["ahead"], request["kind"], request["run"], request["adopt"]
            )
        except (LeaseHeld, StaleToken):
            continue
        if grant.how == "kept":
            assert held
            assert before is not None
            assert before.owner["run"] == request["run"]
            continue
        assert not held or grant.how in ("adopted", "preempted")
        if grant.how == "preempted":
            assert before is not None
            assert (before.kind, request["kind"]) == (DEPLOY, ROLLBACK)
        assert not granted or grant.token > granted[-1]
        granted.append(grant.token)
        story.token = grant.token
        story.note("lease_granted", kind=request["kind"], owner=person(request["run"]), seconds=30.0)
        rules.require_lease(story.state, story.now, grant.token)
        for old in granted[:-1]:
            assert refusal(story, old)
        if request["release"]:
            story.note("lease_released")
            assert refusal(story, grant.token)


# -- steps --------------------------------------------------------------------------------------------------------


def test_a_bad_release_is_never_run_again_and_its_reason_is_told() -> None:
    state = Story().good(A).bad(B).state
    for require in (rules.require_target, rules.require_switch, rules.rollback_target):
        with pytest.raises(ReleaseRefused, match=f"{B} is quarantined as bad: it broke"):
            require(state, B)


def test_an_unknown_and_an_unfinished_release_are_no_targets() -> None:
    story = Story().good(A).lease().note("stage_started", release=B, version="2.0")
    with pytest.raises(ReleaseRefused, match="was never finished on this host"):
        rules.require_switch(story.state, B)
    with pytest.raises(ReleaseRefused, match="is not on this host"):
        rules.require_switch(story.state, C)


def test_no_switch_while_the_host_is_on_its_way_back() -> None:
    story = Story().good(A).lease().stage(B).stage(C).switch(B)
    rules.require_switch(story.state, C)
    story.back(A)
    with pytest.raises(StepOutOfOrder, match=f"on its way back to {A}") as refused:
        rules.require_switch(story.state, C)
    assert "backstep.workers.rollback" in refused.value.next_step
    rules.require_switch(story.settle().state, C)


def test_only_the_rollout_that_switched_the_host_confirms_and_only_once() -> None:
    story = Story().good(A).lease().stage(B)
    assert not rules.require_confirm(story.state, 2, A)
    with pytest.raises(StepOutOfOrder, match="can't be confirmed"):
        rules.require_confirm(story.state, 2, B)
    story.switch(B)
    assert rules.require_confirm(story.state, 2, B)
    for token, release in ((3, B), (2, A), (2, None)):
        with pytest.raises(StepOutOfOrder):
            rules.require_confirm(story.state, token, release)
    assert not rules.require_confirm(story.confirm().state, 2, B)
    assert not rules.require_confirm(story.state, 3, B)


def test_a_confirmation_that_comes_after_the_guard_is_refused() -> None:
    story = Story().good(A).lease().stage(B).switch(B).back(A)
    with pytest.raises(StepOutOfOrder, match="finds this host restored"):
        rules.require_confirm(story.state, 2, B)
    assert rules.require_confirm(story.state, 2, A)
    with pytest.raises(StepOutOfOrder) as refused:
        rules.require_confirm(story.settle().state, 2, B)
    assert f"stays on {A}" in refused.value.left


def test_a_switch_that_stopped_half_way_is_not_confirmed() -> None:
    story = Story().good(A).lease().stage(B)
    story.note("switch_started", origin=A, target=B, safe=A, mode="overlap")
    with pytest.raises(StepOutOfOrder, match="finds this host switching"):
        rules.require_confirm(story.state, 2, B)


# -- the way back -------------------------------------------------------------------------------------------------


def way(story: Story, wish: str = "") -> str | None:
    return rules.rollback_target(story.state, wish)


def test_after_good_bad_bad_the_way_back_is_to_the_good_one() -> None:
    story = Story().good(A).bad(B).bad(C)
    assert way(story) == A
    assert story.state.current == A


def test_from_a_good_release_back_to_the_one_before_and_then_no_further() -> None:
    story = Story().good(A).good(B).good(C)
    assert way(story) == B
    story.lease(kind=ROLLBACK).back(B, "bad").settle()
    assert way(story) == B
    assert way(story.bad("4.0-dddddddd")) == B


def test_out_of_an_open_rollout_to_its_safe_release() -> None:
    story = Story().good(A).good(B).lease().stage(C).switch(C)
    assert way(story) == B
    assert way(story.back(B)) == B


def test_the_first_deploy_while_open_goes_back_to_nothing() -> None:
    assert way(Story().lease().stage(A).switch(A)) is None


def test_no_way_back_is_said_loudly() -> None:
    with pytest.raises(NoGoodRelease, match="nothing was ever confirmed on this host"):
        way(Story())
    with pytest.raises(NoGoodRelease, match=f"{A} is the only one") as refused:
        way(Story().good(A))
    assert "backstep.workers.deploy" in refused.value.next_step
    with pytest.raises(NoGoodRelease):
        way(Story().lease().stage(A).switch(A).back(None, "bad").settle())


def test_previous_is_what_it_is_without_a_wish() -> None:
    for story in (Story().good(A).good(B), Story().good(A).bad(B), Story().good(A).good(B).lease().stage(C).switch(C)):
        assert way(story, "previous") == way(story)


def test_a_wish_has_to_be_good() -> None:
    story = Story().good(A).good(B).good(C).lease().stage("4.0-dddddddd")
    assert way(story, A) == A
    with pytest.raises(ReleaseRefused, match=r"never confirmed as good on this host \(it is staged\)") as refused:
        way(story, "4.0-dddddddd")
    assert refused.value.next_step == f"Choose one of: {C}, {B}, {A}."
    with pytest.raises(ReleaseRefused, match="is not on this host"):
        way(story, "0.1-00000000")


def test_the_guard_s_release_is_the_latest_good_one() -> None:
    assert rules.last_good(PoolState()) is None
    assert rules.last_good(Story().good(A).good(B).bad(C).state) == B


@given(st.lists(st.sampled_from(["good", "bad", "unknown"]), min_size=1, max_size=6))
def test_whatever_was_deployed_the_way_back_is_good_and_twice_is_once(verdicts: list[str]) -> None:
    story = Story().good(A)
    for number, verdict in enumerate(verdicts):
        release = f"{number}-00000000"
        if verdict == "good":
            story.good(release)
        else:
            story.lease().stage(release).switch(release)
            assert way(story) == rules.last_good(story.state)
            story.back(way(story), verdict).settle()
    try:
        first = way(story)
    except NoGoodRelease:
        assert story.state.current == A
        return
    assert first is not None
    assert story.state.state_of(first) == "good"
    story.lease(kind=ROLLBACK)
    if first != story.state.current:
        story.back(first, "bad").settle()
    assert way(story) == first
