# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever dies in the middle of a rollout, real hosts with systemd consume again on the last good release.

The tests share one pool; each of them leaves it on a good release, with nothing open.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine

from tests.demo.production import Production
from tests.support.hosts import Host
from tests.support.ledger import balance
from tests.support.pool import Pool, not_consuming, on_last_good, prepared_pool
from tools.common import wait_for

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]
QUEUES = ["letters"]
CONFIRM_SECONDS = 40
GRACE_SECONDS = 10
SWITCH_SECONDS = 90
END_SECONDS = 120
# Long enough for the controller to be killed, or a host rebooted, while it watches.
LONG_WATCH: dict[str, Any] = {
    "pool_confirm_timeout": CONFIRM_SECONDS,
    "pool_health": {"bake": 30, "canary_timeout": 5},
    "pool_waves": ["100%"],
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Two worker hosts on release 1.0, and a broker."""
    health = {"bake": 1, "canary_timeout": 10}
    with prepared_pool(2, tmp_path_factory.mktemp("pool"), pool_health=health, pool_waves=["100%"]) as prepared:
        assert prepared.play("deploy").status == 0
        yield prepared


@pytest.fixture(scope="module")
def engine(pool: Pool) -> Iterator[Engine]:
    """The pool's engine, asked from here."""
    with open_engine("rq", pool.broker_url, 5.0) as opened:
        yield opened


@contextmanager
def under_way(pool: Pool, **variables: Any) -> Iterator[subprocess.Popen[str]]:
    """A deploy that runs on while the block does something to it."""
    with pool.under_way("deploy", **{**LONG_WATCH, **variables}) as process:
        yield process


def wait_switched(pool: Pool, version: str, hosts: tuple[Host, ...]) -> None:
    """Wait until each of these hosts has noted that it runs a release of this version, unconfirmed."""

    def some_have_not() -> str | None:
        for host in hosts:
            last = pool.view(host).journal[-1]
            if last["event"] != "switched" or not last["target"].startswith(f"{version}-"):
                return f"{last['event']} on {host.name}"
        return None

    wait_for(f"every host to switch to {version}", some_have_not, timeout=SWITCH_SECONDS)


def test_hosts_go_back_by_themselves_when_the_controller_is_killed(pool: Pool, engine: Engine) -> None:
    good = on_last_good(pool)
    with under_way(pool, pool_version="2.0") as deploy:
        wait_switched(pool, "2.0", pool.workers)
        os.killpg(deploy.pid, signal.SIGKILL)
    with Production(pool) as production:
        seconds = CONFIRM_SECONDS + GRACE_SECONDS
        wait_for(f"{good} to consume", lambda: not_consuming(pool, engine, pool.workers, good), timeout=seconds)
        wait_for("the hosts to enter it", lambda: not_rolled_back(pool, pool.workers), timeout=GRACE_SECONDS)
        for host in pool.workers:
            fired = [event for event in pool.view(host).journal if event["event"] == "guard_fired"]
            assert [(event["by"], event["reason"]) for event in fired] == [("guard", "it was not confirmed in time")]
        production.stop()
    # A worker that was told to stop while it took a task may have let go of it: the guard reaches no broker, so whoever
    # looks after it takes the task back.
    assert pool.play("rollback").status == 0
    wait_for("the queue to come to rest", lambda: unrest(engine), timeout=END_SECONDS)
    found = balance(engine, pool.ledger_url, QUEUES)
    assert (found.lost, found.duplicated, found.listed) == (frozenset(), frozenset(), frozenset())


def not_rolled_back(pool: Pool, hosts: Sequence[Host]) -> str | None:
    """None once the last thing that each host has entered of a rollout is that it was rolled back."""
    for host in hosts:
        events = [event for event in pool.view(host).events if event in ("switched", "rolled_back")]
        if events[-1] != "rolled_back":
            return f"{events[-1]} on {host.name}"
    return None


def not_only_running(pool: Pool, hosts: Sequence[Host], release: str) -> str | None:
    """None once each host runs all its workers of the release, and nothing else."""
    found = {host.name: pool.view(host).releases for host in hosts}
    return None if all(releases == {release: pool.processes} for releases in found.values()) else str(found)


def unrest(engine: Engine) -> str | None:
    """None once nothing waits and nothing executes."""
    (queue,) = engine.queue_states(QUEUES)
    return None if queue.waiting == queue.executing == 0 else str(queue)


@pytest.mark.thorough
def test_a_guard_that_can_not_write_its_journal_tries_again_until_it_can(pool: Pool, engine: Engine) -> None:
    good = on_last_good(pool)
    state = f"{pool.root}/state"
    soon = {"pool_confirm_timeout": 20, "pool_health": {"bake": 12, "canary_timeout": 5}}
    with under_way(pool, pool_version="2.1", **soon) as deploy:
        wait_switched(pool, "2.1", pool.workers)
        os.killpg(deploy.pid, signal.SIGKILL)
    for host in pool.workers:
        host.run("mount", "--bind", state, state)
        host.run("mount", "-o", "remount,ro,bind", state)

    def has_not_tried() -> str | None:
        for host in pool.workers:
            said = host.run("journalctl", "--quiet", "--no-pager", "-u", f"backstep-{pool.name}-guard-*").stdout
            if said.count("Read-only file system") < 2:
                return f"{host.name}: {said[-500:]}"
        return None

    wait_for("each guard to try twice", has_not_tried, timeout=CONFIRM_SECONDS)
    for host in pool.workers:
        assert len(pool.view(host).releases) == 1, "what runs goes on"
        host.run("umount", state)
    wait_for("the hosts to go back", lambda: not_rolled_back(pool, pool.workers), timeout=CONFIRM_SECONDS)
    wait_for(f"only {good} to run", lambda: not_only_running(pool, pool.workers, good), timeout=GRACE_SECONDS)


@pytest.mark.thorough
def test_a_rerun_takes_over_from_the_dead_run_at_once(pool: Pool) -> None:
    with under_way(pool, pool_version="2.0") as deploy:
        wait_switched(pool, "2.0", pool.workers)
        os.killpg(deploy.pid, signal.SIGKILL)
    played = pool.play("deploy", pool_version="2.0")
    assert played.status == 0
    assert "taking over from a run that has died" in played.output
    assert on_last_good(pool).startswith("2.0-")


@pytest.mark.thorough
def test_a_host_that_reboots_in_mid_rollout_comes_up_on_the_last_good_release(pool: Pool) -> None:
    good = on_last_good(pool)
    rebooted, _other = pool.workers
    with under_way(pool, pool_version="3.0") as deploy:
        wait_switched(pool, "3.0", pool.workers)
        rebooted.restart()
        wait_for(f"{rebooted.name} to go back", lambda: not_rolled_back(pool, [rebooted]), timeout=CONFIRM_SECONDS)
        wait_for(f"only {good} to run", lambda: not_only_running(pool, [rebooted], good), timeout=GRACE_SECONDS)
        reasons = [event["reason"] for event in pool.view(rebooted).journal if event["event"] == "guard_fired"]
        assert reasons[-1] == "the host came up in the middle of it"
        assert deploy.wait(END_SECONDS) != 0
    wait_for(f"only {good} to run", lambda: not_only_running(pool, pool.workers, good), timeout=GRACE_SECONDS)
    for host in pool.workers:
        assert pool.program(host, "verify").status == 0


@pytest.mark.thorough
def test_the_host_program_needs_no_network_and_its_workers_come_back_with_it(pool: Pool, engine: Engine) -> None:
    host = pool.workers[0]
    older = on_last_good(pool)
    assert pool.play("deploy", pool_version="4.0").status == 0
    now = on_last_good(pool)
    host.disconnect()
    try:
        told = json.loads(pool.program(host, "status", "--json").output)
        assert (told["current"], told["running"][now]) == (now, pool.processes)
        assert "confirmed" in pool.program(host, "history").output
        assert pool.program(host, "verify").status == 0
        # Without their broker, workers that are started can't stay up, sooner or later. Whether that was soon enough to
        # be seen decides whether the host is back at once, or stays where it was until its network is there again.
        tried = pool.program(host, "rollback", check=False)
        told = json.loads(pool.program(host, "status", "--json").output)
        assert told["link"] == (older if tried.status == 0 else now)
        assert tried.status == 0 or "doesn't stay up" in tried.output
    finally:
        host.connect()
    wait_for("the host to go back", lambda: not_rolled_back(pool, [host]), timeout=SWITCH_SECONDS)
    assert pool.program(host, "verify").status == 0
    with Production(pool):
        wait_for(f"{older} to consume", lambda: not_consuming(pool, engine, [host], older), timeout=SWITCH_SECONDS)
