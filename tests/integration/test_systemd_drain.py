# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Draining on a real host with systemd: each policy, naming worker and task; and what systemd does that it rests on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine

from tests.support.bench import task_id
from tests.support.environment import ansible_environment
from tests.support.hosts import Host
from tests.support.ledger_tasks import FINISHED, STARTED
from tests.support.pool import Pool, prepared_pool
from tests.support.servers import wait_for
from tools.common import VENV, run

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]
QUEUE = "letters"
DRAIN_SECONDS = 1
MODULE_SECONDS = 90
WAIT_SECONDS = 60.0
_numbers = itertools.count(1)

# Finishes its "task" before it ends: for a TERM to itself it waits for a file; a TERM to its child leaves a trace.
_WORKER = """
import os, signal, subprocess, sys, time
folder = sys.argv[1]
child = ["sh", "-c", f"trap 'echo >{folder}/child-termed' TERM; while :; do sleep 0.1; done"]
stop = []
signal.signal(signal.SIGTERM, lambda *_: (stop.append(1), open(f"{folder}/termed", "w").close()))
subprocess.Popen(child)
open(f"{folder}/ready", "w").close()
while not (stop and os.path.exists(f"{folder}/finish")):
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """One worker host with one process of release 1.0, and a broker."""
    health = {"bake": 1, "canary_timeout": 10}
    with prepared_pool(1, tmp_path_factory.mktemp("pool"), pool_health=health, pool_processes=1) as prepared:
        assert prepared.play("deploy").status == 0
        yield prepared


@pytest.fixture
def engine(pool: Pool) -> Iterator[Engine]:
    """The pool's engine, asked from here."""
    with open_engine("rq", pool.broker_url, 5.0) as opened:
        yield opened


class Drain:
    """The pool's one worker host under the module ``worker_drain``, and its tasks."""

    def __init__(self, pool: Pool, engine: Engine) -> None:
        self.pool = pool
        self.engine = engine
        self.host = pool.workers[0]
        self.number = next(_numbers)
        self._notes = redis.Redis.from_url(pool.ledger_url, decode_responses=True)

    def begin_task(self, seconds: float) -> str:
        """Have the worker execute a task of so many seconds; the worker's name."""
        self.pool.bench.enqueue(QUEUE, self.number, seconds, task="letters.send")
        wait_for("the task is begun", lambda: self.times(STARTED) == 1, WAIT_SECONDS)
        (task,) = self.engine.executing([QUEUE])
        assert task.worker is not None
        return task.worker

    def times(self, key: str) -> int:
        """How often the task has been started, or finished."""
        return int(self._notes.hget(key, str(self.number)) or 0)

    def module(self, **options: Any) -> dict[str, Any]:
        """What ``worker_drain`` returns."""
        common = {"pool": self.pool.name, "host": self.host.name, "engine": "rq", "queues": [QUEUE]}
        arguments = json.dumps({**common, "broker_url": self.pool.broker_url, **options})
        command = [VENV / "bin" / "ansible", "-i", self.pool.inventory, self.host.name, "--one-line"]
        command += ["-m", "backstep.workers.worker_drain", "-a", arguments]
        said = run(command, timeout=MODULE_SECONDS, check=False, env=ansible_environment()).stdout
        print(said)
        assert "hush-broker" not in said
        result: dict[str, Any] = json.loads(said[said.index("{") : said.rindex("}") + 1])
        return result

    def drained(self, policy: str) -> dict[str, Any]:
        """What it returns when the task takes longer than the drain may."""
        return self.module(drain={"timeout": DRAIN_SECONDS, "on_timeout": policy})

    def wait_finished(self) -> None:
        """Wait until the task is finished."""
        wait_for("the task is finished", lambda: self.times(FINISHED) == 1, WAIT_SECONDS)

    def wait_running(self) -> None:
        """Have the worker take tasks again, as one that has begun anew."""
        assert "error" not in self.module(state="running")
        wait_for("the worker runs", lambda: len(self.pool.view(self.host).processes) == 1, WAIT_SECONDS)


@pytest.fixture
def drain(pool: Pool, engine: Engine) -> Iterator[Drain]:
    """The worker at rest, and running again after the test."""
    under_test = Drain(pool, engine)
    yield under_test
    under_test.wait_running()


def test_abort_names_worker_and_task_and_kills_nothing(drain: Drain) -> None:
    worker = drain.begin_task(8)
    result = drain.drained("abort")
    assert result["error"]["code"] == "drain_timeout"
    assert worker in result["msg"]
    assert task_id(drain.number) in result["msg"]
    drain.wait_finished()
    wait_for("another process takes over", lambda: set(drain.pool.view(drain.host).workers) - {worker}, WAIT_SECONDS)
    assert drain.times(STARTED) == 1


