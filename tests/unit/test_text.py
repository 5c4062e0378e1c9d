# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What people read in the terminal."""

from __future__ import annotations

from typing import Any

from ansible_collections.backstep.workers.plugins.module_utils._rollout.fleet import FleetPlan
from ansible_collections.backstep.workers.plugins.plugin_utils import text

A, B = "1.0-aaaaaaaa", "2.0-bbbbbbbb"


def plan(**changed: Any) -> FleetPlan:
    fixed: dict[str, Any] = {
        "kind": "deploy",
        "rollout": 7,
        "release": B,
        "hosts": ["w1", "w2", "w3"],
        "settled": ["w4"],
        "waves": [["w1"], ["w2", "w3"]],
        "adopt": {},
        "before": dict.fromkeys(["w1", "w2", "w3", "w4"], A),
        "back_to": dict.fromkeys(["w1", "w2", "w3", "w4"], A),
    }
    return FleetPlan(**{**fixed, **changed})


def test_where_a_deploy_will_go_is_said_before_it_goes() -> None:
    lines = text.plan_lines("mail", plan(), check_mode=False)
    assert lines == [
        f"Pool mail goes from {A} to {B} on 3 of 4 hosts (rollout 7).",
        "  wave 1 of 2: w1",
        "  wave 2 of 2: w2, w3",
        f"  if it is not good: back to {A}, every touched host",
    ]
    assert "would go" in text.plan_lines("mail", plan(), check_mode=True)[0]


def test_a_rollback_says_where_it_goes_and_from_where() -> None:
    back = plan(kind="rollback", release=A, before=dict.fromkeys(["w1", "w2", "w3", "w4"], B), adopt={"w1": "r"})
    lines = text.plan_lines("mail", back, check_mode=False)
    assert lines == [
        f"Pool mail goes back from {B} to {A} on 3 of 4 hosts (rollout 7).",
        "  taking over from a run that has died on w1",
    ]
    nothing = plan(kind="rollback", release=None)
    assert "to nothing running" in text.plan_lines("mail", nothing, check_mode=False)[0]


def test_nothing_to_do_and_an_interrupted_rollback_are_said() -> None:
    done = plan(hosts=[], settled=["w1", "w2"], waves=[])
    assert text.plan_lines("mail", done, check_mode=False) == [
        f"Pool mail is on {B} on all 2 hosts already: nothing to do."
    ]
    lines = text.plan_lines("mail", plan(hosts=[], unfinished=["w2"]), check_mode=False)
    assert f"finished first, to {A} on w2" in lines[0]
    assert f"{B} is not deployed by this run." in lines[1]


def test_tasks_that_may_run_twice_are_told_from_those_that_never_ran() -> None:
    def taken(name: str, worker: str | None, to: str) -> dict[str, Any]:
        return {"id": name, "worker": worker, "to": to, "started": False}

    recovered = [taken("cut", "w", "waiting"), taken("failed", "w", "dead"), taken("popped", None, "waiting")]
    lines = text.care_lines({"recovered": recovered}, {"msg": "refused"})
    assert lines[0] == "  1 task(s) were cut off; may run twice: cut"
    assert lines[1] == "  1 task(s) were cut off; failed, to be replayed: failed"
    assert lines[2] == "  1 task(s) were put back that a worker had taken and never begun: popped"


def state(current: str, token: int, left_out: list[str]) -> dict[str, Any]:
    owner = {"user": "ana", "controller": "ops1", "pid": 7, "left_out": left_out}
    given = {"current": current, "current_state": "good", "since": None, "running": {}, "rollout": None, "problems": []}
    return {"pool_state": {**given, "last_token": token, "last_owner": owner}}


def test_a_mixed_pool_is_named_as_one_and_what_was_left_out_on_purpose() -> None:
    answers = {"w1": state(B, 7, ["w2", "w3"]), "w2": state(A, 6, []), "w3": {"unreachable": True, "msg": "no route"}}
    lines = text.status_lines("mail", answers, {"msg": "refused"})
    assert f"  ! mixed: {A} on w2; {B} on w1" in lines
    assert "  ! left out of rollout 7 of ana@ops1 (pid 7) on purpose: w2, w3" in lines
    assert any(line.startswith("  next: ") for line in lines)


def test_a_host_that_has_come_along_is_no_longer_named() -> None:
    answers = {"w1": state(B, 7, ["w2"]), "w2": state(B, 7, [])}
    lines = text.status_lines("mail", answers, {"msg": "refused"})
    assert not [line for line in lines if "left out" in line or "mixed" in line]


