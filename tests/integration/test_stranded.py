# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks that only one of two releases can run: said before a deploy, parked on the way back, and run in the end."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import PARKED, SCHEDULED, WAITING
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import ENGINES, open_engine, worker_defaults

from tests.demo.evidence import versions
from tests.demo.playbooks import Played, deploy_alone, play
from tests.demo.stand import HOSTS, QUEUE, Stand, a_stand
from tests.support.bench import SUPPORT, TASK, task_id
from tests.support.builds import LEDGER_TASKS
from tests.support.ledger import balance
from tests.support.servers import wait_for

FILES = Path(__file__).resolve().parent / "files"
BUILDS = {"old": "more_old", "new": "more_new"}
WRITE, LATER = "letters_more.write", "letters_more.later"
SECONDS = 120.0
# More than busy workers take ahead at most, so that the others wait in their queue; then fifty of each kind.
HELD, FIFTY = 12, 50
ALL = HELD + 2 * FIFTY
# What a worker says of a task that it doesn't know, or whose arguments it can't take.
COMPLAINTS = re.compile(r"Traceback|(Key|Type|Name|Attribute|Import|Argument)Error|NotFound|unregistered|unknown task")
CELERY, DRAMATIQ = ("--concurrency=1",), ("--threads=1",)
# By engine what its worker's command is made of, where it isn't a program of the app's own.
MODULES = {
    "celery": ("celery", CELERY), "celery_rabbitmq": ("celery", CELERY), "dramatiq": ("dramatiq", DRAMATIQ),
    "dramatiq_rabbitmq": ("dramatiq", DRAMATIQ), "rq": ("rq.cli", ()),
}  # fmt: skip
# Celery's worker is the only one that by itself throws away what it doesn't know.
KINDS = [name if name == "celery" else pytest.param(name, marks=pytest.mark.thorough) for name in sorted(ENGINES)]


def make_build(stand: Stand, name: str) -> None:
    """An app of the engine in one of its two versions."""
    build = stand.folder / "builds" / name
    build.mkdir(parents=True)
    for path in (LEDGER_TASKS, SUPPORT / "ledger_tasks.cjs", SUPPORT / "sidekiq_app.rb"):
        shutil.copy(path, build)
    shutil.copytree(FILES / BUILDS[name], build, dirs_exist_ok=True)
    library = stand.engine.partition("_")[0]
    own = FILES / f"{library}_letters.py"
    if own.exists():
        shutil.copy(own, build)
    if stand.engine == "sidekiq":
        (build / "config").mkdir()
        (build / "config" / "sidekiq.yml").write_text(":require: ./letters_more.rb\n:concurrency: 1\n", "ascii")
    # The worker programs of the other tests, with more tasks.
    programs = {
        "bullmq": ("worker.cjs", "worker.js", "ledger.fail,", "ledger.fail, ...require('./letters_more.cjs'),"),
        "rabbitmq": ("worker.py", "worker.py", "ledger_tasks.fail,", "ledger_tasks.fail, **letters_more.TASKS,"),
        "streams": ("worker.py", "worker.py", "ledger_tasks.fail,", "ledger_tasks.fail, **letters_more.TASKS,"),
    }
    if stand.engine in programs:
        source, target, place, more = programs[stand.engine]
        text = (SUPPORT / f"{stand.engine}_{source}").read_text("utf-8")
        assert text.count(place) == 1
        text = text.replace(place, more).replace("import ledger_tasks ", "import ledger_tasks, letters_more ")
        (build / target).write_text(text, "utf-8")


@pytest.fixture(params=KINDS)
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    """A broker, hosts, and two versions of an app."""
    with a_stand(request.param) as started:
        for name in BUILDS:
            make_build(started, name)
        yield started


def deploy(stand: Stand, folder: Path, version: str, build: str, **more: Any) -> Played:
    """Deploy one of the builds to one host, by the engine's own command but for where that is."""
    defaults = worker_defaults(stand.engine)
    program, *words = defaults.command
    if stand.engine in MODULES:
        module, options = MODULES[stand.engine]
        command = [stand.python, "-m", module, words[0], *options, *words[1:]]
    elif stand.engine == "sidekiq":
        command = words[1:]
    else:
        command = [stand.python if program.endswith("python") else program, *words]
    known = [TASK, WRITE] + ([LATER] if build == "new" else [])
    manifest: dict[str, Any] = {} if defaults.manifest else {"tasks": [stand.bench.named(name) for name in known]}
    if build == "new":
        manifest["versions"] = {stand.bench.named(WRITE): [1, 2]}
    variables: dict[str, Any] = {
        "pool_command": command,
        "pool_env": {
            "APP": f"{stand.engine.partition('_')[0]}_letters",
            "LEDGER_URL": stand.ledger_url,
            "PYTHONPATH": str(stand.libraries),
            "NODE_PATH": str(stand.node_modules),
        },
        "pool_health": {"bake": 1, "canary_timeout": 30},
        "pool_drain": {"timeout": SECONDS, "on_timeout": "abort"},
        "pool_manifest": manifest,
    }
    return deploy_alone(stand, folder, version, build, **{**variables, **more})


