# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of a rollout: what each step's answers make of it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout import record as records
from ansible_collections.backstep.workers.plugins.module_utils._rollout.fleet import FleetPlan
from hypothesis import given
from hypothesis import strategies as st

A, B = "1.0-aaaaaaaa", "2.0-bbbbbbbb"


def fleet_plan(kind: str, unfinished: list[str]) -> FleetPlan:
    return FleetPlan(
        kind=kind,
        rollout=1,
        release=B,
        hosts=[],
        settled=[],
        waves=[],
        adopt={},
        before={},
        back_to={},
        unfinished=unfinished,
    )


def test_a_record_begins_good() -> None:
    record = records.begin_record(fleet_plan("deploy", []), {})
    assert (record["verdict"], record["touched"], record["reasons"]) == ("good", [], "")


def test_an_interrupted_rollback_makes_the_record_bad_from_the_start() -> None:
    record = records.begin_record(fleet_plan("deploy", ["w2"]), {})
    assert (record["verdict"], record["touched"]) == ("bad", ["w2"])
    assert "w2: a rollback was interrupted" in record["reasons"]


def test_a_rollback_knows_from_the_start_which_hosts_gave_no_answer() -> None:
    answers: dict[str, Any] = {"w1": {"pool_state": {}}, "w2": {"unreachable": True, "msg": "no route"}, "w3": None}
    record = records.begin_record(fleet_plan("rollback", []), answers)
    assert record["verdict"] == "unknown"
    assert record["reasons"] == "w2: unreachable: no route; w3: gave no answer"
    assert records.begin_record(fleet_plan("deploy", []), answers)["verdict"] == "good"


@given(st.lists(st.sampled_from(["good", "bad", "unknown"])))
def test_one_verdict_for_many(verdicts: list[str]) -> None:
    found = records.worst(verdicts)
    assert (found == "good") == (bool(verdicts) and set(verdicts) == {"good"})
    assert (found == "bad") == ("bad" in verdicts)


def planned(**changed: Any) -> dict[str, Any]:
    plan = {"kind": "deploy", "release": B, "hosts": ["w1", "w2"], "unfinished": [], "settled": []}
    return {**plan, "before": {"w1": A, "w2": A}, "back_to": {"w1": A, "w2": A}, **changed}


def start() -> dict[str, Any]:
    return {"verdict": "good", "touched": [], "hosts": {}, "drained": [], "hooks": [], "held": {}, "reasons": ""}


def note(record: dict[str, Any], step: str, failing: dict[str, Any], touches: bool = True) -> None:
    release = A if step.endswith("back") else B
    answers: dict[str, Any] = {host: failing.get(host, {"release": release}) for host in ("w1", "w2")}
    records.note_step(record, ["w1", "w2"], step, answers, "release", touches=touches)


def test_a_deploy_that_goes_well() -> None:
    record = start()
    note(record, "stage", {}, touches=False)
    assert record["touched"] == []
    note(record, "switch", {})
    note(record, "confirm", {})
    found = records.outcome(planned(), record)
    assert (found["ok"], found["ended"], found["hosts"]) == (True, "deployed", {"w1": B, "w2": B})


def test_a_step_without_an_answer_is_unknown_and_never_good() -> None:
    record = start()
    note(record, "switch", {"w2": None})
    assert record["verdict"] == "unknown"
    assert records.reasons(record) == "w2: switch: gave no answer"
    assert record["touched"] == ["w1", "w2"]


def test_a_health_verdict_is_entered_and_unknown_is_kept_apart_from_bad() -> None:
    record = start()
    note(record, "switch", {})
    records.note_verdicts(record, {"w1": {"verdict": "good"}, "w2": {"verdict": "unknown", "reason": "broker silent"}})
    assert record["verdict"] == "unknown"
    records.note_verdicts(record, {"w1": {"verdict": "bad", "reason": "crashes"}})
    assert record["verdict"] == "bad"
    assert "w1: crashes" in records.reasons(record)


def test_a_deploy_that_goes_back_is_not_ok_even_when_every_host_is_back() -> None:
    record = start()
    note(record, "switch", {"w2": {"msg": "boom"}})
    note(record, "go back", {})
    note(record, "confirm the way back", {})
    found = records.outcome(planned(), record)
    assert (found["ok"], found["ended"], found["hosts"]) == (False, "rolled_back", {"w1": A, "w2": A})
    assert found["exceptions"] == {}


def test_a_host_that_does_not_come_back_is_a_named_exception() -> None:
    record = start()
    note(record, "switch", {"w1": {"msg": "boom"}})
    note(record, "go back", {"w2": {"unreachable": True, "msg": "no route"}})
    records.note_step(record, ["w1"], "confirm the way back", {"w1": {"release": A}}, "release", touches=True)
    found = records.outcome(planned(), record)
    assert (found["ok"], found["ended"]) == (False, "mixed")
    assert found["hosts"] == {"w1": A, "w2": None}
    assert found["exceptions"] == {"w2": "go back: unreachable: no route"}


def test_a_deploy_whose_hosts_another_rollout_has_taken_needs_nobody() -> None:
    taken = {"msg": "no", "error": {"details": {"superseded_by": "rollout 5 of oncall@ops1 (pid 7) (rollback)"}}}
    record = start()
    note(record, "go back", {"w1": taken, "w2": taken})
    found = records.outcome(planned(), record)
    assert found["ended"] == "superseded"
    assert found["reasons"] == "rollout 5 of oncall@ops1 (pid 7) (rollback) has superseded it"
    note(record, "watch the way back", {"w2": None})
    record["hosts"]["w2"].pop("superseded_by")
    assert records.outcome(planned(), record)["ended"] == "mixed"


