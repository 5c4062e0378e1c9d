# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard under a real supervisord: whatever dies, the last good release works again in time, with no human."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host.info import describe_host
from ansible_collections.backstep.workers.plugins.module_utils._host.supervisors.supervisord import Supervisord
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import HostUnfit
from ansible_collections.backstep.workers.plugins.module_utils._rollout.rules import Moment

from tests.integration import local_pool
from tests.integration.local_pool import LocalPool
from tests.support.local_hosts import LocalHost, local_hosts
from tests.support.servers import wait_for

CHECKOUT = Path(__file__).resolve().parents[2]
# A worker is up before, also on a busy machine.
CONFIRM_SECONDS = 3.0


def wait_back(pool: LocalPool, release: str | None) -> None:
    """Wait until the guard has settled the host on a release."""

    def settled() -> bool:
        state = pool.open().state()
        return state.current == release and state.rollout is not None and not state.rollout.open

    wait_for(f"the guard has settled the host on {release}", settled)
    pool.wait_only(release)


def test_nobody_confirms(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.lease()
    second = pool.stage("2.0")
    began = time.monotonic()
    pool.switch(second, confirm_seconds=CONFIRM_SECONDS)
    pool.wait_running(second)
    wait_back(pool, first)
    assert time.monotonic() - began > CONFIRM_SECONDS
    pool.enqueue("next")
    pool.wait_task("next", "done", first)
    events = pool.events()
    assert events.count("guard_fired") == 1
    assert events.index("guard_fired") < events.index("rollback_started") < events.index("rolled_back")
    assert pool.open().state().state_of(second) == "staged", "nothing bad is known of it"
    assert pool.open().supervisor.enabled(first)
    assert pool.open().link() == first


def test_each_rollout_has_a_guard_of_its_own_however_fast_they_follow(at: LocalHost, pool: LocalPool) -> None:
    """The guard of the rollout before ends half a second after its confirmation: nobody may take it for the new one."""
    for number in range(4):
        pool.deploy(f"{number}.0")
    pool.lease()
    release = pool.stage("9.0")
    pool.switch(release, confirm_seconds=30.0)
    assert pool.open().supervisor.guard_armed()
    pool.confirm(release)
    wait_for("no guard is left", lambda: not guards(at, pool))
    assert not pool.open().supervisor.guard_armed()
    assert not list(at.conf_dir.glob(f"backstep-{pool.name}-*guard*"))


def test_a_host_that_could_not_run_it_is_refused_before_the_switch(
    pool: LocalPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its supervisor starts it, and would call it started; that it ends at once, nobody would see."""
    first = pool.deploy("1.0")
    before = pool.open().program_digest()
    monkeypatch.setattr(local_pool, "build_host_program", lambda: b"import a_part_of_python_that_is_not_there")
    pool.lease()
    with pytest.raises(HostUnfit, match=r"would have no guard: .*a_part_of_python_that_is_not_there"):
        pool.stage("2.0")
    assert (pool.open().program_digest(), pool.open().link()) == (before, first)
    assert [path.name for path in pool.open().layout.program.parent.iterdir()] == ["backstep"]


def test_a_confirmation_disarms_it(pool: LocalPool) -> None:
    pool.deploy("1.0")
    pool.lease()
    second = pool.stage("2.0")
    pool.switch(second, confirm_seconds=2 * CONFIRM_SECONDS)
    pool.wait_running(second)
    pool.confirm(second)
    (pid,) = (process.pid for process in pool.open().running()[second])
    deadline = time.monotonic() + 2 * CONFIRM_SECONDS + 1.0
    wait_for("the deadline has passed", lambda: time.monotonic() > deadline)
    assert "guard_fired" not in pool.events()
    assert [process.pid for process in pool.open().running()[second]] == [pid]


def test_the_first_deploy_goes_back_to_nothing_running(pool: LocalPool) -> None:
    pool.lease()
    only = pool.stage("1.0")
    pool.switch(only, confirm_seconds=CONFIRM_SECONDS)
    pool.wait_running(only)
    wait_back(pool, None)
    assert pool.open().link() is None


# Switches as a module would, says so, and then hangs: the test kills it with SIGKILL.
_CONTROLLER = """
import sys, time
from tests.integration.local_pool import LocalPool
from tests.support.local_hosts import LocalHost
from pathlib import Path
pool = LocalPool(LocalHost(Path(sys.argv[1])), sys.argv[2])
pool.lease("doomed")
release = pool.stage("2.0")
pool.switch(release, confirm_seconds=3.0)
print(release, flush=True)
time.sleep(60)
"""


def test_it_outlives_a_controller_that_is_killed(at: LocalHost, pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    path = f"{CHECKOUT / 'build' / 'collections'}:{CHECKOUT}"
    controller = subprocess.Popen(
        [sys.executable, "-c", _CONTROLLER, str(at.folder), pool.name],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert controller.stdout is not None
    second = controller.stdout.readline().strip()
    os.killpg(controller.pid, signal.SIGKILL)
    controller.wait(10)
    controller.stdout.close()
    pool.wait_running(second)
    wait_back(pool, first)
    pool.enqueue("next")
    pool.wait_task("next", "done", first)


def test_it_is_started_again_when_it_is_killed_itself(at: LocalHost, pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.lease()
    second = pool.stage("2.0")
    pool.switch(second, confirm_seconds=CONFIRM_SECONDS)
    before = wait_for("a guard waits", lambda: guards(at, pool))
    for guard in before:
        os.kill(guard, signal.SIGKILL)
    wait_for("another guard waits", lambda: set(guards(at, pool)) - set(before))
    wait_back(pool, first)


def guards(at: LocalHost, pool: LocalPool) -> list[int]:
    """The processes of the pool's guard."""
    program = str(pool.root / "bin" / "backstep").encode()
    found = []
    for pid in at.processes():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if program in words and b"guard" in words:
            found.append(pid)
    return found


def test_a_guard_that_was_killed_half_way_back_finishes_the_way_back(at: LocalHost, pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.lease()
    second = pool.stage("2.0")
    pool.switch(second, confirm_seconds=1.0)
    wait_for("it goes back", lambda: "rollback_started" in pool.events())
    for guard in guards(at, pool):
        os.kill(guard, signal.SIGKILL)
    wait_back(pool, first)
    assert pool.open().state().state_of(second) == "staged"


def test_a_way_back_that_fails_as_well_stops_and_goes_on_once_it_can(at: LocalHost, pool: LocalPool) -> None:
    first = pool.deploy("1.0", FLAG=str(pool.tasks / "broken"))
    pool.lease()
    second = pool.stage("2.0")
    (pool.tasks / "broken").touch()
    pool.switch(second, confirm_seconds=1.0)
    wait_for("it has tried", lambda: "rollback_failed" in pool.events())
    log = Path(pool.open().supervisor.where_to_look(first, 1))
    wait_for("its supervisor has tried it on and on", lambda: log.read_text().count("can't start") >= 4, 30.0)
    assert (pool.events().count("guard_fired"), pool.events().count("rollback_failed")) == (1, 1)
    state = pool.open().state()
    assert state.rollout is not None
    assert (state.rollout.phase, state.rollout.safe, state.state_of(first)) == ("stuck", first, "good")
    (problem,) = [text for text in describe_host(pool.open())["problems"] if text.startswith("needs a person")]
    assert f"unless {first} stays up after all: the way back to it has failed: {first} was started again and" in problem
    assert second in pool.running()
    pool.end()
    (pool.tasks / "broken").unlink()
    wait_back(pool, first)
    assert pool.open().state().good_releases() == [first]
    reasons = [event["reason"] for event in pool.open().journal.read()[0] if event["event"] == "guard_fired"]
    assert reasons == ["it was not confirmed in time", f"{first} stays up now"]
    wait_for("no guard is left", lambda: not guards(at, pool), 30.0)


def test_a_reboot_in_the_middle_comes_up_on_the_last_good_release() -> None:
    with local_hosts(1) as (host,):
        pool = LocalPool(host, "boot")
        first = pool.deploy("1.0")
        pool.lease()
        second = pool.stage("2.0")
        pool.switch(second, confirm_seconds=600.0)
        pool.wait_running(second)
        host.power_cut()
        for path in (pool.tasks / "started").iterdir():
            path.unlink()
        _another_boot(pool)
        host.boot()
        wait_back(pool, first)
        assert pool.started(second) == [], "it was not started, not even for a moment"
        assert len(pool.started(first)) >= 1
        assert pool.open().link() == first
        events = pool.open().journal.read()[0]
        assert [event["reason"] for event in events if event["event"] == "guard_fired"] == [
            "the host came up in the middle of it"
        ]


_STAMP = frozenset(("schema", "seq", "time", "up", "boot", "token", "by", "event", "previous", "hash"))


def _another_boot(pool: LocalPool) -> None:
    """This machine is not restarted: so the journal is made to come from another boot."""
    journal = pool.open().journal
    events = journal.read()[0]
    journal.path.unlink()
    for event in events:
        data = {key: value for key, value in event.items() if key not in _STAMP}
        then = Moment("before", event["up"], event["time"])
        journal.append(event["event"], then, event["token"], event["by"], **data)


def test_a_reboot_on_the_way_back_does_not_stop_at_what_starts_by_itself() -> None:
    """Until the way back is confirmed, the release that is being left is the one that starts at boot."""
    with local_hosts(1) as (host,):
        pool = LocalPool(host, "boot")
        first = pool.deploy("1.0")
        second = pool.deploy("2.0")
        pool.lease("oncall", kind="rollback")
        pool.back()
        pool.wait_running(first)
        host.power_cut()
        _another_boot(pool)
        host.boot()
        wait_back(pool, first)
        assert pool.open().state().state_of(second) == "bad"
        wait_for("the guard has seen to the next boot", lambda: not pool.open().supervisor.enabled(second), 15.0)


def test_a_confirmation_that_was_cut_short_is_finished_after_a_reboot(monkeypatch: pytest.MonkeyPatch) -> None:
    with local_hosts(1) as (host,):
        pool = LocalPool(host, "boot")
        pool.deploy("1.0")
        pool.lease()
        second = pool.stage("2.0")
        pool.switch(second)
        pool.wait_running(second)

        def die(_self: Supervisord, _release: str) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as cut_short:
            cut_short.setattr(Supervisord, "disable", die)
            with pytest.raises(KeyboardInterrupt):
                pool.confirm(second)
        assert pool.open().state().current == second
        host.power_cut()
        _another_boot(pool)
        host.boot()
        pool.wait_only(second)
        wait_for("the guard has ended", lambda: not guards(host, pool))
        host.power_cut()
        host.boot()
        pool.wait_only(second)


def test_a_reboot_of_a_settled_host_starts_the_good_release_and_nothing_else() -> None:
    with local_hosts(1) as (host,):
        pool = LocalPool(host, "boot")
        pool.deploy("1.0")
        second = pool.deploy("2.0")
        pool.wait_settled()
        events = pool.events()
        host.power_cut()
        assert pool.running() == {}
        host.boot()
        pool.wait_only(second)
        assert pool.events() == events


def test_nothing_of_a_host_outlives_its_test() -> None:
    with local_hosts(1) as (host,):
        LocalPool(host, "gone").deploy("1.0")
        assert len(host.processes()) >= 2
    assert host.processes() == []
    assert not host.folder.exists()
