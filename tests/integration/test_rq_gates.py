# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gates in RQ workers: what is special in how they read a task's name, and what they do where a gate can't be kept."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.books import ALWAYS_FRESH, GATES_BOOK
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import EXECUTING, PARKED, Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.gating import set_gates
from ansible_collections.backstep.workers.plugins.module_utils._rollout.gates import Gate
from ansible_collections.backstep.workers.plugins.module_utils._waiting.deadline import Deadline
from rq import Queue
from rq.serializers import JSONSerializer

from tests.support.bench import TASK, UNKNOWN_TASK, task_id
from tests.support.ledger import balance
from tests.support.rq_bench import Workers
from tests.support.servers import wait_for

NAME = "mail/1.0-a/w1/1"
QUEUES = ["mail"]
# Opens the gate in the moment between a worker's look at it and its parking of what it holds.
OPENING = """
import rq.worker
class Worker(rq.worker.SimpleWorker):
    def prepare_execution(self, job):
        look = self.connection.hget
        def and_open(book, task):
            line = look(book, task)
            self.connection.hdel(book, task)
            return line
        self.connection.hget = and_open
        return super().prepare_execution(job)
"""


def close(engine: Engine, task: str = TASK) -> None:
    """Let none of these pass."""
    set_gates(engine, QUEUES, {task: Gate(task, 0.0, "ana", time.time())}, Deadline(30).wait_until)


def parked(engine: Engine) -> tuple[str, ...]:
    return engine.task_ids("mail", PARKED, 10).ids


@pytest.mark.parametrize("kind", ["rq.worker.SimpleWorker", "rq.worker.HerokuWorker"])
def test_a_name_is_read_in_whatever_it_is_written(
    engine: Engine, workers: Workers, client: redis.Redis, kind: str
) -> None:
    close(engine)
    workers.start(NAME, QUEUES, "--worker-class", kind, "--serializer", "rq.serializers.JSONSerializer")
    queue = Queue("mail", connection=client, serializer=JSONSerializer)
    queue.enqueue(TASK, 1, 0, job_id=task_id(1), description="a letter")
    wait_for("it is parked", lambda: parked(engine) == (task_id(1),))
    assert engine.parked_by(QUEUES) == {f"gate {TASK}"}


def test_a_task_that_the_release_does_not_know_is_parked_as_such(engine: Engine, workers: Workers) -> None:
    close(engine, UNKNOWN_TASK)
    name = workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, task=UNKNOWN_TASK)
    wait_for("it is parked", lambda: parked(engine) == (task_id(1),))
    assert engine.parked_by(QUEUES) == {name}
    assert engine.gated(QUEUES, UNKNOWN_TASK) == {}


def test_a_gate_that_opens_meanwhile_leaves_nothing_behind(engine: Engine, workers: Workers, tmp_path: Path) -> None:
    (tmp_path / "opening.py").write_text(OPENING, encoding="utf-8")
    close(engine)
    workers.start(NAME, QUEUES, "--path", str(tmp_path), "--worker-class", "opening.Worker")
    workers.enqueue("mail", 1, 0)
    wait_for("it is done", lambda: workers.executions(1) == (1, 1))
    assert engine.gated(QUEUES, TASK) == {}


def test_what_cannot_be_understood_holds(engine: Engine, workers: Workers) -> None:
    engine.write_book(GATES_BOOK, {TASK: '{"shut": true}'})
    workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, 0)
    wait_for("it is parked", lambda: parked(engine) == (task_id(1),))
    assert engine.parked_by(QUEUES) == {f"gate {TASK}"}
    assert list(engine.gated(QUEUES, TASK)) == [task_id(1)]


def test_one_that_cannot_be_parked_is_not_executed_and_can_be_recovered(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    close(engine)
    # Of another type, so that whoever would park into it is refused.
    client.set("backstep:rq:parked:mail", "in the way")
    name = workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, 0)
    workers.enqueue("mail", 2, task=UNKNOWN_TASK)
    wait_for("the next one has failed", lambda: client.zcard("rq:failed:mail") == 1)
    client.delete("backstep:rq:parked:mail")
    assert engine.task_ids("mail", EXECUTING, 10).ids == (task_id(1),)
    workers.kill(name)
    (task,) = engine.recover(QUEUES, [name], "waiting")
    assert (task.id, task.to, workers.executions(1)) == (task_id(1), "waiting", (0, 0))
    assert balance(engine, workers.ledger_url, QUEUES).balanced


def test_only_workers_that_can_keep_gates_tell_so(engine: Engine, workers: Workers, client: redis.Redis) -> None:
    careless = workers.start(NAME, QUEUES, "--worker-class", "rq.worker.SpawnWorker")
    careful = workers.start("mail/1.0-a/w1/2", QUEUES)
    client.execute_command("ACL", "SETUSER", "narrow", "reset", "on", ">s3cret", "~rq:*", "&*", "+@all")
    try:
        workers.url = workers.url.replace("://", "://narrow:s3cret@")
        refused = workers.start("mail/1.0-a/w1/3", QUEUES)
        told = {worker.name: worker.gates for worker in engine.workers()}
        assert told == {careless: None, careful: ALWAYS_FRESH, refused: None}
        for name in (careless, careful):
            workers.stop(name)
        workers.enqueue("mail", 1, 0)
        wait_for("it is done", lambda: workers.executions(1) == (1, 1))
    finally:
        workers.stop_all()
        client.execute_command("ACL", "DELUSER", "narrow")
