# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hooks: what people may write, which are to be run, what their end means, and what is not run twice."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._hook_args import hooks_of
from ansible_collections.backstep.workers.plugins.module_utils._rollout import fleet, hooks
from ansible_collections.backstep.workers.plugins.module_utils._rollout import record as records
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput, StepOutOfOrder
from ansible_collections.backstep.workers.plugins.module_utils._rollout.hook_steps import STEPS
from ansible_collections.backstep.workers.plugins.module_utils._rollout.masking import hide
from ansible_collections.backstep.workers.plugins.module_utils._rollout.pool_state import PoolState

from tests.unit.story import Story
from tests.unit.test_fleet import answer
from tests.unit.test_record import planned, start

A, B = "1.0-aaaaaaaa", "2.0-bbbbbbbb"
EVERY = hooks_of({step: [["each", step], {"command": ["one", step], "where": "once"}] for step in STEPS})


# -- what people write --------------------------------------------------------------------------------------------


def test_a_command_is_a_list_of_words_or_says_more() -> None:
    given = {"after_switch": [["a", 1], {"command": ["b"], "timeout": 5, "where": "once", "chdir": "bin"}]}
    assert hooks_of({**given, "before_switch": None, "after_stage": []}) == {
        "after_switch": [
            {"command": ["a", "1"], "timeout": 60.0, "where": "hosts", "chdir": ""},
            {"command": ["b"], "timeout": 5.0, "where": "once", "chdir": "bin"},
        ]
    }


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"before_lunch": []}, "'before_lunch' is no step"),
        ({"after_switch": "./x"}, "a list of commands"),
        ({"after_switch": ["./x", "--y"]}, "'./x', which is no command"),
        ({"after_switch": [[]]}, "no command"),
        ({"after_switch": [[["x"]]]}, "no command"),
        ({"after_switch": [{"timeout": 5}]}, "no command"),
        ({"after_switch": [{"command": ["x"], "shell": True}]}, "'shell'"),
        ({"after_switch": [{"command": ["x"], "where": "w1"}]}, "'w1'"),
        ({"after_switch": [{"command": ["x"], "timeout": 0}]}, "timeout: 0"),
        ({"after_switch": [{"command": ["x"], "timeout": "soon"}]}, "timeout: 'soon'"),
        ({"after_switch": [{"command": ["x"], "timeout": float("nan")}]}, "timeout: nan"),
    ],
)
def test_anything_else_is_refused_with_an_example(given: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput) as refused:
        hooks_of(given)
    assert why in refused.value.message
    assert refused.value.message.startswith("pool_hooks: ")
    assert "pool_hooks: {before_switch:" in refused.value.next_step


# -- which are to be run ------------------------------------------------------------------------------------------


def words(actions: list[dict[str, Any]]) -> list[str]:
    return [action["command"][0] for action in actions]


def staged() -> Story:
    return Story().good(A).lease().stage(B, hooks=EVERY)


def pending(state: PoolState, step: str, once: bool = True) -> list[str]:
    return words(hooks.pending(state, B, step, once=once))


def test_hooks_for_one_host_run_on_that_one() -> None:
    assert [pending(staged().state, "before_switch", once) for once in (True, False)] == [["each", "one"], ["each"]]


@pytest.mark.parametrize("step", ["before_switch", "after_switch", "before_confirm"])
def test_what_has_gone_well_is_not_run_again_by_a_run_that_goes_on(step: str) -> None:
    story = staged()
    if step != "before_switch":
        story.switch(B)
    story.hook(B, step).hook(B, step, 2, "failed")
    # The controller has died: the next one has another number.
    story.lease("bob")
    if step != "before_switch":
        story.switch(B)
    assert pending(story.state, step) == ["one"]
    story.hook(B, step, 2)
    assert pending(story.state, step) == []


def test_a_rollout_of_its_own_runs_them_again() -> None:
    story = staged().hook(B, "before_switch").note("lease_released").lease()
    assert pending(story.state, "before_switch") == ["each", "one"]
    story.switch(B).hook(B, "after_switch").back(A).settle().note("lease_released").lease().switch(B)
    assert pending(story.state, "after_switch") == ["each", "one"]
    assert pending(story.back(A).settle().state, "before_confirm") == ["each", "one"]


def test_a_host_that_is_there_already_has_no_switch_to_run_them_for() -> None:
    story = staged().switch(B).confirm().hook(B, "after_confirm").note("lease_released").lease()
    for step in ("before_switch", "after_switch", "before_confirm"):
        assert pending(story.state, step) == []
    assert pending(story.state, "after_confirm") == ["one"], "it failed there, or nobody got to it"


