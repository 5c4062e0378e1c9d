# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks with plain consumers of RabbitMQ on a real host: the task of a worker that had to be killed is told."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine, worker_defaults

from tests.demo.evidence import versions
from tests.demo.playbooks import Played, deploy_alone
from tests.demo.stand import QUEUE, Stand, a_stand
from tests.support.bench import SUPPORT, task_id
from tests.support.builds import LEDGER_TASKS
from tests.support.ledger import balance
from tests.support.rabbitmq_bench import Workers
from tests.support.servers import rabbitmq_server, wait_for

SECONDS = 60.0
TASKS = 20


@pytest.fixture(scope="module")
def broker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A node of this test's own."""
    with rabbitmq_server(tmp_path_factory.mktemp("rabbitmq")) as url:
        yield url


@pytest.fixture
def stand() -> Iterator[Stand]:
    """Hosts, a place for the ledger, and two builds of the app, of which the bad one's workers never come up."""
    with a_stand("rabbitmq") as started:
        for name in ("good", "bad"):
            build = started.folder / "builds" / name
            build.mkdir(parents=True)
            shutil.copy(SUPPORT / "rabbitmq_worker.py", build / "worker.py")
            shutil.copy(LEDGER_TASKS, build)
        (started.folder / "builds" / "bad" / "worker.py").write_text("raise SystemExit(3)\n", encoding="ascii")
        yield started


def deploy(stand: Stand, broker_url: str, folder: Path, version: str, build: str) -> Played:
    """Deploy a version to one host with two workers, by the engine's own command but for where Python is."""
    _python, *words = worker_defaults("rabbitmq").command
    variables: dict[str, Any] = {
        "pool_broker_url": broker_url,
        "pool_command": [stand.python, *words],
        "pool_env": {"LEDGER_URL": stand.ledger_url, "PYTHONPATH": str(stand.libraries)},
        "pool_health": {"bake": 1, "canary_timeout": 30},
        "pool_mode": "replace",
        "pool_drain": {"timeout": 2, "on_timeout": "requeue"},
    }
    return deploy_alone(stand, folder, version, build, **variables)


def test_a_bad_release_goes_back_and_what_drains_had_to_kill_runs_again(
    stand: Stand, broker_url: str, tmp_path: Path
) -> None:
    producer = Workers(broker_url, ledger_url=stand.ledger_url)
    with open_engine("rabbitmq", broker_url, 10.0) as engine:
        first = deploy(stand, broker_url, tmp_path, "1", "good")
        assert first.status == 0, first.output
        for number in range(TASKS):
            producer.enqueue(QUEUE, number, 600 if number == 0 else 0.3)
        wait_for("it executes", lambda: producer.executions(0) == (1, 0))
        second = deploy(stand, broker_url, tmp_path, "2", "bad")
        assert second.status != 0
        wait_for("only the good release runs", lambda: versions(stand) == ["1", "1"], SECONDS)
        wait_for("the others are done", lambda: producer.finished() == TASKS - 1, SECONDS)
        wait_for("it executes again", lambda: [task.id for task in engine.executing([QUEUE])] == [task_id(0)])
        found = balance(engine, stand.ledger_url, [QUEUE], announced=[task_id(0)])
    assert f"were cut off; may run twice: {task_id(0)}\n" in second.output, second.output
    assert (found.balanced, found.listed, found.duplicated) == (True, {task_id(0)}, {task_id(0)})