def test_a_deploy_that_fails_before_the_switch_has_touched_nothing() -> None:
    record = start()
    note(record, "stage", {"w1": {"msg": "the build failed"}}, touches=False)
    found = records.outcome(planned(), record)
    assert (found["ok"], found["ended"], found["hosts"]) == (False, "stopped", {"w1": A, "w2": A})


def test_a_copy_of_a_record_is_its_own() -> None:
    record = start()
    note(record, "switch", {})
    copy = records.copy_record(record)
    note(copy, "watch", {"w1": None})
    assert (record["verdict"], record["hosts"]["w1"]["steps"]) == ("good", {"switch": "done"})


def test_whose_workers_are_proven_to_be_gone() -> None:
    record = start()
    gone = {"release": A, "outcome": "clean", "waited": 1.0, "running": []}
    answers = {"w1": {"release": B, "drained": [gone]}, "w2": {"release": B, "drained": [{**gone, "outcome": "left"}]}}
    records.note_step(record, ["w1", "w2"], "confirm", answers, "release", touches=True)
    assert records.workers_gone("mail", record) == [f"mail/{A}/w1/"]


KILLED = {"release": A, "outcome": "killed", "running": [{"worker": f"mail/{A}/w1/1/42", "pids": [42]}]}


def test_a_release_that_was_started_again_has_living_workers_and_only_the_killed_ones_are_gone() -> None:
    record = start()
    record["back_to"] = {"w1": A}
    records.note_step(record, ["w1"], "switch", {"w1": {"release": B, "drained": [KILLED]}}, "release", touches=True)
    assert records.workers_gone("mail", record) == [f"mail/{A}/w1/", f"mail/{A}/w1/1/42"]
    records.note_step(record, ["w1"], "watch", {"w1": {"evidence": {}}}, "evidence", touches=True)
    assert records.workers_gone("mail", record) == [f"mail/{A}/w1/", f"mail/{A}/w1/1/42"]
    clean = {"release": B, "outcome": "clean", "running": []}
    records.note_step(record, ["w1"], "go back", {"w1": {"release": A, "drained": [clean]}}, "release", touches=True)
    assert records.workers_gone("mail", record) == [f"mail/{A}/w1/1/42", f"mail/{B}/w1/"]


def test_a_host_that_gave_no_answer_may_have_gone_back() -> None:
    record = start()
    record["back_to"] = {"w1": A}
    records.note_step(record, ["w1"], "switch", {"w1": {"release": B, "drained": [KILLED]}}, "release", touches=True)
    records.note_step(record, ["w1"], "go back", {"w1": None}, "release", touches=True)
    assert records.workers_gone("mail", record) == [f"mail/{A}/w1/1/42"]


@pytest.mark.parametrize(
    ("released", "again", "expected"),
    [
        ("0.9-00000000", False, ["mail/0.9-00000000/w1/", "mail/0.9-00000000/w1/1/42"]),
        ("0.9-00000000", True, ["mail/0.9-00000000/w1/1/42"]),
        (B, False, [f"mail/{B}/w1/1/42"]),
        (A, False, [f"mail/{A}/w1/1/42"]),
    ],
)
def test_what_the_reaper_has_killed_is_taken_back_by_the_next_run(
    released: str, again: bool, expected: list[str]
) -> None:
    plan = fleet_plan("deploy", [])
    plan.back_to = {"w1": A}
    running = [{"worker": f"mail/{released}/w1/1/42", "pids": [42], "seconds": 3.0}]
    reaped = {"release": released, "outcome": "killed", "ended": 1.0, "running": running, "again": again}
    record = records.begin_record(plan, {"w1": {"pool_state": {"reaped": [reaped]}}, "w2": None})
    assert records.workers_gone("mail", record) == expected


@pytest.mark.parametrize("count", [1, 5, 9])
def test_reasons_are_cut_where_they_get_too_long(count: int) -> None:
    record = start()
    hosts = [f"w{number}" for number in range(count)]
    records.note_step(record, hosts, "switch", {}, "release", touches=True)
    text = records.reasons(record)
    assert text.count("gave no answer") == min(count, 5)
    assert text.endswith("and 4 more hosts") == (count == 9)


def finished_back(**changed: Any) -> dict[str, Any]:
    """How a deploy ends that had an interrupted way back of w1 to finish first, with w2 as ``changed`` says."""
    plan = planned(hosts=[], unfinished=["w1"], settled=["w1", "w2"], **changed)
    record = start()
    record["hosts"]["w1"] = {"steps": {}, "verdict": "bad", "reason": "a rollback was interrupted here"}
    record["touched"] = ["w1"]
    for step in records.BACK_STEPS:
        records.note_step(record, ["w1"], step, {"w1": {"release": A}}, "release", touches=True)
    return records.outcome(plan, record)


def test_a_way_back_that_was_finished_leaves_every_host_where_it_belongs() -> None:
    found = finished_back(before={"w1": B, "w2": A})
    assert (found["ended"], found["ok"]) == ("rolled_back", False)
    assert found["hosts"] == {"w1": A}
    assert found["hosts"] == {"w1": A}
    assert found["exceptions"] == {}


def test_a_way_back_that_was_finished_names_the_hosts_that_are_not_on_one_release() -> None:
    found = finished_back(before={"w1": B, "w2": "0.9-cccccccc"})
    assert found["ended"] == "mixed"
    assert found["hosts"] == {"w1": A, "w2": "0.9-cccccccc"}
    assert set(found["exceptions"]) == {"w1", "w2"}
