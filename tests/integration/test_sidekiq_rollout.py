# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks with a Sidekiq app on a real host: a bad release, the way back, and drains that have to kill."""

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
from tests.support.ledger import balance
from tests.support.servers import wait_for

FILES = Path(__file__).resolve().parent / "files"
SECONDS = 60.0
TASKS = 20


@pytest.fixture
def stand() -> Iterator[Stand]:
    """A broker, hosts, and a build of the app."""
    with a_stand("sidekiq") as started:
        build = started.folder / "builds" / "letters"
        (build / "config").mkdir(parents=True)
        (build / "config" / "sidekiq.yml").write_text(":require: ./sidekiq_letters.rb\n:concurrency: 2\n")
        for path in (FILES / "sidekiq_letters.rb", SUPPORT / "sidekiq_app.rb"):
            shutil.copy(path, build)
        yield started


def deploy(stand: Stand, folder: Path, version: str, **environment: str) -> Played:
    """Deploy a version to one host with two workers, by the engine's own command but without Bundler."""
    _bundle, _exec, *words = worker_defaults("sidekiq").command
    variables: dict[str, Any] = {
        "pool_command": words,
        "pool_env": {"LEDGER_URL": stand.ledger_url, **environment},
        "pool_health": {"bake": 1, "canary_timeout": 30, "canary_task": "LettersCheck"},
        "pool_mode": "replace",
        "pool_drain": {"timeout": 2, "on_timeout": "requeue"},
    }
    return deploy_alone(stand, folder, version, **variables)


def test_a_bad_release_goes_back_and_what_drains_had_to_kill_runs_again(stand: Stand, tmp_path: Path) -> None:
    with open_engine("sidekiq", stand.broker_url, 10.0) as engine:
        first = deploy(stand, tmp_path, "1")
        assert first.status == 0, first.output
        for number in range(TASKS):
            stand.bench.enqueue(QUEUE, number, 600 if number == 0 else 0.3)
        wait_for("it executes", lambda: stand.bench.executions(0) == (1, 0))
        second = deploy(stand, tmp_path, "2", MODE="bad")
        assert second.status != 0
        assert "the canary task failed" in second.output
        wait_for("only the good release runs", lambda: versions(stand) == ["1", "1"], SECONDS)
        wait_for("the others are done", lambda: stand.bench.finished() == TASKS - 1, SECONDS)
        wait_for("it executes again", lambda: [task.id for task in engine.executing([QUEUE])] == [task_id(0)])
        found = balance(engine, stand.ledger_url, [QUEUE], announced=[task_id(0)])
    assert f"were cut off; may run twice: {task_id(0)}\n" in second.output
    assert (found.balanced, found.listed, found.duplicated) == (True, {task_id(0)}, {task_id(0)})
