# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""RQ's own scheduler, handed over from release to release on a real Redis: each task that is due is there, once."""

from __future__ import annotations

import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import redis

from tests.integration.local_pool import PYTHON, LocalPool
from tests.support.environment import WHEELHOUSE
from tests.support.local_hosts import MARK, LocalHost, local_hosts
from tests.support.schedulers import watched
from tests.support.servers import wait_for

SCHEDULE = Path(__file__).resolve().parent / "files" / "schedule.py"
# As in the schedule.
PERIOD = 10
SECONDS = 30.0
WORDS = ("rq.cli", "cron")


@pytest.fixture
def at() -> Iterator[LocalHost]:
    """One host."""
    with local_hosts(1) as hosts:
        yield hosts[0]


@pytest.fixture
def pool(at: LocalHost, redis_url: str) -> LocalPool:
    """A pool whose releases bring a schedule."""
    libraries = at.folder / "libraries"
    for wheel in WHEELHOUSE.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(libraries)
    pool = LocalPool(at, "beat", environment={"PYTHONPATH": str(libraries)}, broker=redis_url, masked_broker=redis_url)
    shutil.copy(SCHEDULE, pool.code)
    command = [PYTHON, "-m", "rq.cli", "cron", "{app}/schedule.py"]
    pool.scheduler = {"command": command, "host": at.name, "period": PERIOD}
    return pool


def enqueued(client: redis.Redis) -> list[tuple[float, str]]:
    """When each task was enqueued, and by which release, the first one first."""
    found = []
    for task in client.lrange("rq:queue:ticks", 0, -1):
        when, what = client.hmget(f"rq:job:{task.decode()}", "enqueued_at", "description")
        found.append((datetime.fromisoformat(when.decode().replace("Z", "+00:00")).timestamp(), what.decode()))
    return sorted(found)


def wait_enqueued_by(client: redis.Redis, release: str) -> None:
    """Wait until one more task was enqueued, by this release."""
    before = len(enqueued(client))
    wait_for(f"{release} enqueues", lambda: any(release in what for _when, what in enqueued(client)[before:]), SECONDS)


def test_each_task_that_is_due_is_there_once_whatever_release_is_at_work(
    at: LocalHost, pool: LocalPool, client: redis.Redis
) -> None:
    first = pool.deploy("1.0")
    wait_enqueued_by(client, first)
    with watched(f"{MARK}={at.folder}", *WORDS) as seen:
        second = pool.deploy("2.0")
        wait_enqueued_by(client, second)
        pool.lease()
        third = pool.stage("3.0")
        pool.switch(third, confirm_seconds=5.0)
        wait_for("its scheduler is there", lambda: third in seen.releases)
        wait_for("the guard goes back", lambda: "rolled_back" in pool.events(), SECONDS)
        wait_enqueued_by(client, second)
        pool.lease(kind="rollback")
        pool.back(wish=first)
        pool.confirm(first)
        pool.end()
        wait_enqueued_by(client, first)
    assert (seen.most, seen.releases) == (1, [first, second, third, second, first])
    assert seen.gap < PERIOD
    assert not any(event.get("killed") for event in pool.open().journal.read()[0]), "it ends at once when it is told to"
    beats = Counter(round(when) // PERIOD for when, _what in enqueued(client))
    assert set(beats.values()) == {1}, enqueued(client)
    assert sorted(beats) == list(range(min(beats), max(beats) + 1)), enqueued(client)
