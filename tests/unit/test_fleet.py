# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is planned for the whole pool, from what each host has answered."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout import fleet
from ansible_collections.backstep.workers.plugins.module_utils._rollout.answers import failure_of
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import (
    BadInput,
    HostUnfit,
    LeaseHeld,
    NoGoodRelease,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.fleet import FleetPlan

A, B = "1.0-aaaaaaaa", "2.0-bbbbbbbb"


def pool_state(**changed: Any) -> dict[str, Any]:
    """A host on A, idle, that has answered ``release_info``."""
    return {
        "current": A,
        "current_state": "good",
        "running": {A: 2},
        "processes": [{"index": 1, "pid": 11}],
        "good": [A],
        "rollout": None,
        "lease": None,
        "last_token": 3,
        "problems": [],
        "rollback": {"target": A, "needed": False, "problem": ""},
        **changed,
    }


def answer(release: str = B, actions: int = 2, **changed: Any) -> dict[str, Any]:
    """What ``release`` with ``state: planned`` gives for a host."""
    return {"release": release, "actions": [{}] * actions, "pool_state": pool_state(**changed)}


def lease(run: str = "r1", kind: str = "deploy") -> dict[str, Any]:
    owner = {"run": run, "user": "ana", "controller": "ops1", "pid": 7}
    return {"owner": owner, "kind": kind, "expires_in": 120.4}


def deploy(answers: dict[str, Any], **options: Any) -> FleetPlan:
    terms: dict[str, Any] = {"sizes": [1, "100%"], "dead_runs": (), "partial": False, **options}
    return fleet.plan_deploy(answers, terms["sizes"], terms["dead_runs"], terms["partial"])


# -- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_answer", "why"),
    [
        (None, "gave no answer"),
        ({"unreachable": True, "msg": "no route"}, "unreachable: no route"),
        ({"unreachable": True, "release": B}, "unreachable: no answer"),
        ({"msg": "boom", "failed": True}, "boom"),
        ({"module_stderr": "Traceback"}, "Traceback"),
        ({"msg": "boom", "release": B, "error": {"code": "x"}}, "boom"),
        ({}, "failed without a message"),
        ({"release": B}, ""),
    ],
)
def test_an_answer_counts_only_with_what_was_asked_for(given_answer: dict[str, Any] | None, why: str) -> None:
    assert failure_of(given_answer, "release") == why


def test_hosts_that_answer_badly_are_named_by_what_is_wrong() -> None:
    answers = {"w1": answer(), "w2": {"msg": "no room"}, "w3": {"msg": "no room"}, "w4": None}
    with pytest.raises(HostUnfit) as refused:
        deploy(answers)
    assert "w2, w3: no room" in refused.value.message
    assert "w4: gave no answer" in refused.value.message
    assert refused.value.details["hosts"] == ["w2", "w3", "w4"]


def test_many_hosts_are_cut_short_and_all_are_called_all() -> None:
    none: dict[str, Any] = {f"w{number}": None for number in range(12)}
    with pytest.raises(HostUnfit, match="all 12 hosts: gave no answer"):
        deploy(none)
    with pytest.raises(HostUnfit, match="and 4 more"):
        deploy({**none, "v1": answer()})


# -- the whole pool -----------------------------------------------------------------------------------------------


def test_serial_and_limit_are_refused_by_name() -> None:
    assert fleet.left_out(["a", "b"], ["a", "b"], ["b", "a"], [], False) == []
    with pytest.raises(BadInput, match="'serial'"):
        fleet.left_out(["a", "b"], ["a", "b"], ["a"], [], True)
    with pytest.raises(BadInput, match="--limit leaves out b, c") as refused:
        fleet.left_out(["a", "b", "c"], ["a"], ["a"], [], False)
    assert "pool_partial=true" in refused.value.next_step
    with pytest.raises(BadInput) as refused:
        fleet.left_out(["a", "b"], ["a"], ["a"], [], False, "Launch it again.")
    assert refused.value.next_step == "Launch it again."
    assert fleet.left_out(["a", "b"], ["a"], ["a"], [], True) == ["b"]


def test_hosts_can_be_left_out_by_name() -> None:
    assert fleet.left_out(["a", "b", "c"], ["a", "b", "c"], ["a", "c"], ["b"], False) == ["b"]
    assert fleet.left_out(["a", "b", "c"], ["a", "b"], ["a", "b"], ["b"], True) == ["b", "c"]
    with pytest.raises(BadInput, match="pool_skip names d"):
        fleet.left_out(["a", "b"], ["a", "b"], ["a", "b"], ["d"], False)
    with pytest.raises(BadInput, match="leaves no host"):
        fleet.left_out(["a", "b"], ["a", "b"], [], ["a", "b"], False)


# -- a deploy -----------------------------------------------------------------------------------------------------


