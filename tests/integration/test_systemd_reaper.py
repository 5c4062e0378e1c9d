# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reaper on a real host with systemd: a long task ends in peace, with no play that waits for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine

from tests.support.bench import task_id
from tests.support.ledger_tasks import FINISHED, STARTED
from tests.support.pool import UNITS, Pool, View, prepared_pool
from tests.support.servers import wait_for

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]
QUEUE = "letters"
# Longer than a deploy takes on a busy machine.
TASK_SECONDS = 60
WAIT_SECONDS = 60.0
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """One worker host with one process of release 1.0, and a broker."""
    health = {"bake": 1, "canary_timeout": 20}
    with prepared_pool(1, tmp_path_factory.mktemp("pool"), pool_health=health, pool_processes=1) as prepared:
        assert prepared.play("deploy").status == 0
        yield prepared


@pytest.fixture
def engine(pool: Pool) -> Iterator[Engine]:
    """The pool's engine, asked from here."""
    with open_engine("rq", pool.broker_url, 5.0) as opened:
        yield opened


class Task:
    """A task that some worker has begun."""

    def __init__(self, pool: Pool, seconds: float) -> None:
        self.number = next(_numbers)
        self._notes = redis.Redis.from_url(pool.ledger_url, decode_responses=True)
        pool.bench.enqueue(QUEUE, self.number, seconds, task="letters.send")
        wait_for("the task is begun", lambda: self.times(STARTED) == 1, WAIT_SECONDS)

    def times(self, key: str) -> int:
        """How often it has been started, or finished."""
        return int(self._notes.hget(key, str(self.number)) or 0)


def view(pool: Pool) -> View:
    """The one worker host now."""
    return pool.view(pool.workers[0])


def reaped(pool: Pool) -> list[dict[str, Any]]:
    """What the journal has of releases that were let go by the reaper, or after a boot, not at once."""
    return [event for event in view(pool).journal if event["event"] == "reaped" and event["by"] != "controller"]


def units(pool: Pool, release: str) -> list[str]:
    """The units of a release that the host has installed."""
    start = f"{UNITS}/backstep-{pool.name}-{release}-"
    return [path for path in view(pool).files if path.startswith(start)]


def listed(pool: Pool, pattern: str) -> str:
    """What systemd lists."""
    return pool.workers[0].run("systemctl", "list-units", "--all", "--no-legend", "--plain", pattern).stdout


def test_a_long_task_ends_in_peace_and_its_release_is_let_go(pool: Pool) -> None:
    host = pool.workers[0]
    (first,) = view(pool).releases
    task = Task(pool, TASK_SECONDS)
    assert pool.play("deploy", pool_version="2.0", pool_drain={"timeout": 1}).status == 0
    assert task.times(FINISHED) == 0, "nobody has waited for it"
    (second,) = set(view(pool).releases) - {first}
    assert units(pool, first)
    assert f"{host.name}: {first} drains since" in pool.play("status").output
    service = listed(pool, f"backstep-{pool.name}-reap-*.service").split()[0]
    host.run("systemctl", "kill", "--kill-who=all", "--signal=KILL", service)
    wait_for("it is let go", lambda: reaped(pool), TASK_SECONDS + WAIT_SECONDS)
    (event,) = reaped(pool)
    assert (event["release"], event["outcome"], event["by"]) == (first, "clean", "reaper")
    assert (task.times(STARTED), task.times(FINISHED)) == (1, 1)
    assert view(pool).releases == {second: 1}
    assert units(pool, first) == []
    wait_for("the reaper has ended", lambda: not listed(pool, f"backstep-{pool.name}-reap-*"), WAIT_SECONDS)
    assert "drains since" not in pool.play("status").output


@pytest.mark.thorough
def test_what_is_gone_back_to_while_it_drains_is_started_again(pool: Pool) -> None:
    (first,) = view(pool).releases
    task = Task(pool, TASK_SECONDS)
    assert pool.play("deploy", pool_version="3.0").status == 0
    assert task.times(FINISHED) == 0
    pool.program(pool.workers[0], "rollback")
    wait_for("the task is finished", lambda: task.times(FINISHED) == 1, TASK_SECONDS + WAIT_SECONDS)
    wait_for("it takes tasks again", lambda: view(pool).releases == {first: 1}, WAIT_SECONDS)
    assert Task(pool, 0).times(STARTED) == 1
    assert units(pool, first)
    assert first not in {event["release"] for event in reaped(pool)}


@pytest.mark.thorough
def test_after_a_reboot_nothing_is_left_of_what_drained(pool: Pool, engine: Engine) -> None:
    host = pool.workers[0]
    (first,) = view(pool).releases
    task = Task(pool, 600)
    assert pool.play("deploy", pool_version="4.0").status == 0
    (second,) = set(view(pool).releases) - {first}
    host.kill()
    host.power_on()
    wait_for("it is cleared up", lambda: first in {event["release"] for event in reaped(pool)}, WAIT_SECONDS)
    assert units(pool, first) == []
    wait_for("the new release runs", lambda: view(pool).releases == {second: 1}, WAIT_SECONDS)
    # The workers are proven gone, so the next run takes back what they held.
    status = pool.play("deploy", pool_version="5.0")
    assert status.status == 0
    assert task_id(task.number) in status.announced | set(engine.task_ids(QUEUE, "dead", 100).ids)
