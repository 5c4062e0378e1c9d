# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host loses its power, its network or its time in the middle of a rollout: it is named, and all come back.

Real hosts with systemd. The tests share one pool; each of them leaves it on a good release, with nothing open.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine

from tests.demo.production import Production
from tests.faults.table import Run, Table
from tests.support.hosts import Host
from tests.support.ledger import balance
from tests.support.pool import Played, Pool, not_consuming, on_last_good, prepared_pool
from tools.common import wait_for

pytestmark = [pytest.mark.container, pytest.mark.thorough, pytest.mark.timeout(900)]
QUEUES = ["letters"]
CONFIRM_SECONDS = 60
GRACE_SECONDS = 10
# More than any step of a living host takes on a busy machine.
ANSWER_SECONDS = 60
STEP_SECONDS = 240
TASK_SECONDS = 20.0
MORE_THAN_ARE_PRODUCED = 100_000
CUT_OFF = "cut off from the broker"
# What is done to a host, and how it is undone.
FAULTS = {
    "power cut": (Host.kill, Host.power_on),
    CUT_OFF: (Host.disconnect, Host.connect),
    "frozen": (Host.freeze, Host.thaw),
}
# Long enough in each step to be struck there.
LONG: dict[str, Any] = {
    "pool_waves": ["100%"],
    "pool_health": {"bake": 20, "canary_timeout": 5},
    "pool_confirm_timeout": CONFIRM_SECONDS,
    "pool_step_timeout": ANSWER_SECONDS,
}
REPLACE: dict[str, Any] = {**LONG, "pool_mode": "replace", "pool_drain": {"timeout": 30, "on_timeout": "requeue"}}
# The step, its play and terms, and the event after which the host is struck.
STEPS = {
    "switch": ("deploy", LONG, "switched"),
    "drain": ("deploy", REPLACE, "drain_started"),
    "rollback": ("rollback", REPLACE, "drain_started"),
}
_versions = itertools.count(2)
_tasks = itertools.count(1_000_000)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Two worker hosts on release 1.0, and a broker."""
    health = {"bake": 1, "canary_timeout": 15}
    with prepared_pool(2, tmp_path_factory.mktemp("pool"), pool_health=health, pool_waves=["100%"]) as prepared:
        assert prepared.play("deploy").status == 0
        yield prepared


@pytest.fixture(scope="module")
def engine(pool: Pool) -> Iterator[Engine]:
    """The pool's engine, asked from here."""
    with open_engine("rq", pool.broker_url, 5.0) as opened:
        yield opened


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Tasks that earlier faults have lost or made run twice."""
    return set()


def keep_busy(pool: Pool) -> None:
    """Give every worker a task that takes a while."""
    for _worker in range(2 * pool.processes):
        pool.bench.enqueue(QUEUES[0], next(_tasks), TASK_SECONDS, task="letters.send")


def wait_event(pool: Pool, host: Host, event: str) -> None:
    """Wait until this is the last that a host has entered."""

    def not_there() -> str | None:
        last = pool.view(host).events[-1]
        return None if last == event else last

    wait_for(f"{host.name} to have {event}", not_there, timeout=STEP_SECONDS)


def wait_back(pool: Pool, engine: Engine, hosts: tuple[Host, ...], release: str) -> None:
    """Wait until hosts consume on a release, with nothing open."""
    seconds = CONFIRM_SECONDS + GRACE_SECONDS
    wait_for(f"{release} to consume", lambda: not_consuming(pool, engine, hosts, release), timeout=seconds)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_host_is_struck(pool: Pool, engine: Engine, table: Table, known: set[str], fault: str, step: str) -> None:
    playbook = STEPS[step][0]
    home = on_last_good(pool)
    wanted: dict[str, Any] = {"pool_version": f"{next(_versions)}.0"}
    if playbook == "rollback":
        assert pool.play("deploy", **wanted).status == 0
        wanted = {}
    with Production(pool, next(_tasks) * MORE_THAN_ARE_PRODUCED) as production:
        first, seconds = struck(pool, engine, fault, step, home, wanted)
        again = run_again(pool, playbook, wanted)
        production.stop()
    assert (on_last_good(pool) == home) == (playbook == "rollback")
    for host in pool.workers:
        assert pool.program(host, "verify").status == 0
    wait_for("the workers to finish what they can reach", lambda: unrest(engine), timeout=STEP_SECONDS)
    if (fault, step) == (CUT_OFF, "switch"):
        # Its workers die without a broker, which is nothing against the release.
        assert "this host doesn't reach the broker" in first.output
        assert f"{wanted['pool_version']}-" in on_last_good(pool)
    found = balance(engine, pool.ledger_url, QUEUES, first.announced | again)
    lost, duplicated = found.lost - known, found.duplicated - known
    known |= found.lost | found.duplicated
    table.runs.append(Run(fault, f"host, {step}", len(lost), len(duplicated), len(found.announced), seconds))
    assert lost == frozenset()
    assert duplicated <= found.announced


def run_again(pool: Pool, playbook: str, wanted: dict[str, Any]) -> set[str]:
    """Bring the pool where it was asked to be; the tasks that were announced meanwhile.

    A deploy may have a way back to finish first, and its release may be bad by now, as the host was cut off only after
    it had said that it reaches the broker: what has to be deployable then is another one.
    """
    again = pool.play(playbook, **wanted)
    announced = again.announced
    if again.status and playbook == "deploy":
        again = pool.play(playbook, pool_version=f"{next(_versions)}.0")
        announced |= again.announced
    assert again.status == 0
    return announced


def struck(
    pool: Pool, engine: Engine, fault: str, step: str, home: str, wanted: dict[str, Any]
) -> tuple[Played, float]:
    """Strike a host in the middle of a play; that play, and seconds until it consumed again after it was mended."""
    playbook, terms, event = STEPS[step]
    strike, heal = FAULTS[fault]
    host, other = pool.workers
    if terms is REPLACE:
        keep_busy(pool)
    with pool.under_way(playbook, **{**terms, **wanted}) as play, ExitStack() as undo:
        wait_event(pool, host, event)
        strike(host)
        undo.callback(heal, host)
        # While the host is still as it is: a run doesn't wait for it.
        status = play.wait(STEP_SECONDS)
        assert status != 0
        wait_back(pool, engine, (other,), home)
        undo.pop_all().close()
        began = time.monotonic()
        assert play.stdout is not None
        output = play.stdout.read()
        print(output)
        assert host.name in output
        wait_back(pool, engine, pool.workers, home)
        return Played(status, output), round(time.monotonic() - began, 1)


def unrest(engine: Engine) -> str | None:
    """None once nothing is next; what a host had in hand when it died stays listed until its workers are given up."""
    (queue,) = engine.queue_states(QUEUES)
    return str(queue) if queue.oldest_waiting_seconds is not None else None
