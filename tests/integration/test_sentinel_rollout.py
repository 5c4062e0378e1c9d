# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks with a broker under Sentinel: the master is killed while the old release's workers drain."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine, worker_defaults
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BrokerUnreachable

from tests.demo.evidence import versions
from tests.demo.playbooks import Played, deploy_alone
from tests.demo.stand import HOSTS, QUEUE, Stand, a_stand
from tests.support.bench import SUPPORT, bench_of
from tests.support.builds import LEDGER_TASKS
from tests.support.ledger import balance
from tests.support.sentinels import NAME, Watch, sentinels
from tests.support.servers import wait_for

FILES = Path(__file__).resolve().parent / "files"
HUSH = "hush-redis"  # of this test's own servers
# Two, one for each worker, that take longer than a fail-over does here.
TASK_SECONDS = 15
TASKS = 10
SECONDS = 80.0


@pytest.fixture(params=["celery", "rq"])
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    """Hosts, a build of the app, and a Redis for the ledger that nobody kills."""
    with a_stand(request.param) as started:
        build = started.folder / "builds" / "letters"
        build.mkdir(parents=True)
        for path in (FILES / "celery_letters.py", SUPPORT / "rq_settings.py", LEDGER_TASKS):
            shutil.copy(path, build)
        yield started


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """The pool's broker."""
    with sentinels(tmp_path, HUSH) as started:
        yield started


def of_workers(stand: Stand, watch: Watch) -> dict[str, Any]:
    """What names the broker to the workers: pool_env, in the words of their library, in place of the pool's URL."""
    shared = {"LEDGER_URL": stand.ledger_url, "PYTHONPATH": str(stand.libraries)}
    if stand.engine == "celery":
        words = worker_defaults("celery").command
        own = {"APP": "celery_letters", "CELERY_BROKER_URL": watch.celery_url, "MASTER_NAME": NAME}
        command = [stand.python, "-m", "celery", words[1], "--concurrency=1", *words[2:]]
        return {"pool_command": command, "pool_env": {**shared, **own}}
    found = {"INSTANCES": [["127.0.0.1", port] for port in watch.sentinels], "MASTER_NAME": NAME, "PASSWORD": HUSH}
    own = {"RQ_REDIS_URL": "", "RQ_CONFIG": "rq_settings", "SENTINEL": json.dumps(found)}
    return {
        "pool_command": [stand.python, "-m", "rq.cli", "worker", "--name", "{worker}", "{queues}"],
        "pool_env": {**shared, **own},
    }


def deploy(stand: Stand, watch: Watch, folder: Path, version: str) -> Played:
    """Deploy a version to one host with two workers, the new ones after the old ones have ended."""
    variables: dict[str, Any] = {
        "pool_broker_url": watch.url,
        "pool_mode": "replace",
        "pool_health": {"bake": 1, "canary_timeout": 60},
        "pool_drain": {"timeout": 60, "on_timeout": "abort"},
        "pool_confirm_timeout": 200,
        **of_workers(stand, watch),
    }
    return deploy_alone(stand, folder, version, **variables)


def drains(stand: Stand) -> int:
    """How many drains the host has begun."""
    journal = stand.root(HOSTS[0]) / "state" / "journal.jsonl"
    return journal.read_text("utf-8").count('"drain_started"')


@pytest.mark.thorough
def test_a_deploy_whose_drain_loses_its_master_ends_well(stand: Stand, watch: Watch, tmp_path: Path) -> None:
    first = deploy(stand, watch, tmp_path, "1")
    assert first.status == 0, first.output
    producer = bench_of(stand.engine)(f"redis://:{HUSH}@127.0.0.1:{watch.master}/0")
    producer.ledger_url = stand.ledger_url
    for number in range(TASKS):
        producer.enqueue(QUEUE, number, TASK_SECONDS if number < 2 else 0.2)
    wait_for("both execute", lambda: [producer.executions(number) for number in (0, 1)] == [(1, 0), (1, 0)])
    before = drains(stand)
    ended: list[Played] = []
    rollout = threading.Thread(target=lambda: ended.append(deploy(stand, watch, tmp_path, "2")))
    rollout.start()
    try:
        wait_for("the drain is under way", lambda: drains(stand) > before, SECONDS)
        watch.replicated()
        old = watch.master
        watch.kill(old)
        assert [producer.executions(number) for number in (0, 1)] == [(1, 0), (1, 0)]
        watch.failed_over(old)
    finally:
        rollout.join()
    assert ended[0].status == 0, ended[0].output
    assert HUSH not in first.output + ended[0].output
    assert set(versions(stand)) == {"2"}
    wait_for("everything is done", lambda: producer.finished() == TASKS, SECONDS)
    with open_engine(stand.engine, watch.url, 10.0) as engine:

        def balanced() -> bool:
            try:
                found = balance(engine, stand.ledger_url, [QUEUE])
            except (BrokerUnreachable, redis.RedisError):
                return False
            return (found.balanced, found.counts()["finished"], found.counts()["duplicated"]) == (True, TASKS, 0)

        wait_for("the ledger balances", balanced, SECONDS)
