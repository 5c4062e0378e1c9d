# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks with an app of each engine on a real host: a good release, a bad one, the way back, and the ledger."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine, worker_defaults

from tests.demo.evidence import versions
from tests.demo.playbooks import Played, deploy_alone
from tests.demo.stand import QUEUE, Stand, a_stand
from tests.support.builds import LEDGER_TASKS
from tests.support.ledger import balance
from tests.support.servers import wait_for

APPS = Path(__file__).resolve().parent / "files"
# By library, what has a worker execute one task at a time; the second word of its command.
OPTIONS = {"celery": "--concurrency=1", "dramatiq": "--threads=1"}
ENGINES = (
    "celery",
    *(pytest.param(name, marks=pytest.mark.thorough) for name in ("celery_rabbitmq", "dramatiq", "dramatiq_rabbitmq")),
)
SECONDS = 60.0
TASKS = 40


def library_of(engine: str) -> str:
    """The Python package of an engine, whatever broker it is on."""
    return engine.partition("_")[0]


@pytest.fixture(params=ENGINES)
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    """A broker, hosts, and a build of the app."""
    with a_stand(request.param) as started:
        build = started.folder / "builds" / "letters"
        build.mkdir(parents=True)
        for path in (APPS / f"{library_of(request.param)}_letters.py", LEDGER_TASKS):
            shutil.copy(path, build)
        yield started


def deploy(stand: Stand, folder: Path, version: str, on_timeout: str = "abort", **environment: str) -> Played:
    """Deploy a version to one host with two workers, by the engine's own command but for where that is."""
    library = library_of(stand.engine)
    _program, first, *words = worker_defaults(stand.engine).command
    variables: dict[str, Any] = {
        "pool_command": [stand.python, "-m", library, first, OPTIONS[library], *words],
        "pool_env": {
            "APP": f"{library}_letters",
            "LEDGER_URL": stand.ledger_url,
            "PYTHONPATH": str(stand.libraries),
            **environment,
        },
        "pool_health": {"bake": 1, "canary_timeout": 30, "canary_task": f"{library}_letters.check"},
        "pool_drain": {"timeout": SECONDS, "on_timeout": on_timeout},
    }
    return deploy_alone(stand, folder, version, **variables)


def test_a_bad_release_goes_back_and_no_task_is_lost(stand: Stand, tmp_path: Path) -> None:
    producer = stand.bench
    with open_engine(stand.engine, stand.broker_url, 10.0) as engine:
        assert deploy(stand, tmp_path, "1").status == 0
        good = release_of_two_workers(engine)
        for number in range(TASKS):
            producer.enqueue(QUEUE, number, 0.5)
        second = deploy(stand, tmp_path, "2", MODE="bad")
        assert second.status != 0
        assert "the canary task failed" in second.output
        wait_for("only the good release runs", lambda: versions(stand) == ["1", "1"], SECONDS)
        assert release_of_two_workers(engine) == good
        wait_for("everything is done", lambda: producer.finished() == TASKS, SECONDS)
        found = balance(engine, stand.ledger_url, [QUEUE])
    assert (found.balanced, found.counts()["finished"], found.counts()["duplicated"]) == (True, TASKS, 0)


@pytest.mark.thorough
@pytest.mark.parametrize("stand", ["celery"], indirect=True)
def test_a_drain_that_would_lose_tasks_is_refused_or_foretold(stand: Stand, tmp_path: Path) -> None:
    assert deploy(stand, tmp_path, "1", on_timeout="requeue").status == 0
    refused = deploy(stand, tmp_path, "2", on_timeout="requeue")
    assert refused.status != 0
    assert "is lost and can't be put back: celery_letters.check, ledger_tasks.work." in refused.output
    assert versions(stand) == ["1", "1"]
    foretold = deploy(stand, tmp_path, "2", on_timeout="kill")
    assert (foretold.status, versions(stand)) == (0, ["2", "2"])
    assert "is killed, and of these tasks lost: celery_letters.check, ledger_tasks.work\n" in foretold.output


def release_of_two_workers(engine: Engine) -> str:
    """The release that both workers have in their names."""
    workers = [worker for worker in engine.workers() if worker.queues == (QUEUE,)]
    (release,) = {worker.parsed.release for worker in workers if worker.parsed}
    assert len(workers) == 2
    return release