def test_the_next_switch_has_its_own_hooks_after_the_confirmation() -> None:
    story = staged().switch(B).confirm().hook(B, "after_confirm").note("lease_released")
    story.lease(kind="rollback").back(A).settle().note("lease_released").lease().switch(B).confirm()
    assert pending(story.state, "after_confirm") == ["each", "one"]
    story.hook(B, "after_confirm").note("lease_released").lease().stage(A).switch(A).confirm().note("lease_released")
    assert pending(story.lease().switch(B).confirm().state, "after_confirm") == ["each", "one"]


def test_check_mode_shows_what_the_switch_that_it_does_not_make_will_need() -> None:
    story = staged().switch(B).hook(B, "after_switch").confirm().hook(B, "after_confirm").note("lease_released")
    story.good(A)
    for step in ("before_switch", "after_switch", "before_confirm", "after_confirm"):
        assert pending(story.state, step) == ["each", "one"]
    state = Story().good(A).state.as_if_staged(B, hooks=EVERY)
    assert pending(state, "after_confirm") == ["each", "one"]


def test_the_way_back_runs_those_of_the_release_that_is_left() -> None:
    story = staged()
    story.note("switch_started", origin=A, target=B, safe=A, mode="overlap", once=True)
    story.note("switched", target=B, processes={})
    found = hooks.pending_rollback(story.state, B, A, "before_rollback")
    assert [(action["release"], action["command"][0]) for action in found] == [(B, "each"), (B, "one")]
    assert hooks.pending_rollback(story.state, A, A, "before_rollback") == []
    assert hooks.pending_rollback(story.state, None, A, "before_rollback") == []
    story.note(
        "rollback_started", origin=B, target=A, verdict="bad", reason="", mode="overlap", once=True
    )  # fmt: skip
    story.hook(B, "before_rollback")
    assert words(hooks.pending_rollback(story.state, B, A, "before_rollback")) == ["one"]
    assert words(hooks.pending_rollback(story.state, B, A, "after_rollback")) == ["each", "one"]
    assert story.settle().state.ran == {}


def test_a_host_that_was_not_the_one_does_not_run_its_hooks_on_the_way_back() -> None:
    state = staged().switch(B).state
    assert words(hooks.pending_rollback(state, B, A, "before_rollback")) == ["each"]


def test_a_rerun_stays_the_host_for_one_host_s_hooks() -> None:
    story = staged()
    story.note("switch_started", origin=A, target=B, safe=A, mode="overlap", once=True).lease("bob")
    story.note("switch_started", origin=A, target=B, safe=A, mode="overlap", once=False)
    assert hooks.is_once(story.state, B)


# -- order --------------------------------------------------------------------------------------------------------


def test_steps_wait_for_their_hooks() -> None:
    story = staged()
    with pytest.raises(StepOutOfOrder, match=r"hook before_switch 1 \(`each before_switch`\) of 2\.0"):
        hooks.require_ran(story.state, B, ("before_switch",), once=False)
    hooks.require_ran(story.hook(B, "before_switch").state, B, ("before_switch",), once=False)
    with pytest.raises(StepOutOfOrder, match="before_switch 2"):
        hooks.require_ran(story.state, B, ("before_switch",), once=True)


@pytest.mark.parametrize("step", ["after_switch", "before_confirm", "after_confirm"])
def test_hooks_do_not_run_before_their_step(step: str) -> None:
    story = staged()
    with pytest.raises(StepOutOfOrder, match=f"hooks {step}"):
        hooks.require_step(story.state, story.token, B, step)
    story.switch(B)
    if step == "after_confirm":
        with pytest.raises(StepOutOfOrder):
            hooks.require_step(story.state, story.token, B, step)
        story.confirm()
    hooks.require_step(story.state, story.token, B, step)
    story.lease("bob", kind="rollback").back(A)
    with pytest.raises(StepOutOfOrder):
        hooks.require_step(story.state, story.token, B, step)


def test_a_hook_that_was_cut_short_is_remembered_until_it_has_ended() -> None:
    story = staged().note("hook_started", release=B, step="before_switch", number=1, command=["x"])
    assert story.state.hooking is not None
    assert story.state.hooking["step"] == "before_switch"
    story.hook(B, "before_switch", outcome="not_run")
    assert (story.state.hooking, story.state.ran) == (None, {})


# -- what their end means -----------------------------------------------------------------------------------------


def result(step: str, outcome: str, code: int = 0, output: str = "") -> dict[str, Any]:
    what = {"release": B, "step": step, "number": 1, "command": ["./x", "y"]}
    return {**what, "outcome": outcome, "code": code, "seconds": 60.4, "output": output}


@pytest.mark.parametrize("step", STEPS)
def test_the_verdict_on_a_hook(step: str) -> None:
    found = {outcome: hooks.verdict_of(result(step, outcome)) for outcome in ("done", "failed", "timeout", "not_run")}
    if step in ("before_stage", "after_stage", "before_switch"):
        assert found == {"done": "good", "failed": "unknown", "timeout": "unknown", "not_run": "unknown"}
    elif step in ("after_switch", "before_confirm"):
        assert found == {"done": "good", "failed": "bad", "timeout": "unknown", "not_run": "unknown"}
    else:
        assert set(found.values()) == {"good"}, "nothing is decided by it any more"