def test_leave_lets_the_task_go_on(drain: Drain) -> None:
    worker = drain.begin_task(8)
    result = drain.drained("leave")
    assert result["outcome"] == "left"
    assert [running["worker"] for running in result["running"]] == [worker]
    assert [task["id"] for task in result["tasks"]] == [task_id(drain.number)]
    drain.wait_finished()
    wait_for("the worker has ended", lambda: drain.pool.view(drain.host).processes == [], WAIT_SECONDS)


def test_kill_names_what_it_has_cut_off(drain: Drain) -> None:
    worker = drain.begin_task(600)
    result = drain.drained("kill")
    assert (result["outcome"], [running["worker"] for running in result["running"]]) == ("killed", [worker])
    assert [task["id"] for task in result["tasks"]] == [task_id(drain.number)]
    assert drain.pool.view(drain.host).processes == []
    drain.engine.recover([QUEUE], [worker], "dead")
    assert task_id(drain.number) in drain.engine.task_ids(QUEUE, "dead", 100).ids


def test_requeue_puts_the_task_back_and_it_runs_again(drain: Drain) -> None:
    drain.begin_task(6)
    result = drain.drained("requeue")
    assert result["outcome"] == "killed"
    assert [task["id"] for task in result["recovered"]] == [task_id(drain.number)]
    assert task_id(drain.number) in drain.engine.task_ids(QUEUE, "waiting", 100).ids
    drain.wait_running()
    drain.wait_finished()
    assert drain.times(STARTED) == 2


def test_a_worker_without_a_task_ends_at_once(drain: Drain) -> None:
    patient = {"timeout": WAIT_SECONDS, "on_timeout": "abort"}
    result = drain.module(drain=patient)
    assert (result["outcome"], result["running"]) == ("clean", [])
    assert drain.pool.view(drain.host).processes == []
    assert drain.module(drain=patient)["changed"] is False


class Unit:
    """A service of our own on the host, with the properties that the pool's units have."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.folder = f"/run/backstep-facts-{next(_numbers)}"
        self.name = self.folder.rpartition("/")[2]
        host.run("mkdir", self.folder)
        properties = ["KillMode=mixed", "TimeoutStopSec=infinity", "Restart=always", "RestartSec=1"]
        options = [word for item in properties for word in ("-p", item)]
        host.run("systemd-run", "--unit", self.name, *options, "python3", "-c", _WORKER, self.folder)

    def shows(self, name: str) -> str:
        """One of its properties."""
        return self.host.run("systemctl", "show", "--property", name, "--value", f"{self.name}.service").stdout.strip()

    def there(self, name: str) -> bool:
        """Whether a file is in its folder."""
        return self.host.run("test", "-e", f"{self.folder}/{name}", check=False).returncode == 0

    def main(self) -> int:
        """Its main process, 0 when it has none."""
        return int(self.shows("MainPID"))


@pytest.fixture
def unit(pool: Pool) -> Iterator[Unit]:
    """The service, running."""
    started = Unit(pool.workers[0])
    wait_for("it is ready", lambda: started.there("ready"))
    yield started
    # A transient unit is forgotten once it has stopped: then there is nothing left to end.
    started.host.run("systemctl", "stop", "--no-block", started.name, check=False)
    started.host.run("systemctl", "kill", "--kill-who=all", "--signal=KILL", started.name, check=False)


def test_a_start_after_a_stop_waits_for_the_task_and_starts_anew(unit: Unit) -> None:
    first = unit.main()
    unit.host.run("systemctl", "stop", "--no-block", unit.name)
    wait_for("it has heard the stop", lambda: unit.there("termed"))
    unit.host.run("systemctl", "start", "--no-block", unit.name)
    assert (unit.main(), unit.shows("ActiveState")) == (first, "deactivating")
    unit.host.run("touch", f"{unit.folder}/finish")
    wait_for("another process runs", lambda: unit.main() not in (0, first), WAIT_SECONDS)
    assert unit.shows("ActiveState") == "active"


def test_only_the_main_process_is_told_to_stop_and_no_clock_kills_it(unit: Unit) -> None:
    first = unit.main()
    unit.host.run("systemctl", "stop", "--no-block", unit.name)
    wait_for("it has heard the stop", lambda: unit.there("termed"))
    assert unit.shows("TimeoutStopUSec") == "infinity"
    assert unit.main() == first
    unit.host.run("touch", f"{unit.folder}/finish")
    wait_for("it has ended", lambda: unit.shows("ActiveState") == "inactive", WAIT_SECONDS)
    assert not unit.there("child-termed")


def test_a_worker_that_dies_is_started_again(unit: Unit) -> None:
    first = unit.main()
    unit.host.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", unit.name)
    wait_for("another process runs", lambda: unit.main() not in (0, first), WAIT_SECONDS)
