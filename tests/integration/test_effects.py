# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollback does to the queues is undone when its run has died before any host went back; gates close first."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.effects import noted
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import PARKED, SCHEDULED, Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.gating import gates
from ansible_collections.backstep.workers.plugins.module_utils._queue.routing import routes
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine, worker_defaults

from tests.demo.evidence import versions
from tests.demo.playbooks import Played, command, deploy_alone, play
from tests.demo.stand import HOSTS, QUEUE, Stand, a_stand
from tests.support.bench import TASK
from tests.support.builds import LEDGER_TASKS

NEW = "letters_new.write"
# The task that follows when the parking is done.
AFTER_PARKING = "Park those whose arguments have changed since"
ALONE = {"pool_hosts": HOSTS[0]}


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with a_stand("rq") as started:
        build = started.folder / "builds" / "letters"
        build.mkdir(parents=True)
        shutil.copy(LEDGER_TASKS, build)
        yield started


@pytest.fixture(scope="module")
def engine(stand: Stand) -> Iterator[Engine]:
    with open_engine("rq", stand.broker_url, 10.0) as opened:
        yield opened


def deploy(stand: Stand, folder: Path, version: str, tasks: list[str], **more: Any) -> Played:
    variables = {
        "pool_command": [stand.python, "-m", "rq.cli", *worker_defaults("rq").command[1:]],
        "pool_health": {"bake": 1, "canary_timeout": 30},
        "pool_manifest": {"tasks": tasks},
        "pool_routes": True,
    }
    return deploy_alone(stand, folder, version, **{**variables, **more})


def set_gate(stand: Stand, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return by_hand(stand, folder, "task_gate", **options)


def by_hand(stand: Stand, folder: Path, module: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """As a person would, with a playbook of their own."""
    where = {"engine": "rq", "broker_url": stand.broker_url, "queues": [QUEUE], "owner": "ana"}
    task = {f"backstep.workers.{module}": {**where, **options}}
    book = folder / "by_hand.json"
    book.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": [task]}]), "utf-8")
    return subprocess.run(
        ["ansible-playbook", str(book)], env=stand.environment(), cwd=folder, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def kill_when(stand: Stand, logs: Path, title: str, playbook: str, **variables: Any) -> None:
    """Run a playbook and SIGKILL it, with all of its processes, when it comes to a task."""
    words = command(stand, playbook, **variables)
    with (logs / "killed.log").open("w") as log, subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, env=stand.environment(),
        cwd=stand.folder, start_new_session=True,
    ) as running:  # fmt: skip
        assert running.stdout
        for line in running.stdout:
            log.write(line)
            if title in line:
                os.killpg(running.pid, signal.SIGKILL)
                break
        assert running.wait(30) == -signal.SIGKILL


def test_a_rollback_that_dies_after_its_parking_is_undone_by_the_next_run(
    stand: Stand, engine: Engine, tmp_path: Path
) -> None:
    assert deploy(stand, tmp_path, "1", [TASK]).status == 0
    assert deploy(stand, tmp_path, "2", [TASK, NEW]).status == 0
    ids = {stand.bench.enqueue(QUEUE, number, 0, task=NEW, delay=3600) for number in range(5)}
    done = set_gate(stand, tmp_path, task=NEW, open=40)
    assert done.returncode == 0, done.stdout
    kill_when(stand, tmp_path, AFTER_PARKING, "rollback", **ALONE)
    assert set(engine.task_ids(QUEUE, PARKED, 10).ids) == ids
    assert (gates(engine)[NEW].open, len(noted(engine))) == (0.0, 2)
    assert set(versions(stand)) == {"2"}
    status = play(stand, tmp_path, "status", "status", **ALONE)
    assert f"was not ended: tasks parked ({NEW})" in status.output
    again = deploy(stand, tmp_path, "2", [TASK, NEW])
    assert again.status == 0
    assert set(engine.task_ids(QUEUE, SCHEDULED, 10).ids) == ids
    assert (gates(engine)[NEW].open, gates(engine)[NEW].by, noted(engine)) == (40.0, "ana", [])


def test_a_rollback_closes_gates_and_ends_routes_first_and_keeps_what_it_has_done(
    stand: Stand, engine: Engine, tmp_path: Path
) -> None:
    """Goes on where the test before has ended."""
    routed = by_hand(stand, tmp_path, "queue_route", version="2", share=30)
    assert routed.returncode == 0, routed.stdout
    ids = [stand.bench.enqueue(f"{QUEUE}.for-2", number, 0, delay=3600) for number in range(10, 13)]
    back = play(stand, tmp_path, "rollback", "rollback", **ALONE)
    assert back.status == 0
    assert f"gates were closed first: {NEW}" in back.output
    assert back.output.index("Close the gates that a rollback closes") < back.output.index("Park those")
    assert f"routes were taken away first: {QUEUE} to {QUEUE}.for-2" in back.output
    assert "3 task(s) were moved back" in back.output
    assert set(engine.task_ids(QUEUE, SCHEDULED, 10).ids) == set(ids)
    assert (gates(engine)[NEW].open, routes(engine), noted(engine)) == (0.0, {}, [])
    assert len(engine.task_ids(QUEUE, PARKED, 10).ids) == 5
    assert set(versions(stand)) == {"1"}


@pytest.mark.thorough
def test_a_retired_name_is_refused_to_gates_and_to_releases(stand: Stand, engine: Engine, tmp_path: Path) -> None:
    """Goes on where the test before has ended."""
    assert set_gate(stand, tmp_path, task=NEW, operation="retire", reason="gone").returncode == 0
    refused = set_gate(stand, tmp_path, task=NEW, open=100)
    assert refused.returncode != 0
    assert "was retired by ana" in refused.stdout
    deployed = deploy(stand, tmp_path, "3", [TASK, NEW])
    assert deployed.status != 0
    assert f"has tasks whose names were retired: {NEW}." in deployed.output
    assert set(versions(stand)) == {"1"}
    status = play(stand, tmp_path, "status", "status", **ALONE)
    assert f"gate: {NEW} is retired, set by ana" in status.output
    assert gates(engine)[NEW].retired
