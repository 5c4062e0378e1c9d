# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reaper under a real supervisord: what drains in peace is let go by itself, and never what is wanted again."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host.info import describe_host
from ansible_collections.backstep.workers.plugins.module_utils._host.supervisors.base import REAPER
from ansible_collections.backstep.workers.plugins.module_utils._host.supervisors.supervisord import Supervisord
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import DrainTimeout

from tests.integration.local_pool import ENDLESS, LocalPool
from tests.support.local_hosts import local_hosts
from tests.support.servers import wait_for

SOON = 60.0


def leave_busy(pool: LocalPool, version: str, after: str, name: str, seconds: float, **terms: Any) -> str:
    """Have a release execute a task, and deploy the next one in the meantime; the next one."""
    pool.enqueue(name, seconds)
    pool.wait_task(name, "executing", after)
    pool.lease()
    release = pool.stage(version)
    pool.switch(release, **terms)
    pool.wait_running(release)
    pool.confirm(release, **terms)
    pool.end()
    return release


def reapers(pool: LocalPool, command: bytes = b"reap") -> list[int]:
    """The processes of the pool's reaper, or of another chore."""
    program = str(pool.root / "bin" / "backstep").encode()
    found = []
    for pid in pool.at.processes():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if program in words and command in words:
            found.append(pid)
    return found


def reaped(pool: LocalPool) -> list[dict[str, Any]]:
    """What the journal has of releases that were let go by the reaper, not at once."""
    return [event for event in pool.open().journal.read()[0] if event["event"] == "reaped" and event["by"] == "reaper"]


def end_task(pool: LocalPool, name: str) -> None:
    """Have a task end for the reaper to notice: once no guard is left, which looks as well before it ends."""
    wait_for("the guard has ended, who would see to it", lambda: not reapers(pool, b"guard"))
    pool.end_task(name)


def wait_reaped(pool: LocalPool, count: int = 1, seconds: float = SOON) -> dict[str, Any]:
    """Wait until the reaper has let go so many releases; the last of these events."""
    wait_for(f"{count} are let go", lambda: len(reaped(pool)) >= count, seconds)
    return reaped(pool)[-1]


