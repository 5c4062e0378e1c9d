# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one scheduler of a pool: what is sealed of it, when it is handed over, and where it may run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host.layout import (
    SCHEDULER_INDEX,
    Layout,
    Part,
    Pool,
    programs,
)
from ansible_collections.backstep.workers.plugins.module_utils._host.processes import Process, schedulers_among
from ansible_collections.backstep.workers.plugins.module_utils._host.supervisors.supervisord import Supervisord
from ansible_collections.backstep.workers.plugins.module_utils._host.supervisors.systemd import Systemd
from ansible_collections.backstep.workers.plugins.module_utils._rollout import fleet, plans, schedulers
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput
from ansible_collections.backstep.workers.plugins.module_utils._scheduler_args import scheduler_of
from ansible_collections.backstep.workers.plugins.plugin_utils.text import status_lines
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.story import Story
from tests.unit.test_layout import LAYOUT, POOL, SPEC

A, B, C = "1.0-aaaaaaaa", "2.0-bbbbbbbb", "3.0-cccccccc"
GIVEN = {"command": ["rq", "cron", "{app}/schedule.py", "{queues}"], "host": "w1", "period": 60.0}
SEALED = {"host": "w1", "period": 60.0}
SCHEDULED = replace(SPEC, scheduler=GIVEN)
TERMS: dict[str, Any] = {"mode": plans.OVERLAP, "seconds": 30.0, "policy": plans.ABORT}


# -- what people write ----------------------------------------------------------------------------------------------


def test_it_is_sealed_as_words_a_host_and_a_period() -> None:
    assert scheduler_of({}) == {}
    assert scheduler_of({"command": ["beat", 1], "host": "w1"}) == {
        "command": ["beat", "1"],
        "host": "w1",
        "period": 60.0,
    }
    assert scheduler_of({**GIVEN, "period": "0.5"})["period"] == 0.5


@pytest.mark.parametrize(
    ("given_", "why"),
    [
        ({"host": "w1"}, "command is None"),
        ({"command": "rq cron", "host": "w1"}, "it has to be a list of words"),
        ({"command": [], "host": "w1"}, "it has to be a list of words"),
        ({"command": [["rq"]], "host": "w1"}, "it has to be a list of words"),
        ({"command": ["rq"]}, "host has to name the one host"),
        ({**GIVEN, "period": 0}, "period is 0"),
        ({**GIVEN, "period": "soon"}, "period is 'soon'"),
        ({**GIVEN, "period": "inf"}, "period is 'inf'"),
        ({**GIVEN, "period": None}, "period is None"),
        ({**GIVEN, "hosts": ["w1"]}, "'hosts' is not known"),
    ],
)
def test_what_can_not_be_one_is_refused(given_: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why) as refused:
        scheduler_of(given_)
    assert refused.value.left == "Nothing was changed."


# -- what is started ------------------------------------------------------------------------------------------------


def test_it_is_process_0_of_its_host_and_of_no_other() -> None:
    here = programs(SCHEDULED, POOL, LAYOUT)
    assert [program.index for program in here] == [SCHEDULER_INDEX, 1, 2, 3, 4]
    assert here[1:] == programs(SPEC, POOL, LAYOUT), "its workers are as they are without it"
    assert programs(SCHEDULED, replace(POOL, host="w2"), LAYOUT) == programs(SPEC, replace(POOL, host="w2"), LAYOUT)


def test_it_waits_for_the_one_lock_of_the_pool_and_knows_all_queues() -> None:
    scheduler = programs(SCHEDULED, POOL, LAYOUT)[0]
    app = "/opt/backstep/mail/releases/1.0-aaaaaaaa/app"
    assert scheduler.command == ["rq", "cron", f"{app}/schedule.py", "mail", "high", "low"]
    assert scheduler.options == ["--worker", "mail/1.0-aaaaaaaa/w1/0", "--lock", "/opt/backstep/mail/scheduler.lock"]
    assert scheduler.environment["BACKSTEP_QUEUES"] == "mail,high,low"
    assert scheduler.environment["BACKSTEP_PART"] == "scheduler"