def complaints(stand: Stand) -> list[str]:
    """What the workers' logs have about tasks that they can't run."""
    logs = [path for host in HOSTS for path in (stand.folder / host).rglob("*.log")]
    assert logs
    lines = [line for path in logs for line in path.read_text("utf-8", "replace").splitlines()]
    return [line for line in lines if COMPLAINTS.search(line)]


def test_fifty_tasks_of_a_new_name_and_fifty_with_new_arguments(stand: Stand, tmp_path: Path) -> None:
    producer = stand.bench
    assert [deploy(stand, tmp_path, *each).status for each in (("1", "old"), ("2", "new"))] == [0, 0]
    with open_engine(stand.engine, stand.broker_url, 10.0) as engine:
        for number in range(HELD):
            producer.enqueue(QUEUE, number, 20 if number < 4 else 0)
        wait_for("both workers are busy", lambda: len(engine.executing([QUEUE])) == 2, SECONDS)
        for number in range(HELD, ALL):
            new_name = number < HELD + FIFTY
            arguments = (0,) if new_name else (0, 2)
            producer.enqueue(QUEUE, number, *arguments, task=LATER if new_name else WRITE)
        back = play(stand, tmp_path, "rollback", "rollback", pool_hosts=HOSTS[0], pool_reason="a test")
        assert back.status == 0
        assert "task(s) were parked, as 1-" in back.output
        assert f"{producer.named(WRITE)} with version 2 of its arguments (" in back.output
        wait_for("the old release is alone", lambda: set(versions(stand)) == {"1"}, SECONDS)
        wait_for("nothing waits", lambda: not engine.task_ids(QUEUE, WAITING, 10).ids, SECONDS)
        parked = engine.task_ids(QUEUE, PARKED, ALL).ids
        assert len(parked) == 2 * FIFTY
        assert set(parked) == {task_id(number) for number in range(HELD, ALL)}
        assert complaints(stand) == []
        early = play(stand, tmp_path, "early", "replay", pool_hosts=HOSTS[0])
        assert early.status != 0
        assert "No task was moved." in early.output
        forward = deploy(stand, tmp_path, "3", "new")
        assert forward.status == 0
        assert f"{2 * FIFTY} task(s) are parked; next: " in forward.output
        assert play(stand, tmp_path, "replay", "replay", pool_hosts=HOSTS[0]).status == 0
        wait_for("everything is done", lambda: producer.finished() == ALL, SECONDS)
        found = balance(engine, stand.ledger_url, [QUEUE])
    assert (found.balanced, found.counts()["finished"], found.counts()["duplicated"]) == (True, ALL, 0)
    assert complaints(stand) == []


@pytest.mark.thorough
def test_a_failed_deploy_parks_too_and_no_queue_is_left_without_a_listener(tmp_path: Path) -> None:
    with a_stand("rq") as stand:
        for name in BUILDS:
            make_build(stand, name)
        both: dict[str, Any] = {"pool_queues": [QUEUE, "later"], "pool_processes": 1}
        assert deploy(stand, tmp_path, "1", "old", **both).status == 0
        producer = stand.bench
        for number in range(2):
            producer.enqueue("later", number, 40)
        scheduled = [producer.enqueue(QUEUE, number, 0, task=LATER, delay=3600) for number in (2, 3)]
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


def test_a_rollback_leaves_a_queue_with_tasks_only_when_told_to(tmp_path: Path) -> None:
    with a_stand("rq") as stand:
        for name in BUILDS:
            make_build(stand, name)
        assert deploy(stand, tmp_path, "1", "old", pool_processes=1).status == 0
        assert deploy(stand, tmp_path, "2", "new", pool_queues=[QUEUE, "fast"], pool_processes=1).status == 0
        producer = stand.bench
        known = producer.enqueue("fast", 0, 0, delay=3600)
        unknown = producer.enqueue("fast", 1, 0, task=LATER, delay=3600)
        refused = play(stand, tmp_path, "refused", "rollback", pool_hosts=HOSTS[0])
        assert refused.status != 0
        assert "Nobody would listen any more to queues that hold tasks: fast (1 scheduled)." in refused.output
        assert sum(refused.changed.values()) == 0
        assert set(versions(stand)) == {"2"}
        back = play(stand, tmp_path, "back", "rollback", pool_hosts=HOSTS[0], pool_leave_queues="fast")
        assert back.status == 0
        assert f"doesn't know them: {producer.named(LATER)} (1 scheduled in fast, the oldest since " in back.output
        assert "nobody listens to fast any more (1 scheduled)" in back.output
        wait_for("the old release is alone", lambda: set(versions(stand)) == {"1"}, SECONDS)
        with open_engine("rq", stand.broker_url, 10.0) as engine:
            left, parked = (engine.task_ids("fast", state, 9).ids for state in (SCHEDULED, PARKED))
            assert (left, parked) == ((known,), (unknown,))
