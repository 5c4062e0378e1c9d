# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A release that can't be undone, under a real supervisord: nobody leaves it unasked, and it is what starts at boot."""

from __future__ import annotations

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host.info import describe_host
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import RollbackBarrier

from tests.integration.local_pool import LocalPool
from tests.integration.test_supervisord_guard import _another_boot, guards
from tests.support.local_hosts import LocalHost, local_hosts
from tests.support.servers import wait_for

WHY = "drops a column"


def switch_to_barred(pool: LocalPool, **terms: float) -> tuple[str, str]:
    """The good release, and the one that can't be undone, which runs unconfirmed."""
    first = pool.deploy("1.0")
    pool.lease()
    pool.barrier = WHY
    second = pool.stage("2.0")
    pool.barrier = ""
    pool.switch(second, **terms)
    pool.wait_running(second)
    pool.wait_only(second)
    return first, second


def pids(pool: LocalPool, release: str) -> list[int]:
    return [process.pid for process in pool.open().running().get(release, [])]


def require_held(pool: LocalPool, first: str, second: str, running: list[int]) -> None:
    state = pool.open().state()
    assert state.rollout
    assert (state.current, state.state_of(second), state.good_releases()) == (second, "unconfirmed", [first])
    assert (state.rollout.held, state.rollout.open) == (second, True)
    assert pids(pool, second) == running
    assert pool.running() == {second: 1}
    assert pool.open().link() == second
    pool.enqueue("next")
    pool.wait_task("next", "done", second)


def test_the_guard_leaves_it_where_it_is_and_says_so(at: LocalHost, pool: LocalPool) -> None:
    first, second = switch_to_barred(pool, confirm_seconds=1.5)
    running = pids(pool, second)
    wait_for("the guard has stopped at it", lambda: "barrier_held" in pool.events(), 15.0)
    wait_for("no guard goes on", lambda: not guards(at, pool), 15.0)
    require_held(pool, first, second, running)
    events = pool.open().journal.read()[0]
    (held,) = [event for event in events if event["event"] == "barrier_held"]
    assert (held["by"], held["release"], held["target"]) == ("guard", second, first)
    assert WHY in held["reason"]
    assert "rollback_started" not in pool.events()
    told = pool.program("status").stdout
    assert f"barrier   {second} can't be undone: {WHY}" in told
    assert "a person has to decide" in told
    assert not list(at.conf_dir.glob(f"backstep-{pool.name}-*guard*"))


def test_an_automatic_rollback_stops_and_a_person_takes_it_across(at: LocalHost, pool: LocalPool) -> None:
    first, second = switch_to_barred(pool)
    running = pids(pool, second)
    with pytest.raises(RollbackBarrier, match="pool_cross_barrier=true"):
        pool.back(verdict="bad")
    with pytest.raises(RollbackBarrier):
        pool.back(verdict="bad")
    assert pool.events().count("barrier_held") == 1
    require_held(pool, first, second, running)
    wait_for("no guard waits", lambda: not guards(at, pool), 15.0)
    pool.end()
    refused = pool.program("rollback")
    assert refused.returncode == 1
    assert "--cross-barrier" in refused.stderr
    require_held(pool, first, second, running)
    crossed = pool.program("rollback", "--cross-barrier")
    assert crossed.returncode == 0, crossed.stderr
    pool.wait_only(first)
    assert pool.open().state().state_of(second) == "bad"
    assert describe_host(pool.open())["barriers"] == {}


def test_it_is_confirmed_by_deploying_it_again(pool: LocalPool) -> None:
    first, second = switch_to_barred(pool)
    running = pids(pool, second)
    with pytest.raises(RollbackBarrier):
        pool.back(verdict="bad")
    pool.end()
    pool.lease("bob")
    pool.switch(second)
    pool.confirm(second)
    pool.end()
    assert pids(pool, second) == running
    assert pool.open().state().good_releases() == [second, first]
    pool.lease("bob", kind="rollback")
    with pytest.raises(RollbackBarrier):
        pool.back()
    pool.back(cross=True)
    pool.confirm(first)
    pool.wait_only(first)


def test_before_the_switch_going_back_is_free(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.lease()
    pool.barrier = WHY
    second = pool.stage("2.0")
    pool.open().note("switch_started", pool.token, origin=first, target=second, safe=first, mode="overlap")
    pool.back(verdict="unknown")
    pool.confirm(first)
    pool.wait_only(first)
    assert pool.open().state().current == first


def test_a_reboot_comes_up_on_it_and_on_nothing_else() -> None:
    with local_hosts(1) as (host,):
        pool = LocalPool(host, "boot")
        first, second = switch_to_barred(pool, confirm_seconds=600.0)
        host.power_cut()
        for path in (pool.tasks / "started").iterdir():
            path.unlink()
        _another_boot(pool)
        host.boot()
        wait_for("the guard has stopped at it", lambda: "barrier_held" in pool.events(), 15.0)
        pool.wait_only(second)
        require_held(pool, first, second, pids(pool, second))
        assert pool.started(first) == [], "it was not started, not even for a moment"
        events = pool.events()
        host.power_cut()
        host.boot()
        pool.wait_only(second)
        assert pool.events() == events, "once held, nothing more is noted"