def test_the_sentence_on_a_hook() -> None:
    assert hooks.sentence(result("after_switch", "failed", 3, "a\nno rows")) == (
        "hook after_switch 1 (`./x y`) ended with 3: no rows"
    )
    assert "was killed after 60 s" in hooks.sentence(result("after_switch", "timeout"))


def enter(record: dict[str, Any], step: str, results: list[dict[str, Any]]) -> None:
    answers: dict[str, Any] = {"w1": {"release": B, "hooks": results}, "w2": {"release": B, "hooks": []}}
    records.note_step(record, ["w1", "w2"], step, answers, "hooks", touches=True, judges=step != "after_confirm")


def test_a_hook_that_fails_after_the_switch_is_a_bad_verdict() -> None:
    record = start()
    enter(record, "after_switch", [result("after_switch", "failed", 3)])
    assert record["verdict"] == "bad"
    assert records.reasons(record) == "w1: hook after_switch 1 (`./x y`) ended with 3"
    assert records.failed_hooks(record) == [records.reasons(record)]


@pytest.mark.parametrize("given", [{"w1": {"msg": "no route"}}, {"w1": {"release": B, "hooks": []}}])
def test_after_the_confirmation_nothing_goes_back(given: dict[str, Any]) -> None:
    record = start()
    for step in ("switch", "confirm"):
        records.note_step(record, ["w1"], step, {"w1": {"release": B}}, "release", touches=True)
    if "hooks" in given["w1"]:
        given["w1"]["hooks"] = [result("after_confirm", "failed", 3)]
    records.note_step(record, ["w1"], "after_confirm", given, "hooks", touches=True, judges=False)
    found = records.outcome(planned(hosts=["w1"]), record)
    assert (record["verdict"], found["ok"], found["ended"], found["hosts"]) == ("good", False, "deployed", {"w1": B})
    assert "w1: " in found["reasons"]


def test_a_way_back_with_a_hook_that_fails_is_not_ok() -> None:
    record = start()
    way = planned(kind="rollback", release=A, hosts=["w1"])
    failed = {"w1": {"release": A, "hooks": [result("before_rollback", "timeout")]}}
    records.note_step(record, ["w1"], "go back", failed, "release", touches=True)
    records.note_step(record, ["w1"], "confirm the way back", {"w1": {"release": A}}, "release", touches=True)
    found = records.outcome(way, record)
    assert (found["ok"], found["ended"], found["exceptions"]) == (False, "rolled_back", {})
    assert "hook before_rollback 1" in found["reasons"]


def test_secrets_are_hidden_in_every_spelling() -> None:
    secrets = ["hush-1", "line one\nline two", "redis://:p%40ssword@h/0", "no", ""]
    text = "hush-1, line two, p@ssword, p%40ssword, no, x://:other@h"
    assert hide(text, secrets) == "***, ***, ***, ***, no, x://:***@h"


# -- the fleet ----------------------------------------------------------------------------------------------------


def test_the_host_for_one_host_s_hooks_stays_the_same() -> None:
    answers = {"w1": answer(), "w2": answer()}
    assert fleet.plan_deploy(answers, [1], (), False).once == "w1"
    answers["w2"] = answer(rollout={"open": True, "phase": "switched", "target": B, "safe": A, "once": True})
    assert fleet.plan_deploy(answers, [1], (), False).once == "w2"
    answers["w2"] = answer(rollout={"open": False, "phase": "rolled_back", "target": A, "once": True})
    assert fleet.plan_deploy(answers, [1], (), False).once == "w1"


def test_a_host_with_hooks_to_run_is_not_settled() -> None:
    there = {"actions": 0, "current": B, "good": [B, A]}
    assert not fleet.plan_deploy({"w1": answer(**there)}, [1], (), False).needed
    assert fleet.plan_deploy({"w1": answer(**there, hooks_pending=[{}])}, [1], (), False).hosts == ["w1"]


def test_hooks_that_take_too_long_for_guard_or_lease_are_refused() -> None:
    plan = fleet.plan_deploy({"w1": answer(), "w2": answer()}, [1], (), False)
    fleet.require_time(plan, 100.0, 260.0, 60.0)
    with pytest.raises(BadInput, match=r"2 waves of up to 100 s and up to 61 s for hooks and the scheduler don't fit"):
        fleet.require_time(plan, 100.0, 260.0, 61.0)
    fleet.require_lease_time(hooks_of({"after_switch": [["x"], ["y"]]}), 121.0)
    with pytest.raises(BadInput, match=r"after_switch may take 120 s.*pool_lease_timeout \(120 s\)"):
        fleet.require_lease_time(hooks_of({"after_switch": [["x"], ["y"]]}), 120.0)