def test_systemd_has_a_unit_of_its_own_for_it() -> None:
    systemd = Systemd(POOL, LAYOUT)
    units, plain = systemd.render(SCHEDULED), systemd.render(SPEC)
    assert set(units) - set(plain) == {"backstep-mail-1.0-aaaaaaaa-0.service"}
    assert {name: units[name] for name in plain} == plain
    text = units["backstep-mail-1.0-aaaaaaaa-0.service"].decode()
    assert "release 1.0-aaaaaaaa, scheduler\n" in text
    assert "--lock /opt/backstep/mail/scheduler.lock -- rq cron" in text


def test_supervisord_has_it_beside_the_group_of_the_workers() -> None:
    supervisord = Supervisord(POOL, LAYOUT)
    (plain,) = supervisord.render(SPEC).values()
    (text,) = supervisord.render(SCHEDULED).values()
    head, scheduler, *rest = text.decode().split("[program:")
    assert scheduler.startswith("backstep-mail-1.0-aaaaaaaa-0]\n")
    assert "[program:".join([head, *rest]) == plain.decode()


@pytest.mark.parametrize(
    ("part", "indexes"), [(Part.ALL, [0, 1, 2]), (Part.WORKERS, [1, 2]), (Part.SCHEDULER, [SCHEDULER_INDEX])]
)
def test_parts(part: Part, indexes: list[int], tmp_path: Path) -> None:
    assert [index for index in range(3) if part.has(index)] == indexes
    pool = Pool("mail", "w1", "systemd", "", str(tmp_path), "python3")
    systemd = Systemd(pool, Layout(tmp_path))
    for index in (2, 0, 1):
        (tmp_path / f"backstep-mail-{A}-{index}.service").touch()
    (tmp_path / f"backstep-mail-{A}-old.service").touch()
    assert systemd._names(A, part) == [f"backstep-mail-{A}-{index}.service" for index in indexes]


@pytest.mark.parametrize(("part", "indexes"), [(Part.ALL, [1, 0]), (Part.WORKERS, [1]), (Part.SCHEDULER, [0])])
def test_the_group_of_each_part_in_supervisord(part: Part, indexes: list[int], tmp_path: Path) -> None:
    supervisord = Supervisord(replace(POOL, conf_dir=str(tmp_path)), LAYOUT)
    workers = f"backstep-mail-{A}"
    for spec, there in ((SPEC, [1]), (SCHEDULED, [1, 0])):
        (tmp_path / f"{workers}.conf").write_bytes(supervisord.render(spec)[f"{workers}.conf"])
        names = {1: workers, 0: f"{workers}-0"}
        assert supervisord._groups(A, part) == [names[index] for index in indexes if index in there]


def test_the_children_of_a_scheduler_belong_to_it_whatever_name_they_give_themselves() -> None:
    def process(pid: int, parent: int, says_so: bool = False) -> Process:
        return Process(pid, parent, 0.0, A, None, says_so)

    found = [process(14, 13), process(10, 1), process(11, 10), process(12, 1, says_so=True), process(13, 12)]
    assert schedulers_among(found, []) == {12, 13, 14}
    assert schedulers_among(found, [10]) == {10, 11, 12, 13, 14}


# -- when it is handed over -----------------------------------------------------------------------------------------


def hand_over(target: str | None, others: list[str], **periods: float) -> list[plans.Action]:
    return schedulers.plan_hand_over(
        target, others, {{"a": A, "b": B}[name]: period for name, period in periods.items()}
    )


def test_the_journal_knows_which_releases_have_one_here() -> None:
    state = Story().good(A, scheduler=SEALED).good(B).good(C, scheduler={"host": "w2", "period": 5.0}).state
    assert schedulers.periods_here(state, "w1") == {A: 60.0}
    assert schedulers.periods_here(state, "w2") == {C: 5.0}


def test_a_pool_without_one_has_nothing_to_hand_over() -> None:
    assert hand_over(B, [A]) == []
    assert hand_over(None, [A]) == []


def test_the_target_s_runs_and_no_other() -> None:
    action = {"action": "hand_over_scheduler", "release": B, "others": [A], "period": 5.0}
    assert hand_over(B, [A, C], a=60.0, b=5.0) == [action]
    assert hand_over(B, [A], a=60.0) == [{**action, "release": None, "period": 60.0}]
    assert hand_over(None, [A], a=60.0) == [{**action, "release": None, "period": 60.0}]
    assert hand_over(B, [A], b=5.0) == [{**action, "others": []}]


