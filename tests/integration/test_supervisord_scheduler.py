# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exactly one scheduler under a real supervisord: it goes and comes back with its release, whatever dies on the way."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host import scheduling
from ansible_collections.backstep.workers.plugins.module_utils._host.info import as_started, describe_host, watch
from ansible_collections.backstep.workers.plugins.module_utils._host.journal import Journal
from ansible_collections.backstep.workers.plugins.module_utils._host.layout import Part
from ansible_collections.backstep.workers.plugins.module_utils._host.moving import switch_host
from ansible_collections.backstep.workers.plugins.module_utils._host.supervisors.supervisord import Supervisord
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import StepOutOfOrder
from ansible_collections.backstep.workers.plugins.module_utils._scheduler_args import scheduler_of

from tests.integration.local_pool import PYTHON, TERMS, LocalPool
from tests.support.local_hosts import MARK, LocalHost, local_hosts
from tests.support.schedulers import Seen, at_work, watched
from tests.support.servers import wait_for

SCHEDULER = Path(__file__).resolve().parent / "files" / "scheduler.py"
PERIOD = 4.0
SECONDS = 60.0
# Seconds of a guard within which a scheduler comes up, also on a busy machine.
UP_BEFORE = 4.0
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def at() -> Iterator[LocalHost]:
    """One host for all tests of this file; each has a pool of its own on it."""
    with local_hosts(1) as hosts:
        yield hosts[0]


@pytest.fixture
def pool(at: LocalHost) -> LocalPool:
    """A new pool with a scheduler."""
    return with_scheduler(at)


def with_scheduler(at: LocalHost) -> LocalPool:
    """A new pool with a scheduler."""
    pool = LocalPool(at, f"beat{next(_numbers)}")
    shutil.copy(SCHEDULER, pool.code)
    pool.scheduler = {"command": [PYTHON, "{app}/scheduler.py", pool.name], "host": at.name, "period": PERIOD}
    return pool


def wait_scheduler(pool: LocalPool, release: str | None) -> None:
    """Wait until the scheduler of this release, and no other, is at work."""
    wanted = [release] if release else []
    wait_for(f"only {release} schedules", lambda: list(now(pool).values()) == wanted, SECONDS)


def now(pool: LocalPool) -> dict[int, str]:
    """Whose schedulers are at work, by process id."""
    return at_work(f"{MARK}={pool.at.folder}", ("scheduler.py", pool.name))


def watching(pool: LocalPool) -> Any:
    """See who schedules, all the time."""
    return watched(f"{MARK}={pool.at.folder}", "scheduler.py", pool.name)


def assert_exactly_one(seen: Seen) -> None:
    """Never two, and never none for longer than the period."""
    assert seen.looks > 10
    assert seen.most == 1
    assert seen.gap < PERIOD


def wait_settled_on(pool: LocalPool, release: str | None) -> None:
    """Wait until the guard has settled the host on a release."""

    def settled() -> bool:
        state = pool.open().state()
        return state.current == release and state.rollout is not None and not state.rollout.open

    wait_for(f"the guard has settled the host on {release}", settled, SECONDS)


@pytest.mark.parametrize("mode", ["overlap", "replace"])
def test_it_goes_and_comes_back_with_the_release(pool: LocalPool, mode: str) -> None:
    first = pool.deploy("1.0")
    wait_scheduler(pool, first)
    with watching(pool) as seen:
        pool.lease()
        second = pool.stage("2.0")
        done = pool.switch(second, mode=mode)
        assert done["scheduler"]["release"] == second
        assert (done["scheduler"]["runs"], done["scheduler"]["killed"]) == (True, [])
        assert pool.open().scheduler() == next((release, pid) for pid, release in now(pool).items())
        pool.confirm(second)
        pool.end()
        pool.lease(kind="rollback")
        back = pool.back(mode=mode)
        assert (back["evidence"]["outcome"], back["evidence"]["scheduler"]["pid"]) == ("ok", next(iter(now(pool))))
        pool.confirm(first)
        pool.end()
        wait_scheduler(pool, first)
    assert seen.releases == [first, second, first]
    assert_exactly_one(seen)
    assert describe_host(pool.open())["problems"] == []