def test_confirm_does_not_wait_and_the_reaper_lets_go_what_has_ended(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    second = leave_busy(pool, "2.0", first, "long", ENDLESS, drain_seconds=0.1)
    assert not (pool.tasks / "done" / f"long,{first}").exists(), "nobody has waited for the task"
    (entry,) = describe_host(pool.open())["draining"]
    assert (entry["release"], entry["running"][0]["worker"].rpartition("/")[0]) == (first, f"{pool.name}/{first}/w1/1")
    said = pool.program("status").stdout
    assert f"draining  {first} since 20" in said
    assert entry["running"][0]["worker"] in said
    assert pool.open().supervisor.installed(first)
    assert (pool.root / "releases" / first / "app").exists()
    end_task(pool, "long")
    event = wait_reaped(pool)
    assert (event["release"], event["outcome"], event["running"]) == (first, "clean", [])
    assert (pool.tasks / "done" / f"long,{first}").exists()
    assert not pool.open().supervisor.installed(first)
    assert (pool.root / "releases" / first / "config").stat().st_mode & 0o777 == 0o700
    assert pool.running() == {second: 1}
    assert describe_host(pool.open())["draining"] == []
    wait_for("the reaper has ended", lambda: not reapers(pool))
    assert not pool.open().supervisor.chore_armed(REAPER)
    assert not list(pool.at.conf_dir.glob(f"backstep-{pool.name}-+*"))


def test_nothing_is_armed_for_nothing(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.lease()
    second = pool.stage("2.0")
    pool.switch(second, mode="replace")
    pool.wait_running(second)
    confirmed = pool.confirm(second)
    assert [drained["outcome"] for drained in confirmed["drained"]] == ["clean"]
    assert not pool.open().supervisor.installed(first)
    assert not list(pool.at.conf_dir.glob("*+reap-*"))
    assert pool.events()[-3:] == ["confirmed", "reaped", "guard_disarmed"]


def test_three_releases_at_once(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    second = leave_busy(pool, "2.0", first, "long", ENDLESS)
    since = pool.open().state().draining[first].since
    third = leave_busy(pool, "3.0", second, "longer", ENDLESS)
    assert pool.running() == {first: 1, second: 1, third: 1}
    assert len(reapers(pool)) == 1
    draining = pool.open().state().draining
    assert (list(draining), draining[first].since) == ([first, second], since)
    end_task(pool, "longer")
    assert wait_reaped(pool, 1)["release"] == second, "the one that ended first, not the one that began first"
    assert pool.open().supervisor.installed(first)
    end_task(pool, "long")
    assert wait_reaped(pool, 2)["release"] == first
    assert pool.running() == {third: 1}
    for name, release in (("long", first), ("longer", second)):
        assert (pool.tasks / "done" / f"{name},{release}").exists()


def test_what_is_gone_back_to_is_started_again_and_left_alone(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    second = leave_busy(pool, "2.0", first, "long", ENDLESS)
    assert reapers(pool)
    pool.lease("oncall", kind="rollback")
    pool.back()
    pool.confirm(first)
    pool.end()
    end_task(pool, "long")
    pool.wait_task("long", "done", first)
    pool.wait_running(first)
    pool.enqueue("next")
    pool.wait_task("next", "done", first)
    wait_for("the reaper has ended", lambda: not reapers(pool))
    assert pool.running() == {first: 1}
    assert pool.open().supervisor.enabled(first)
    assert pool.open().state().state_of(second) == "bad"
    assert first not in {event["release"] for event in reaped(pool)}


def test_a_step_that_gives_up_waiting_has_only_the_current_release_take_tasks_again(pool: LocalPool) -> None:
    pool.processes = 2
    first = pool.deploy("1.0")
    second = leave_busy(pool, "2.0", first, "long", ENDLESS)
    pool.lease()
    third = pool.stage("3.0")
    with pytest.raises(DrainTimeout, match=f"{first} ends when its tasks do"):
        pool.switch(third, mode="replace", drain_seconds=0.5)
    pool.back(verdict="unknown")
    pool.confirm(second)
    pool.end()
    end_task(pool, "long")
    pool.wait_task("long", "done", first)
    pool.wait_only(second)
    assert len(pool.started(first)) == 2


@pytest.mark.parametrize("policy", ["kill", "requeue"])
def test_what_has_overrun_is_killed_if_that_was_asked_for_and_named(pool: LocalPool, policy: str) -> None:
    pool.environment = {"MODE": "deaf"}
    first = pool.deploy("1.0")
    leave_busy(pool, "2.0", first, "endless", ENDLESS, drain_policy=policy, drain_seconds=2.0)
    (entry,) = describe_host(pool.open())["draining"]
    event = wait_reaped(pool)
    assert event["outcome"] == "killed"
    assert [worker["worker"] for worker in event["running"]] == [entry["running"][0]["worker"]]
    assert pool.events().index("drain_overran") < pool.events().index("reaped", pool.events().index("drain_overran"))
    assert first not in pool.running()
    assert event["running"][0]["worker"] in pool.program("status").stdout
    (told,) = describe_host(pool.open())["reaped"]
    assert (told["release"], told["again"]) == (first, False)


def test_without_such_a_policy_nothing_is_ever_killed(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    leave_busy(pool, "2.0", first, "long", 4.0, drain_policy="abort", drain_seconds=0.1)
    wait_reaped(pool)
    assert (pool.tasks / "done" / f"long,{first}").exists()
    assert "drain_overran" not in pool.events()


def test_a_reaper_that_is_killed_is_started_again(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    leave_busy(pool, "2.0", first, "long", ENDLESS)
    wait_for("the guard has ended, who would see to it", lambda: not reapers(pool, b"guard"))
    before = reapers(pool)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_for("another one looks", lambda: set(reapers(pool)) - set(before))
    end_task(pool, "long")
    assert wait_reaped(pool)["release"] == first
    assert not pool.open().supervisor.installed(first)


def test_what_was_kept_only_because_it_ran_is_pruned_when_it_has_ended(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    leave_busy(pool, "2.0", first, "long", ENDLESS, keep=1)
    for version in ("3.0", "4.0"):
        pool.lease()
        release = pool.stage(version)
        pool.switch(release)
        pool.wait_running(release)
        pool.confirm(release, keep=1)
        pool.end()
    assert (pool.root / "releases" / first).exists(), "a process runs from it"
    end_task(pool, "long")
    wait_for("it is let go", lambda: first in [event["release"] for event in reaped(pool)], SOON)
    wait_for("it is pruned", lambda: first not in pool.open().state().good_releases())
    assert not (pool.root / "releases" / first).exists()
    assert len(pool.open().state().good_releases()) == 2


def test_a_release_that_is_pruned_while_somebody_looks_is_no_problem(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.deploy("2.0")
    host = pool.open()
    seen: list[dict[str, Any]] = []
    looking = threading.Thread(target=lambda: seen.append(describe_host(pool.open(), verify=True)))
    with host.locked():
        host.store.discard(first)
        looking.start()
        # Long enough for it to have found that the files are gone, and to wait for whoever is at work here.
        looking.join(1.0)
        assert looking.is_alive()
        host.note("pruned", host.state().last_token, release=first)
    looking.join()
    assert seen[0]["problems"] == []


def test_a_release_whose_files_are_gone_is_a_problem(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.deploy("2.0")
    pool.open().store.discard(first)
    (problem,) = describe_host(pool.open(), verify=True)["problems"]
    assert f"The stored release {first} can't be used" in problem


def test_after_a_reboot_it_clears_up() -> None:
    with local_hosts(1) as (host,):
        pool = LocalPool(host, "boot")
        first = pool.deploy("1.0")
        second = leave_busy(pool, "2.0", first, "long", ENDLESS)
        assert pool.open().supervisor.installed(first)
        host.power_cut()
        host.boot()
        assert wait_reaped(pool)["release"] == first
        pool.wait_only(second)
        assert not pool.open().supervisor.installed(first)
        wait_for("the reaper has ended", lambda: not reapers(pool))


def test_a_confirmation_that_dies_before_it_has_armed_the_reaper_leaves_it_to_the_guard(
    pool: LocalPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pool.deploy("1.0")
    pool.enqueue("long", ENDLESS)
    pool.wait_task("long", "executing", first)
    pool.lease()
    second = pool.stage("2.0")
    pool.switch(second)
    pool.wait_running(second)

    def die(_self: Supervisord, _chore: str, _token: int, _seconds: float | None) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as cut_short:
        cut_short.setattr(Supervisord, "arm_chore", die)
        with pytest.raises(KeyboardInterrupt):
            pool.confirm(second)
    end_task(pool, "long")
    assert wait_reaped(pool)["release"] == first
    assert pool.running() == {second: 1}