@pytest.mark.parametrize("mode", [plans.OVERLAP, plans.REPLACE])
def test_the_old_one_goes_on_until_the_workers_of_the_target_are_up(mode: str) -> None:
    over = hand_over(B, [A], a=60.0, b=60.0)
    there = plans.plan_switch(B, [A], A, **{**TERMS, "mode": mode}, hand_over=over)
    back = plans.plan_back(A, [B], **{**TERMS, "mode": mode}, hand_over=over)
    for actions in (there, back):
        names = [action["action"] for action in actions]
        assert names[-2:] == ["hand_over_scheduler", "link"]
        assert names.index("arm_guard") < names.index("start") < names.index("hand_over_scheduler")


def test_on_the_way_to_nothing_it_ends_as_well() -> None:
    actions = plans.plan_back(None, [A], **TERMS, hand_over=hand_over(None, [A], a=60.0))
    assert [action["action"] for action in actions] == ["arm_guard", "quiet", "hand_over_scheduler", "link"]


@given(st.floats(0.0, 4e9), st.sampled_from([0.5, 1.0, 10.0, 60.0, 3600.0, 86400.0]))
def test_what_acts_on_whole_minutes_is_left_alone_around_them(time: float, period: float) -> None:
    beat = min(period, 60.0)
    if schedulers.nothing_is_due(time, period):
        assert beat - time % beat >= min(10.0, beat / 2) - 1e-6, "there is time for the new one to come up"
        assert time % beat >= beat / 100, "the old one has had time to act"


def test_a_moment_in_which_nothing_is_due_comes_within_a_minute() -> None:
    for period in (0.5, 1.0, 10.0, 60.0, 86400.0):
        moments = [tenths / 100 for tenths in range(int(min(period, 60.0) * 100))]
        assert any(schedulers.nothing_is_due(1_000_000_020.0 + moment, period) for moment in moments)


def test_a_hand_over_never_takes_longer_than_the_period_nor_than_a_minute() -> None:
    assert [schedulers.seconds_to_hand_over(period) for period in (0.5, 60.0, 86400.0)] == [0.5, 60.0, 60.0]
    assert [schedulers.seconds_at_most(given_) for given_ in ({}, GIVEN)] == [0.0, 120.0]


# -- what is wrong --------------------------------------------------------------------------------------------------


def test_a_host_says_that_none_runs_or_the_wrong_one() -> None:
    state = Story().good(A, scheduler=SEALED).good(B, scheduler=SEALED).state
    assert schedulers.problems(state, "w1", B) == []
    assert schedulers.problems(state, "w1", None) == [f"no scheduler runs: that of {B} should"]
    assert schedulers.problems(state, "w1", A) == [f"the scheduler of {A} runs, and {B} should"]
    assert schedulers.problems(state, "w2", None) == []
    assert schedulers.problems(state, "w2", A) == [f"the scheduler of {A} runs, and none should"]


def test_while_a_rollout_is_open_either_may_run_and_one_has_to() -> None:
    story = Story().good(A, scheduler=SEALED).lease().stage(B, scheduler=SEALED).switch(B)
    assert schedulers.problems(story.state, "w1", A) == schedulers.problems(story.state, "w1", B) == []
    assert schedulers.problems(story.state, "w1", None) == [f"no scheduler runs: that of {B} or {A} should"]


def told(host: str, current: str, runs: str | None = None, on: str | None = "w1", **more: Any) -> dict[str, Any]:
    """What a host tells of itself."""
    releases = [{"id": current, "scheduler": {"host": on, "period": 60.0} if on else {}}]
    scheduler = {"release": runs, "pid": 1, "host": on, "period": 60.0} if on or runs else None
    return {"host": host, "current": current, "releases": releases, "scheduler": scheduler, "rollout": None, **more}


def test_the_pool_names_a_host_that_does_not_tell_and_two_that_run_one() -> None:
    assert schedulers.pool_problems({"w1": told("w1", A, A), "w2": told("w2", A)}) == []
    (silent,) = schedulers.pool_problems({"w2": told("w2", A)})
    assert silent == "the scheduler belongs on w1, which has not told whether it runs"
    (two,) = schedulers.pool_problems({"w1": told("w1", A, A), "w2": told("w2", B, B, on="w2")})
    assert two == f"schedulers run on more than one host: {A} on w1, {B} on w2"


