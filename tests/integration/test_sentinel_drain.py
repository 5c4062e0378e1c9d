# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The master is killed while workers drain: nobody is told that nothing executes while something does, none is lost.

What the replica has is waited for before the kill, as Redis acknowledges a write before its replica has it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import WAITING, Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BrokerUnreachable

from tests.support.bench import Bench, task_id
from tests.support.ledger import balance
from tests.support.sentinels import Watch, on_sentinel, sentinels
from tests.support.servers import redis_server, wait_for, waiting

# In all of them the app, or settings of the library, tell the workers of the sentinels; those of streams are the app.
ENGINES = ("bullmq", "celery", "dramatiq", "rq", "sidekiq")
# One whose workers are listed by what connects, and one whose are listed by what they write.
SHORT = ("bullmq", "rq")
QUEUES = ["mail"]
# Longer than a fail-over takes here.
TASK_SECONDS = 12
SECONDS = 90.0


@pytest.fixture(scope="module")
def ledger_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the workers note what they do: nobody kills this one."""
    with redis_server(tmp_path_factory.mktemp("ledger")) as url:
        yield url


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """Servers of this test's own, as it kills them."""
    with sentinels(tmp_path, password="hush-redis") as started:  # of this test's own servers
        yield started


@pytest.fixture(
    params=[pytest.param(name, marks=[] if name in SHORT else pytest.mark.thorough) for name in ENGINES]
)
def bench(request: pytest.FixtureRequest, watch: Watch, tmp_path: Path, ledger_url: str) -> Iterator[Bench]:
    """Starts workers that find the master by themselves."""
    with redis.Redis.from_url(ledger_url) as notes:
        notes.flushall()
    found = on_sentinel(request.param, watch, tmp_path, ledger_url)
    yield found
    found.stop_all()


@pytest.fixture
def engine(bench: Bench, watch: Watch) -> Iterator[Engine]:
    """The engine, by a pool's URL."""
    with open_engine(bench.engine, watch.url, 5.0) as opened:
        yield opened


def executing(engine: Engine) -> list[str] | None:
    """The tasks that workers hold; None when that can't be told."""
    try:
        return [task.id for task in engine.executing(QUEUES)]
    except BrokerUnreachable:
        return None


def drained(engine: Engine, bench: Bench, worker: str) -> list[list[str] | None]:
    """Look at a worker that was told to stop until it has ended; what was seen while its task was under way."""
    seen: list[list[str] | None] = []

    def ended() -> bool:
        found = executing(engine)
        if bench.executions(1) == (1, 0):
            seen.append(found)
        return bench.has_ended(worker)

    wait_for("the worker has ended", ended, SECONDS)
    return seen


def test_a_drain_goes_on_over_a_fail_over_and_tells_the_truth(
    bench: Bench, engine: Engine, watch: Watch, tmp_path: Path, ledger_url: str
) -> None:
    worker = bench.start("mail/1.0-a/w1/1", QUEUES)
    bench.enqueue("mail", 1, TASK_SECONDS)
    wait_for("it executes", lambda: executing(engine) == [task_id(1)] and bench.executions(1) == (1, 0))
    for number in (2, 3, 4):
        bench.enqueue("mail", number, 0)
    bench.signal(worker, signal.SIGTERM)
    watch.replicated()
    old = watch.master
    watch.kill(old)
    seen = drained(engine, bench, worker)
    assert [] not in seen
    assert None in seen
    assert bench.wait(worker) == 0
    assert bench.executions(1) == (1, 1)
    watch.failed_over(old)
    successor = on_sentinel(bench.engine, watch, tmp_path, ledger_url)
    try:
        # As a rollout does with a worker that is gone.
        wait_for("recovery has an answer", lambda: recovered(engine, worker), SECONDS)
        successor.start("mail/1.0-a/w1/2", QUEUES)
        wait_for("all are done", lambda: successor.finished() == 4, SECONDS)
        found = balance(engine, ledger_url, QUEUES)
        assert (found.counts()["lost"], found.counts()["duplicated"]) == (0, 0)
    finally:
        successor.stop_all()


def recovered(engine: Engine, worker: str) -> bool:
    """Whether what a worker that is gone had taken could be put back."""
    try:
        engine.recover(QUEUES, [worker], WAITING, waiting(3))
    except BrokerUnreachable:
        return False
    return True