def test_a_deploy_moves_the_hosts_that_are_not_there_yet() -> None:
    there = answer(actions=0, current=B, running={B: 2}, good=[B, A], last_token=7)
    plan = deploy({"w1": answer(), "w2": there, "w3": answer()})
    assert (plan.hosts, plan.settled, plan.release) == (["w1", "w3"], ["w2"], B)
    assert plan.waves == [["w1"], ["w3"]]
    assert plan.rollout == 8
    assert plan.before == {"w1": A, "w2": B, "w3": A}
    assert plan.back_to == {"w1": A, "w2": B, "w3": A}
    assert plan.needed


SETTLED: dict[str, Any] = {"actions": 0, "current": B, "running": {B: 2}, "good": [B, A]}


@pytest.mark.parametrize(
    "changed",
    [
        {"actions": 1},
        {"current": A},
        {"current_state": "unconfirmed"},
        {"processes": []},
        {"processes": [{"index": 1, "pid": 11}, {"index": 2, "pid": 0}]},
        {"rollout": {"open": True, "phase": "switched", "safe": A}},
    ],
)
def test_a_host_is_settled_only_when_everything_says_so(changed: dict[str, Any]) -> None:
    assert not deploy({"w1": answer(**SETTLED)}).needed
    assert deploy({"w1": answer(**{**SETTLED, **changed})}).hosts == ["w1"]


def test_a_release_that_differs_between_hosts_is_refused() -> None:
    with pytest.raises(BadInput, match=f"{A} on w1, {B} on w2"):
        deploy({"w1": answer(A), "w2": answer(B)})


def test_an_interrupted_rollback_is_finished_first() -> None:
    back = {"open": True, "phase": "going_back", "safe": A}
    plan = deploy({"w1": answer(), "w2": answer(rollout=back)})
    assert (plan.hosts, plan.unfinished, plan.waves) == ([], ["w2"], [])
    assert plan.needed


def test_a_last_good_release_that_can_not_be_used_stops_the_deploy() -> None:
    problem = f"The stored release {A} can't be used: app/app.py was changed."
    with pytest.raises(HostUnfit, match=r"There would be no way back.*app\.py was changed") as refused:
        deploy({"w1": answer(problems=[problem]), "w2": answer()})
    assert refused.value.left == "Nothing was changed."
    other = f"The stored release {B} can't be used: it is old."
    assert deploy({"w1": answer(problems=[other])}).needed


def test_the_first_deploy_has_no_way_back() -> None:
    plan = deploy({"w1": answer(current=None, current_state=None, running={}, good=[], last_token=0)})
    assert (plan.back_to, plan.rollout) == ({"w1": None}, 1)


def test_a_living_owner_stops_a_deploy_and_a_dead_one_is_adopted() -> None:
    with pytest.raises(LeaseHeld, match=r"w1 by ana@ops1 \(pid 7\) for a deploy") as refused:
        deploy({"w1": answer(lease=lease()), "w2": answer()})
    assert "within 120 s" in refused.value.next_step
    plan = deploy({"w1": answer(lease=lease()), "w2": answer()}, dead_runs={"r1"})
    assert plan.adopt == {"w1": "r1"}


def test_a_rollout_that_would_outlast_its_guards_is_refused_with_the_numbers() -> None:
    plan = deploy({"w1": answer(), "w2": answer()})
    fleet.require_time(plan, 300.0, 600.0)
    with pytest.raises(BadInput, match=r"2 waves of up to 301 s don't fit into pool_confirm_timeout \(600 s\)"):
        fleet.require_time(plan, 301.0, 600.0)


# -- a rollback ---------------------------------------------------------------------------------------------------


def back(target: str | None = A, needed: bool = True, problem: str = "", **changed: Any) -> dict[str, Any]:
    way = {"target": target, "needed": needed, "problem": problem}
    return {"pool_state": pool_state(rollback=way, **{"current": B, **changed})}


def test_a_rollback_takes_the_hosts_that_are_not_back_all_at_once() -> None:
    plan = fleet.plan_rollback({"w1": back(), "w2": back(needed=False), "w3": back()}, (), False)
    # Also the one that is back: a deploy that is still at work could yet switch it.
    assert (plan.hosts, plan.settled, plan.waves) == (["w1", "w2", "w3"], [], [["w1", "w2", "w3"]])
    assert (plan.kind, plan.release, plan.rollout) == ("rollback", A, 4)


def test_a_rollback_goes_on_without_a_host_that_gives_no_answer() -> None:
    answers = {"w1": back(), "w2": {"unreachable": True, "msg": "no route"}}
    plan = fleet.plan_rollback(answers, (), False)
    assert (plan.hosts, plan.settled) == (["w1"], [])
    with pytest.raises(HostUnfit, match="unreachable"):
        fleet.plan_rollback({"w2": answers["w2"]}, (), False)


