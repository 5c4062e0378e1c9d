# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which runs are proven to be dead: only those, never those that can't be looked at."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout.rules import describe_owner
from ansible_collections.backstep.workers.plugins.plugin_utils.owner import dead_runs, launched, taken_over, this_run


def holding(owner: dict[str, Any]) -> dict[str, Any]:
    return {"w1": {"pool_state": {"lease": {"owner": owner}}}}


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Another process on this machine."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def owner(other: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The owner that the other process would be."""
    with open(f"/proc/{other.pid}/stat", encoding="ascii") as stream:
        started = stream.read().rpartition(")")[2].split()[19]
    return {**this_run(), "pid": other.pid, "started": started}


def test_a_run_is_its_own_and_names_its_process() -> None:
    run = this_run()
    assert run["run"] != this_run()["run"]
    assert run["pid"] == os.getppid()
    assert run["started"]
    assert run["boot"]
    assert dead_runs(holding(run)) == set()


def test_a_living_process_is_not_dead_and_a_killed_one_is(
    owner: dict[str, Any], other: subprocess.Popen[bytes]
) -> None:
    assert dead_runs(holding(owner)) == set()
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    assert dead_runs(holding(owner)) == {owner["run"]}, "a zombie does nothing any more"
    other.wait()
    assert dead_runs(holding(owner)) == {owner["run"]}


def test_a_process_of_another_container_is_not_looked_for_here(owner: dict[str, Any]) -> None:
    """Containers that share their machine's name and boot have process ids of their own."""
    assert dead_runs(holding({**owner, "started": "1", "pids": "pid:[1]"})) == set()
    assert dead_runs(holding({**owner, "boot": "another", "pids": "pid:[1]"})) == set()


def test_a_job_of_awx_is_named_by_who_launched_it() -> None:
    assert launched({}) == {}
    assert launched({"awx_job_id": 7, "awx_user_name": "ana"}) == {"job": "7", "user": "ana"}
    assert launched({"tower_job_id": 7}) == {"job": "7", "user": "schedule"}
    run = {**this_run(), **launched({"awx_job_id": 7, "awx_user_name": "ana"})}
    assert describe_owner(run) == "ana (AWX job 7)"
    assert describe_owner({**run, "alert": "a1"}) == "ana (AWX job 7) for alert a1"


def test_a_rollback_says_from_whom_it_takes_over(owner: dict[str, Any]) -> None:
    def answers(kind: str) -> dict[str, Any]:
        lease = {"owner": {**owner, "job": "7", "user": "ana"}, "kind": kind}
        return {"w1": {"pool_state": {"lease": lease}}, "w2": {"pool_state": {"lease": lease}}, "w3": None}

    line = "  takes over from ana (AWX job 7), whose deploy holds the pool"
    assert taken_over(answers("deploy"), []) == [line]
    assert taken_over(answers("deploy"), [owner["run"]]) == []
    assert taken_over(answers("rollback"), []) == []


def test_a_process_id_that_was_given_again_and_another_boot_are_dead(owner: dict[str, Any]) -> None:
    assert dead_runs(holding({**owner, "started": "1"})) == {owner["run"]}
    assert dead_runs(holding({**owner, "boot": "another"})) == {owner["run"]}


@pytest.mark.parametrize("changed", [{"controller": "elsewhere"}, {"boot": ""}, {"started": None}, {"run": ""}])
def test_what_can_not_be_looked_at_is_not_dead(owner: dict[str, Any], changed: dict[str, Any]) -> None:
    assert dead_runs(holding({**owner, "pid": 2**22 - 1, **changed})) == set()


def test_hosts_without_an_answer_or_a_lease() -> None:
    assert dead_runs({"w1": None, "w2": {}, "w3": {"pool_state": {"lease": None}}}) == set()