def test_the_last_drill_is_shown_with_its_date_or_that_there_was_none() -> None:
    answers = {"w1": state(B, 7, []), "w2": state(B, 7, [])}
    assert "  last drill: none yet" in text.status_lines("mail", answers, {"msg": "refused"})
    answers["w2"]["pool_state"]["drill"] = {"kind": "late", "token": 6, "ended": 86400.0, "passed": False}
    lines = text.status_lines("mail", answers, {"msg": "refused"})
    assert "  last drill: late on 1970-01-02 00:00:00 UTC (rollout 6): DID NOT PASS" in lines


def test_a_status_without_answers_shows_question_marks_and_never_zeros() -> None:
    answers: dict[str, Any] = {"w1": {"unreachable": True, "msg": "no route"}}
    lines = text.status_lines("mail", answers, {"msg": "connection refused"})
    assert lines[2].split() == ["w1", "?", "?", "?", "?", "?"]
    assert "  ! w1: unreachable: no route" in lines
    assert "  ! queues: connection refused" in lines


def test_what_an_engine_can_not_tell_is_a_question_mark() -> None:
    queue = {"waiting": 3, "scheduled": None, "executing": 0, "retrying": 0, "dead": 0, "parked": 0, "workers": 2}
    lines = text.status_lines("mail", {}, {"queues": {"mail": queue}, "paused": {"paused": True, "by_person": True}})
    assert ["mail", "3", "?", "0", "0", "0", "0", "2"] in [line.split() for line in lines]
    assert lines[-1] == "  ! paused by a person"


def test_small_things() -> None:
    assert text.hosts_text(["a", "b", "c"], most=2) == "a, b and 1 more"
    assert text.table([]) == []


def status_of(broker: dict[str, Any], **changed: Any) -> str:
    """The status of a pool of one host, of which these things are so."""
    fixed: dict[str, Any] = {"rollout": None, "last_token": 2, "last_owner": None, "lease": None, "problems": []}
    fixed = {**fixed, "current": B, "current_state": "good", "since": 0.0, "running": {}}
    return "\n".join(text.status_lines("mail", {"w1": {"pool_state": {**fixed, **changed}}}, broker))


WORKER = f"mail/{A}/w1/1/42"
KILLED = {"release": A, "outcome": "killed", "ended": 60.0, "running": [{"worker": WORKER}], "again": False}


def held(*workers: str) -> dict[str, Any]:
    return {"queues": {}, "executing": [{"id": f"task of {worker}", "worker": worker} for worker in workers]}


def test_what_drains_is_named_with_its_tasks_and_since_when() -> None:
    draining = {"release": A, "since": 60.0, "running": [{"worker": WORKER}]}
    assert (
        f"  w1: {A} drains since 1970-01-01 00:01:00 UTC: {WORKER} with task of {WORKER}"
        in status_of(held(WORKER, "else"), draining=[draining]).splitlines()
    )
    assert f"{A} drains since 1970-01-01 00:01:00 UTC: about to end" in status_of(
        held(), draining=[{**draining, "running": []}]
    )


def test_what_was_killed_is_named_until_its_tasks_are_taken_back() -> None:
    said = f"  ! w1: killed at 1970-01-01 00:01:00 UTC: {WORKER}"
    assert f"{said} with task of {WORKER}; the next" in status_of(held(WORKER), reaped=[KILLED])
    assert f"{said}; the next" in status_of({"msg": "no answer"}, reaped=[KILLED]), "nobody knows"
    assert "killed" not in status_of(held("else"), reaped=[KILLED])
    assert "killed" not in status_of({"msg": "no answer"}, reaped=[{**KILLED, "running": []}])


def test_a_hundred_hosts_are_few_lines_of_status_and_those_that_differ_have_their_names() -> None:
    answers = {f"w{number:03}": state(B, 7, []) for number in range(100)}
    for number, answer in enumerate(answers.values()):
        answer["pool_state"]["since"] = 86400.0 + number
    answers["w042"] = state(A, 6, [])
    answers["w077"] = {"unreachable": True, "msg": "no route"}
    lines = text.status_lines("mail", answers, {"msg": "refused"})
    assert [line.split()[0] for line in lines[2:5]] == ["w042", "w077", "98"]
    assert f"98 hosts  {B}" in lines[4]
    assert "1970-01-02 00:00:00" in lines[4]
    assert len(lines) < 12
