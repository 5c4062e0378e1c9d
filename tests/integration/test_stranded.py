# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks that only one of two releases knows: said before a deploy, parked on the way back, and run in the end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import PARKED, WAITING
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine, worker_defaults

from tests.demo.evidence import versions
from tests.demo.playbooks import Played, deploy_alone, play
from tests.demo.stand import HOSTS, QUEUE, Stand, a_stand
from tests.support.bench import task_id
from tests.support.builds import LEDGER_TASKS
from tests.support.ledger import balance
from tests.support.servers import wait_for

FILES = Path(__file__).resolve().parent / "files"
OPTIONS = {"celery": ["--concurrency=1"], "dramatiq": ["--threads=1"], "rq": []}
MODULES = {"celery": "celery", "dramatiq": "dramatiq", "rq": "rq.cli"}
# Of the app's second version only.
NEW = "ledger_tasks_later.work"
SECONDS = 60.0
HELD, ALL = 6, 16


@pytest.fixture(params=["celery", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("rq", "dramatiq"))])
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    """A broker, hosts, and two versions of an app, of which the second has one task more."""
    with a_stand(request.param) as started:
        for name in ("old", "new"):
            build = started.folder / "builds" / name
            build.mkdir(parents=True)
            app = FILES / f"{started.engine}_letters.py"
            if app.exists():
                shutil.copy(app, build)
            shutil.copy(LEDGER_TASKS, build)
        shutil.copy(LEDGER_TASKS, started.folder / "builds" / "new" / "ledger_tasks_later.py")
        yield started


def deploy(stand: Stand, folder: Path, version: str, build: str, **more: Any) -> Played:
    """Deploy one of the builds to one host, by the engine's own command but for where that is."""
    engine = stand.engine
    _program, *words = worker_defaults(engine).command
    variables: dict[str, Any] = {
        "pool_command": [stand.python, "-m", MODULES[engine], words[0], *OPTIONS[engine], *words[1:]],
        "pool_env": {"APP": f"{engine}_letters", "LEDGER_URL": stand.ledger_url, "PYTHONPATH": str(stand.libraries)},
        "pool_health": {"bake": 1, "canary_timeout": 30},
        "pool_drain": {"timeout": SECONDS, "on_timeout": "abort"},
    }
    return deploy_alone(stand, folder, version, build, **{**variables, **more})


def test_what_the_old_release_does_not_know_is_parked_and_runs_in_the_end(stand: Stand, tmp_path: Path) -> None:
    producer = stand.bench
    assert [deploy(stand, tmp_path, *each).status for each in (("1", "old"), ("2", "new"))] == [0, 0]
    with open_engine(stand.engine, stand.broker_url, 10.0) as engine:
        # As many as busy workers take ahead at most, so that the others wait in their queue, too.
        for number in range(HELD):
            producer.enqueue(QUEUE, number, 20 if number < 4 else 0)
        wait_for("both workers are busy", lambda: len(engine.executing([QUEUE])) == 2, SECONDS)
        for number in range(HELD, ALL):
            producer.enqueue(QUEUE, number, 0, task=NEW)
        refused = deploy(stand, tmp_path, "3", "old")
        assert refused.status != 0
        assert f"doesn't know tasks that wait to be executed: {NEW} (" in refused.output
        assert set(versions(stand)) == {"2"}
        back = play(stand, tmp_path, "rollback", "rollback", pool_hosts=HOSTS[0], pool_reason="a test")
        assert back.status == 0
        assert "were parked, as 1-" in back.output
        wait_for("the old release is alone", lambda: set(versions(stand)) == {"1"}, SECONDS)
        wait_for("nothing waits", lambda: not engine.task_ids(QUEUE, WAITING, 10).ids, SECONDS)
        parked = engine.task_ids(QUEUE, PARKED, ALL).ids
        assert set(parked) == {task_id(number) for number in range(HELD, ALL)}
        assert len(parked) == ALL - HELD
        early = play(stand, tmp_path, "early", "replay", pool_hosts=HOSTS[0])
        assert early.status != 0
        assert f"doesn't know {NEW}. No task was moved." in early.output
        assert set(engine.task_ids(QUEUE, PARKED, ALL).ids) == set(parked)
        fourth = deploy(stand, tmp_path, "4", "new")
        assert fourth.status == 0
        assert f"{ALL - HELD} task(s) are parked; next: " in fourth.output
        replayed = play(stand, tmp_path, "replay", "replay", pool_hosts=HOSTS[0])
        assert replayed.status == 0
        wait_for("everything is done", lambda: producer.finished() == ALL, SECONDS)
        found = balance(engine, stand.ledger_url, [QUEUE])
    assert (found.balanced, found.counts()["finished"], found.counts()["duplicated"]) == (True, ALL, 0)


def test_a_failed_deploy_parks_too_and_no_queue_is_left_without_a_listener(tmp_path: Path) -> None:
    with a_stand("rq") as stand:
        for name in ("old", "new"):
            build = stand.folder / "builds" / name
            build.mkdir(parents=True)
            shutil.copy(LEDGER_TASKS, build)
        shutil.copy(LEDGER_TASKS, stand.folder / "builds" / "new" / "ledger_tasks_later.py")
        both: dict[str, Any] = {"pool_queues": [QUEUE, "later"], "pool_processes": 1}
        assert deploy(stand, tmp_path, "1", "old", **both).status == 0
        producer = stand.bench
        for number in range(2):
            producer.enqueue("later", number, 40)
        scheduled = [producer.enqueue(QUEUE, number, 0, task=NEW, delay=3600) for number in (2, 3)]
        with open_engine("rq", stand.broker_url, 10.0) as engine:
            wait_for("one is executed", lambda: len(engine.executing(["later"])) == 1, SECONDS)
            refused = deploy(stand, tmp_path, "2", "new", pool_processes=1)
            assert refused.status != 0
            assert "Nobody would listen any more to queues that hold tasks: later (1 waiting)." in refused.output
            failed = deploy(stand, tmp_path, "3", "new", **both, pool_health={"bake": 1, "canary_task": "no.such"})
            assert failed.status != 0
            assert "2 task(s) were parked, as 1-" in failed.output
            assert set(engine.task_ids(QUEUE, PARKED, 10).ids) == set(scheduled)
            wait_for("the old release is alone", lambda: set(versions(stand)) == {"1"}, SECONDS)
            assert balance(engine, stand.ledger_url, [QUEUE, "later"]).balanced