def test_a_rollback_without_a_good_release_says_so() -> None:
    with pytest.raises(NoGoodRelease, match="1 of 1 hosts: nothing was ever confirmed"):
        fleet.plan_rollback({"w1": back(None, False, "nothing was ever confirmed")}, (), False)
    damaged = {"msg": "Line 3 of the journal was changed"}
    with pytest.raises(NoGoodRelease, match=r"1 of 1 hosts: nothing.* \| w2: Line 3 of the journal was changed"):
        fleet.plan_rollback({"w1": back(None, False, "nothing was ever confirmed"), "w2": damaged}, (), False)
    with pytest.raises(HostUnfit, match="can't be used"):
        fleet.plan_rollback({"w1": back(problem=f"{A} can't be used"), "w2": back()}, (), False)


def test_last_good_releases_that_differ_have_to_be_named() -> None:
    with pytest.raises(BadInput, match=f"{A} on w1, {B} on w2") as refused:
        fleet.plan_rollback({"w1": back(A), "w2": back(B)}, (), False)
    assert "pool_to=<id>" in refused.value.next_step


@pytest.mark.parametrize(
    "untouched", [back("0.9-cccccccc", current=A), back(None, False, "A is the only one", current=A)]
)
def test_hosts_that_a_failed_rollout_never_touched_stay_where_the_others_go(untouched: dict[str, Any]) -> None:
    taken_back = back(needed=False, current=A)
    plan = fleet.plan_rollback({"w1": taken_back, "w2": untouched}, (), False)
    assert (plan.release, plan.hosts, plan.needed) == (A, [], False)
    between = back(rollout={"open": True, "phase": "switched", "safe": A})
    plan = fleet.plan_rollback({"w1": between, "w2": untouched}, (), False)
    assert (plan.release, plan.hosts, plan.back_to) == (A, ["w1", "w2"], {"w1": A, "w2": A})


def test_a_damaged_release_on_a_host_that_is_back_is_told() -> None:
    with pytest.raises(HostUnfit, match="can't be used"):
        fleet.plan_rollback({"w1": back(needed=False, problem=f"{A} can't be used", current=A)}, (), False)


def test_a_rollback_pre_empts_a_deploy_and_waits_for_a_rollback() -> None:
    assert fleet.plan_rollback({"w1": back(lease=lease())}, (), False).hosts == ["w1"]
    with pytest.raises(LeaseHeld):
        fleet.plan_rollback({"w1": back(lease=lease(kind="rollback"))}, (), False)
    plan = fleet.plan_rollback({"w1": back(lease=lease(kind="rollback"))}, {"r1"}, False)
    assert plan.adopt == {"w1": "r1"}


def test_the_baseline_counts_the_workers_of_the_releases_before() -> None:
    plan = deploy({"w1": answer(), "w2": answer()})
    workers = [
        {"name": f"mail/{A}/w1/1/77", "finished": 10, "failed": 1},
        {"name": f"mail/{B}/w1/1/78", "finished": 500, "failed": 500},
        {"name": f"mail/{A}/w2/1/79", "finished": 5, "failed": None},
        {"name": "somebody-else", "finished": 9, "failed": 9},
    ]
    assert fleet.baseline(plan, workers) == {"finished": 15, "failed": 1}


# -- enough consumers ---------------------------------------------------------------------------------------------


def consuming(host: str, index: int, queue: str) -> dict[str, Any]:
    return {"name": f"mail/{A}/{host}/{index}/1{index}", "queues": [queue]}


def processes(host: str, *indices: int) -> list[dict[str, Any]]:
    return [{"index": index, "pid": 10 + index, "worker": f"mail/{A}/{host}/{index}/1{index}"} for index in indices]


def held(least: int | str, queues: list[Any], workers: list[dict[str, Any]]) -> list[list[str]]:
    hosts = ("w1", "w2", "w3")
    answers: dict[str, Any] = {host: answer(processes=processes(host, 1, 2)) for host in hosts}
    plan = deploy(answers, sizes=["100%"])
    fleet.hold_consuming(plan, least, answers, queues, 1, workers)
    return plan.waves


def test_waves_are_cut_by_who_consumes_each_queue() -> None:
    workers = [consuming(host, 1, "mail") for host in ("w1", "w2", "w3")]
    assert held(2, ["mail"], workers) == [["w1"], ["w2"], ["w3"]]
    assert held(1, ["mail"], workers) == [["w1", "w2"], ["w3"]]
    for least in ("", 0, "0"):
        assert held(least, ["mail"], workers) == [["w1", "w2", "w3"]]


def test_a_worker_that_its_host_does_not_see_alive_consumes_nothing() -> None:
    workers = [consuming(host, 1, "mail") for host in ("w1", "w2", "w3")] + [consuming("w1", 9, "mail")]
    assert held(2, ["mail"], workers) == [["w1"], ["w2"], ["w3"]]


def test_a_process_for_several_queues_counts_for_each() -> None:
    workers = [consuming(host, 1, "high") for host in ("w1", "w2", "w3")]
    assert held(2, [["high", "low"], "high"], [*workers, consuming("w1", 2, "high")]) == [["w1"], ["w2", "w3"]]
