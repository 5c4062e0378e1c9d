# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Draining under a real supervisord: clean, and each policy at the deadline."""

from __future__ import annotations

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host.moving import drain_host, resume_host
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import DrainTimeout, LeaseHeld

from tests.integration.local_pool import ENDLESS, LocalPool
from tests.support.servers import wait_for


def busy(pool: LocalPool, seconds: float) -> str:
    """Deploy, and have its worker execute a task; the release."""
    release = pool.deploy("1.0")
    pool.enqueue("long", seconds)
    pool.wait_task("long", "executing", release)
    return release


def test_a_clean_drain_waits_for_the_task_and_takes_no_other(pool: LocalPool) -> None:
    release = busy(pool, 1.0)
    pool.enqueue("next")
    found = drain_host(pool.open(), release="", rollout=0, seconds=10.0, policy="abort", check_mode=False)
    assert (found["outcome"], found["running"], found["changed"]) == ("clean", [], True)
    assert 0.2 < found["waited"] < 5.0
    assert (pool.tasks / "done" / f"long,{release}").exists()
    assert (pool.tasks / "waiting" / "next").exists()
    assert pool.running() == {}
    again = drain_host(pool.open(), release="", rollout=0, seconds=10.0, policy="abort", check_mode=False)
    assert (again["changed"], again["outcome"]) == (False, "clean")


def test_check_mode_drains_nothing_and_claims_nothing(pool: LocalPool) -> None:
    release = busy(pool, ENDLESS)
    events = pool.events()
    found = drain_host(pool.open(), release="", rollout=0, seconds=10.0, policy="abort", check_mode=True)
    assert (found["outcome"], found["changed"]) == ("unchecked", True)
    assert [worker["worker"].rpartition("/")[0] for worker in found["running"]] == [f"{pool.name}/{release}/w1/1"]
    assert pool.events() == events
    pool.end_task("long")
    pool.enqueue("next")
    pool.wait_task("next", "done", release)


def test_abort_names_the_worker_kills_nothing_and_it_takes_tasks_again(pool: LocalPool) -> None:
    release = busy(pool, ENDLESS)
    (pid,) = (process.pid for process in pool.open().running()[release])
    with pytest.raises(DrainTimeout) as gave_up:
        drain_host(pool.open(), release="", rollout=0, seconds=0.5, policy="abort", check_mode=False)
    assert f"{pool.name}/{release}/w1/1/{pid}" in gave_up.value.message
    assert gave_up.value.left == f"Nothing was killed; {release} takes tasks again."
    assert gave_up.value.details["running"][0]["pids"] == [pid]
    pool.enqueue("next")
    pool.end_task("long")
    pool.wait_task("long", "done", release)
    pool.wait_task("next", "done", release)


def test_what_takes_tasks_again_after_an_abort_is_not_started_once_it_is_unwanted(pool: LocalPool) -> None:
    """The process that waits to start a release again looks at the journal: another release may be there by then."""
    release = busy(pool, ENDLESS)
    with pytest.raises(DrainTimeout):
        drain_host(pool.open(), release="", rollout=0, seconds=0.2, policy="abort", check_mode=False)
    second = pool.deploy("2.0")
    pool.end_task("long")
    pool.wait_task("long", "done", release)
    pool.wait_only(second)
    pool.enqueue("next")
    pool.wait_task("next", "done", second)
    assert pool.running() == {second: 1}


def test_leave_lets_the_task_go_on_and_takes_no_other(pool: LocalPool) -> None:
    release = busy(pool, 2.0)
    pool.enqueue("next")
    found = drain_host(pool.open(), release="", rollout=0, seconds=0.3, policy="leave", check_mode=False)
    assert found["outcome"] == "left"
    assert len(found["running"]) == 1
    pool.wait_task("long", "done", release)
    pool.wait_only(None)
    assert (pool.tasks / "waiting" / "next").exists()


@pytest.mark.parametrize("policy", ["kill", "requeue"])
def test_kill_and_requeue_end_a_worker_that_will_not_stop_and_name_it(pool: LocalPool, policy: str) -> None:
    pool.environment = {"MODE": "deaf"}
    release = busy(pool, ENDLESS)
    found = drain_host(pool.open(), release="", rollout=0, seconds=0.3, policy=policy, check_mode=False)
    assert found["outcome"] == "killed"
    assert found["running"][0]["worker"].startswith(f"{pool.name}/{release}/w1/1/")
    assert pool.running() == {}
    assert (pool.tasks / "executing" / f"long,{release}").exists()


def test_a_worker_that_dies_by_itself_just_then_stays_away(pool: LocalPool) -> None:
    """supervisord refuses to stop what has exited already, and starts it again a moment later."""
    pool.environment = {"MODE": "mortal"}
    release = pool.deploy("1.0")
    supervisor = pool.open().supervisor
    wait_for("it has exited", lambda: [main.state for main in supervisor.processes(release)] == ["exited"])
    found = drain_host(pool.open(), release="", rollout=0, seconds=10.0, policy="abort", check_mode=False)
    assert found["outcome"] == "clean"
    assert [(main.state, main.pid) for main in supervisor.processes(release)] == [("stopped", None)]
    assert pool.running() == {}


def test_taking_tasks_again_on_purpose(pool: LocalPool) -> None:
    release = pool.deploy("1.0")
    drain_host(pool.open(), release="", rollout=0, seconds=5.0, policy="abort", check_mode=False)
    planned = resume_host(pool.open(), release="", rollout=0, check_mode=True)
    assert planned["actions"] == [{"action": "start", "release": release}]
    assert pool.running() == {}
    assert resume_host(pool.open(), release="", rollout=0, check_mode=False)["changed"]
    pool.wait_running(release)
    assert resume_host(pool.open(), release="", rollout=0, check_mode=False)["changed"] is False


def test_a_person_s_drain_is_refused_while_a_rollout_is_under_way(pool: LocalPool) -> None:
    pool.deploy("1.0")
    pool.lease("ana")
    with pytest.raises(LeaseHeld, match="ana@ops1"):
        drain_host(pool.open(), release="", rollout=0, seconds=5.0, policy="kill", check_mode=False)


def test_replace_gives_up_in_time_and_the_old_release_works_on(pool: LocalPool) -> None:
    first = busy(pool, 3.0)
    pool.lease()
    second = pool.stage("2.0")
    with pytest.raises(DrainTimeout):
        pool.switch(second, mode="replace", drain_seconds=0.3)
    pool.back(verdict="unknown", drain_seconds=0.3)
    pool.confirm(first)
    pool.end()
    pool.wait_task("long", "done", first)
    pool.enqueue("next")
    pool.wait_task("next", "done", first)
    assert pool.running() == {first: 1}
    wait_for("the guard has ended", lambda: not pool.open().supervisor.guard_armed())
    assert pool.open().state().state_of(second) == "staged"