def test_check_mode_shows_the_hand_over_of_a_release_that_is_not_stored_yet(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.lease()
    checked = switch_host(
        pool.open(),
        TERMS,
        release="2.0-00000000",
        wish="",
        rollout=pool.token,
        owner=None,
        adopt="",
        lease_seconds=60.0,
        verdict="unknown",
        reason="",
        check_mode=True,
        scheduler=scheduler_of(pool.scheduler),
    )
    assert list(now(pool).values()) == [first], "nothing was touched"
    second = pool.stage("2.0")
    done = pool.switch(second)
    named = [
        {**action, "release": second} if action["release"] == "2.0-00000000" else action
        for action in checked["actions"]
    ]
    assert named == done["actions"]
    assert named[-2] == {"action": "hand_over_scheduler", "release": second, "others": [first], "period": PERIOD}


def test_it_is_no_worker(pool: LocalPool) -> None:
    """Nothing that waits for tasks, or counts workers, sees it; what drains keeps it until it is handed over."""
    first = pool.deploy("1.0")
    assert pool.running() == {first: 1}
    pool.enqueue("long", PERIOD + 1.0)
    pool.wait_task("long", "executing", first)
    with watching(pool) as seen:
        pool.lease()
        second = pool.stage("2.0")
        done = pool.switch(second, mode="replace", drain_seconds=30.0, drain_policy="abort")
    assert [drained["outcome"] for drained in done["drained"]] == ["clean"]
    assert_exactly_one(seen)
    found = describe_host(pool.open())
    assert found["running"] == {second: 1}
    assert [worker["index"] for worker in found["processes"]] == [1]
    assert (found["scheduler"]["release"], found["scheduler"]["host"]) == (second, pool.at.name)


def test_a_release_without_one_ends_it_and_going_back_brings_it_again(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    scheduler, pool.scheduler = pool.scheduler, {}
    pool.deploy("2.0")
    wait_scheduler(pool, None)
    assert describe_host(pool.open())["scheduler"] is None
    pool.lease(kind="rollback")
    pool.back()
    pool.confirm(first)
    pool.end()
    wait_scheduler(pool, first)
    pool.scheduler = {**scheduler, "host": "another"}
    third = pool.deploy("3.0")
    wait_scheduler(pool, None)
    assert not pool.open().supervisor.processes(third, Part.SCHEDULER), "it belongs on another host"
    assert describe_host(pool.open())["problems"] == []


def test_one_that_crashes_at_its_start_is_bad_and_the_old_one_runs_again(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.lease()
    second = pool.stage("2.0", SCHEDULE="broken")
    pool.switch(second)
    pool.wait_task_taken(second)
    evidence = watch(pool.open(), second, 1.0, as_started(pool.open(), second))
    assert evidence["outcome"] == "failed"
    assert any(problem.startswith("the scheduler ") for problem in evidence["problems"]), evidence["problems"]
    assert [worker["index"] for worker in evidence["processes"]] == [1]
    with pytest.raises(StepOutOfOrder, match="is not confirmed: the scheduler "):
        pool.confirm(second)
    back = pool.back(verdict="bad")
    assert back["evidence"]["outcome"] == "ok"
    pool.confirm(first)
    wait_scheduler(pool, first)


def test_one_that_only_waits_for_another_is_none(pool: LocalPool) -> None:
    pool.lease()
    only = pool.stage("1.0")
    with pool.open().layout.scheduler_lock.open("w") as somebody:
        fcntl.flock(somebody, fcntl.LOCK_EX)
        assert pool.switch(only)["scheduler"]["runs"] is False
        evidence = watch(pool.open(), only, 0.0, as_started(pool.open(), only))
        assert evidence["problems"] == [f"the scheduler of {only} doesn't run"]
    wait_scheduler(pool, only)
    assert watch(pool.open(), only, 0.0, as_started(pool.open(), only))["outcome"] == "ok"


def test_one_that_does_not_come_back_is_named_and_the_way_back_goes_on(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    second = pool.deploy("2.0")
    (pool.root / "releases" / first / "app" / "scheduler.py").write_text("raise SystemExit(1)\n", encoding="ascii")
    pool.lease(kind="rollback")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ansible_collections.backstep.workers.plugins.module_utils._host.store.Store.problems", sound)
        back = pool.back()
    assert (back["release"], back["evidence"]["outcome"]) == (first, "failed")
    assert any("the scheduler" in problem for problem in back["evidence"]["problems"])
    pool.confirm(first)
    pool.wait_only(first)
    assert second not in now(pool).values()


def sound(*_given: Any) -> list[str]:
    """A release that fails only once it is started: its seal says nothing against it."""
    return []


def test_one_that_takes_a_moment_to_end_is_given_it(pool: LocalPool) -> None:
    pool.deploy("1.0", SCHEDULE="slow")
    pool.lease()
    with watching(pool) as seen:
        done = pool.switch(pool.stage("2.0"))
        wait_scheduler(pool, done["release"])
    assert_exactly_one(seen)
    assert done["scheduler"]["killed"] == []
    assert (pool.tasks / "done" / "ended").exists(), "it ended by itself"


def test_one_that_ignores_that_it_shall_end_is_killed_and_named(pool: LocalPool) -> None:
    pool.deploy("1.0", SCHEDULE="deaf")
    ((pid, first),) = now(pool).items()
    with watching(pool) as seen:
        pool.lease()
        second = pool.stage("2.0")
        done = pool.switch(second)
        wait_scheduler(pool, second)
    assert_exactly_one(seen)
    name = f"{pool.name}/{first}/{pool.at.name}/0/{pid}"
    assert done["scheduler"]["killed"] == [name]
    assert done["warnings"] == [f"The scheduler {name} didn't end in time and was killed."]
    (event,) = [each for each in pool.open().journal.read()[0] if each.get("killed")]
    assert (event["event"], event["killed"]) == ("scheduler_handed_over", [name])


# Between which acts of a hand-over the controller dies.
DEATHS = {
    "before the new one is started": (Supervisord, "start_stopped"),
    "before the old one is told to end": (scheduling, "_still_run"),
    "before the new one is waited for": (scheduling, "_comes_up"),
    "before it is entered": (Journal, "append"),
}


@pytest.mark.parametrize(
    ("death", "back"), [*((death, False) for death in DEATHS), ("before the old one is told to end", True)]
)
def test_a_controller_that_dies_between_two_acts_leaves_exactly_one(
    pool: LocalPool, death: str, back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pool.deploy("1.0")
    wait_scheduler(pool, first)
    with watching(pool) as seen:
        pool.lease()
        second = pool.stage("2.0")
        if back:
            pool.switch(second, confirm_seconds=30.0)
        where, name = DEATHS[death]
        real = getattr(where, name)

        def dies(*given: Any, **named: Any) -> Any:
            if Part.SCHEDULER in given or "scheduler_handed_over" in given or where is scheduling:
                raise KeyboardInterrupt
            return real(*given, **named)

        doomed = pool.back if back else partial(pool.switch, second)
        with monkeypatch.context() as patch:
            patch.setattr(where, name, dies)
            with pytest.raises(KeyboardInterrupt):
                doomed(confirm_seconds=2.0)
        wait_settled_on(pool, first)
        wait_scheduler(pool, first)
        pool.wait_only(first)
    assert_exactly_one(seen)
    assert describe_host(pool.open())["problems"] == []


def test_the_first_deploy_that_is_not_confirmed_leaves_none(pool: LocalPool) -> None:
    pool.lease()
    only = pool.stage("1.0")
    pool.switch(only, confirm_seconds=UP_BEFORE)
    wait_scheduler(pool, only)
    wait_settled_on(pool, None)
    wait_scheduler(pool, None)


def test_the_program_on_the_host_takes_it_along_and_names_it(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    second = pool.deploy("2.0")
    with watching(pool) as seen:
        assert f"scheduler that of {second} (pid " in pool.program("status").stdout
        done = pool.program("rollback")
        assert done.returncode == 0, done.stderr
        wait_scheduler(pool, first)
    assert_exactly_one(seen)
    pool.open().supervisor.quiet(first, Part.SCHEDULER)
    wait_scheduler(pool, None)
    said = pool.program("status").stdout
    assert "scheduler none here" in said
    assert f"! no scheduler runs: that of {first} should" in said


def test_the_program_on_the_host_does_not_move_it_between_hosts(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.scheduler = {**pool.scheduler, "host": "another"}
    second = pool.deploy("2.0")
    done = pool.program("rollback")
    assert done.returncode == 1
    assert f"The scheduler of {second} is on another, that of {first} on {pool.at.name}" in done.stderr
    assert pool.open().state().current == second
    assert now(pool) == {}


def test_one_that_is_killed_is_started_again(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    (pid,) = now(pool)
    os.kill(pid, signal.SIGKILL)
    wait_for("another one runs", lambda: set(now(pool)) - {pid}, SECONDS)
    assert list(now(pool).values()) == [first]


def test_a_reboot_in_the_middle_comes_up_with_the_last_good_one_alone() -> None:
    with local_hosts(1) as (host,):
        pool = with_scheduler(host)
        first = pool.deploy("1.0")
        pool.lease()
        second = pool.stage("2.0")
        pool.switch(second, confirm_seconds=UP_BEFORE)
        wait_scheduler(pool, second)
        host.power_cut()
        with watching(pool) as seen:
            host.boot()
            wait_settled_on(pool, first)
            wait_scheduler(pool, first)
        assert (seen.most, seen.releases) == (1, [first])


def test_a_reboot_with_two_releases_that_start_at_boot_has_one_at_a_time() -> None:
    """Whoever dies between enabling the one and disabling the other leaves both: the lock lets one of them run."""
    with local_hosts(1) as (host,):
        pool = with_scheduler(host)
        pool.deploy("1.0")
        pool.lease()
        second = pool.stage("2.0")
        pool.switch(second)
        pool.wait_running(second)

        def die(_self: Supervisord, _release: str) -> None:
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as cut_short:
            cut_short.setattr(Supervisord, "disable", die)
            with pytest.raises(KeyboardInterrupt):
                pool.confirm(second)
        host.power_cut()
        with watching(pool) as seen:
            host.boot()
            pool.wait_only(second)
            wait_scheduler(pool, second)
        assert seen.most == 1