def test_the_status_shows_whose_runs_where() -> None:
    shown = {"running": {}, "problems": [], "current_state": "good", "since": None, "last_token": 1, "last_owner": None}
    answers = {host: {"pool_state": {**told(host, A, A if host == "w1" else None), **shown}} for host in ("w1", "w2")}
    lines = status_lines("mail", answers, {"queues": {}})
    assert f"  scheduler: that of {A} on w1" in lines
    del answers["w1"]
    assert "  ! the scheduler belongs on w1, which has not told whether it runs" in status_lines(
        "mail", answers, {"queues": {}}
    )


# -- where it may run -----------------------------------------------------------------------------------------------


def test_its_host_is_one_of_the_pool_s() -> None:
    schedulers.require_host({}, ["w1"])
    schedulers.require_host(GIVEN, ["w1", "w2"])
    with pytest.raises(BadInput, match="the host 'w1', which the pool doesn't have") as refused:
        schedulers.require_host(GIVEN, ["w2", "w3"])
    assert refused.value.next_step == "The pool's hosts are: w2, w3."


def test_it_never_moves_from_one_host_to_another_in_one_rollout() -> None:
    states = {"w1": told("w1", A, A), "w2": told("w2", A)}
    for allowed in ({}, GIVEN):
        schedulers.require_no_move(states, B, allowed, "x")
    schedulers.require_no_move({"w1": told("w1", A, on=None)}, B, {**GIVEN, "host": "w2"}, "x")
    with pytest.raises(BadInput, match=rf"{A} has it on w1, {B} on w2") as refused:
        schedulers.require_no_move(states, B, {**GIVEN, "host": "w2"}, "again")
    assert refused.value.next_step == "Deploy once without pool_scheduler, then again."


def test_what_was_left_behind_on_another_host_counts_as_well() -> None:
    left = {"w1": told("w1", A, runs=A, on=None), "w2": told("w2", B, on=None)}
    with pytest.raises(BadInput, match=rf"{A} has it on w1"):
        schedulers.require_no_move(left, C, {**GIVEN, "host": "w2"}, "again")
    opened = {"open": True, "origin": B, "target": A, "safe": B}
    between = told("w2", B, on=None, rollout=opened)
    between["releases"].append({"id": A, "scheduler": SEALED})
    with pytest.raises(BadInput, match=rf"{A} has it on w1"):
        schedulers.require_no_move({"w2": between}, C, {**GIVEN, "host": "w2"}, "again")


def test_a_host_that_lacks_its_scheduler_is_not_there_yet() -> None:
    assert schedulers.has_own_scheduler(told("w1", A, A))
    assert schedulers.has_own_scheduler(told("w2", A))
    assert schedulers.has_own_scheduler(told("w1", A, on=None))
    assert not schedulers.has_own_scheduler(told("w1", A))
    assert not schedulers.has_own_scheduler(told("w1", A, B))


def answer(host: str) -> dict[str, Any]:
    """A host's answer to the plan of a deploy of B, or to that of a rollback to B."""
    base = {
        "good": [A], "lease": None, "last_token": 3, "problems": [], "current_state": "good", "hooks_pending": [],
        "processes": [{"pid": 1}], "rollback": {"target": B, "needed": True, "problem": "", "barrier": None},
    }  # fmt: skip
    state = {**told(host, A, A if host == "w1" else None), **base}
    return {"release": B, "actions": [], "refused": "", "pool_state": state}


def test_a_deploy_or_a_rollback_that_would_move_it_is_not_begun() -> None:
    answers = {"w1": answer("w1"), "w2": answer("w2")}
    assert fleet.plan_deploy(answers, [1], (), False, GIVEN).hosts == ["w1", "w2"]
    with pytest.raises(BadInput, match="The scheduler would move"):
        fleet.plan_deploy(answers, [1], (), False, {**GIVEN, "host": "w2"})
    assert fleet.plan_rollback(answers, (), False).release == B
    for each in answers.values():
        each["pool_state"]["releases"].append({"id": B, "scheduler": {"host": "w2", "period": 60.0}})
    with pytest.raises(BadInput, match="The scheduler would move") as refused:
        fleet.plan_rollback(answers, (), False)
    assert refused.value.next_step.endswith(f"then go back with -e pool_to={B}.")
