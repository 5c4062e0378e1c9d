# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an RQ worker does with tasks that its release doesn't know: they are parked, as they were."""

from __future__ import annotations

import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    DEAD,
    PARKED,
    WAITING,
    Engine,
    Selection,
)
from rq import Queue, Retry

from tests.support.bench import TASK, UNKNOWN_TASK, task_id
from tests.support.ledger import balance
from tests.support.rq_bench import Workers
from tests.support.servers import wait_for

NAME = "mail/1.0-a/w1/1"
QUEUES = ["mail"]
# Of a class that this release doesn't have either: ``app.later.Letter()``.
STRANGE = b"capp.later\nLetter\n)R"
CLASSES = ("rq.worker.Worker", "rq.worker.SimpleWorker")
# Modules of an app: one that can't be loaded, and a class for jobs that looks for functions in its own way.
BROKEN = "import app_that_is_not_there\ndef work(number): ...\n"
OWN_JOBS = """
import ledger_tasks, rq.job
class Job(rq.job.Job):
    @property
    def func(self):
        return ledger_tasks.work
"""


def jobs(client: redis.Redis) -> dict[bytes, dict[bytes, bytes]]:
    """All that RQ knows of each task."""
    return {key: client.hgetall(key) for key in client.keys("rq:job:*")}


def mortal(client: redis.Redis) -> list[bytes]:
    """Those that run out."""
    return [key for key in client.keys("rq:job:*") if client.pttl(key) > 0]


def enqueue_all_kinds(workers: Workers, client: redis.Redis) -> None:
    """Two as they mostly are, one with retries and a time to live, and one whose payload can't be loaded here."""
    for number in (0, 1):
        workers.enqueue("mail", number, task=UNKNOWN_TASK)
    queue = Queue("mail", connection=client)
    more: dict[str, Any] = {"retry": Retry(max=2), "ttl": 3600, "description": "a letter"}
    queue.enqueue(UNKNOWN_TASK, job_id=task_id(2), **more)
    queue.enqueue(UNKNOWN_TASK, job_id=task_id(3))
    payload = pickle.dumps((UNKNOWN_TASK, None, ("mark",), {}), protocol=0)
    _name, _mark, rest = payload.partition(b"Vmark\n")
    client.hset(f"rq:job:{task_id(3)}", "data", zlib.compress(_name + STRANGE + rest))


@pytest.mark.parametrize("kind", CLASSES)
def test_they_are_parked_whole_and_come_back_in_their_old_order(
    engine: Engine, workers: Workers, client: redis.Redis, kind: str
) -> None:
    enqueue_all_kinds(workers, client)
    before, running_out, order = jobs(client), mortal(client), workers.order("mail")
    worker = workers.start(NAME, QUEUES, "--worker-class", kind)
    wait_for("all are parked", lambda: engine.task_ids("mail", PARKED, 10).ids == tuple(order))
    wait_for("the worker waits for others", lambda: client.hget(f"rq:worker:{worker}", "state") == b"idle")
    (seen,) = engine.workers()
    assert (seen.finished, seen.failed, seen.current_task) == (0, 0, None)
    left = [key for part in ("wip", "execution*", "failed", "queue:*") for key in client.keys(f"rq:{part}:*")]
    assert left == []
    assert balance(engine, workers.ledger_url, QUEUES).balanced
    workers.stop_all()
    assert (jobs(client), mortal(client)) == (before, [])
    assert engine.replay(QUEUES, Selection(states=(PARKED,))).count == 4
    assert (jobs(client), mortal(client), workers.order("mail")) == (before, running_out, order)


def test_one_that_arrives_later_comes_behind_those_that_were_parked_by_hand(engine: Engine, workers: Workers) -> None:
    for number in (1, 2):
        workers.enqueue("mail", number, task=UNKNOWN_TASK)
    engine.park(QUEUES, Selection(states=(WAITING,)), "ana", "")
    workers.start(NAME, ["other", "mail"])
    workers.enqueue("mail", 3, task=UNKNOWN_TASK)
    wait_for("it is parked", lambda: len(engine.task_ids("mail", PARKED, 10).ids) == 3)
    workers.enqueue("mail", 4, task=UNKNOWN_TASK)
    engine.park(QUEUES, Selection(states=(WAITING,)), "ana", "")
    wait_for("so is the last one", lambda: len(engine.task_ids("mail", PARKED, 10).ids) == 4)
    workers.stop_all()
    engine.replay(QUEUES, Selection(states=(PARKED,)))
    assert workers.order("mail") == [task_id(number) for number in (1, 2, 3, 4)]


@pytest.mark.parametrize("kind", CLASSES)
def test_what_can_not_be_read_is_parked_as_the_bytes_that_it_is(
    engine: Engine, workers: Workers, client: redis.Redis, kind: str
) -> None:
    call = pickle.dumps((TASK, None, ("mark",), {}), protocol=0)
    name, _mark, rest = call.partition(b"Vmark\n")
    # By another serializer, with a class that this release doesn't have, cut off, and no payload at all.
    payloads = [b'["' + TASK.encode() + b'", null, [1], {}]', name + STRANGE + rest, call[:-9], b""]
    queue = Queue("mail", connection=client)
    for number, payload in enumerate(payloads):
        queue.enqueue(TASK, job_id=task_id(number), retry=Retry(max=2), meta={"a": 1})
        client.hset(f"rq:job:{task_id(number)}", "data", zlib.compress(payload))
    before, order = jobs(client), workers.order("mail")
    worker = workers.start(NAME, QUEUES, "--worker-class", kind)
    workers.enqueue("mail", 9, 0)
    wait_for("the next one is done", lambda: workers.executions(9) == (1, 1))
    assert engine.task_ids("mail", PARKED, 10).ids == tuple(order)
    kept = [json.loads(each) for each in client.hvals("backstep:rq:parked:mail:from")]
    assert {(one["owner"], one["reason"]) for one in kept} == {(worker, "the worker's release can't read it")}
    workers.stop_all()
    assert engine.replay(QUEUES, Selection(states=(PARKED,))).count == len(payloads)
    assert ({key: jobs(client)[key] for key in before}, workers.order("mail")) == (before, order)


def test_one_that_cannot_be_parked_fails_as_it_always_did(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    # Of another type, so that whoever would park into it is refused.
    client.set("backstep:rq:parked:mail", "in the way")
    workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, task=UNKNOWN_TASK)
    wait_for("it has failed", lambda: engine.task_ids("mail", DEAD, 10).ids == (task_id(1),))
    client.delete("backstep:rq:parked:mail")
    assert balance(engine, workers.ledger_url, QUEUES).balanced
    assert engine.task_ids("mail", PARKED, 10).ids == ()


def test_what_is_there_and_cannot_be_loaded_has_failed(engine: Engine, workers: Workers, tmp_path: Path) -> None:
    """It is the release that is bad then, and its failures have to be seen."""
    (tmp_path / "broken.py").write_text(BROKEN, encoding="utf-8")
    workers.start(NAME, QUEUES, "--path", str(tmp_path))
    # The second one is there, and raises an ImportError of its own.
    workers.enqueue("mail", 1, task="broken.work")
    workers.enqueue("mail", 2, task="builtins.__import__")
    wait_for("both have failed", lambda: len(engine.task_ids("mail", DEAD, 10).ids) == 2)
    assert engine.task_ids("mail", PARKED, 10).ids == ()


def test_jobs_of_the_app_s_own_class_are_left_to_it(workers: Workers, tmp_path: Path) -> None:
    (tmp_path / "own_jobs.py").write_text(OWN_JOBS, encoding="utf-8")
    workers.start(NAME, QUEUES, "--path", str(tmp_path), "--job-class", "own_jobs.Job")
    workers.enqueue("mail", 1, 0, task=UNKNOWN_TASK)
    wait_for("it is done", lambda: workers.executions(1) == (1, 1))


def test_it_can_be_switched_off(engine: Engine, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARK_UNKNOWN_TASKS", "no")
    workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, task=UNKNOWN_TASK)
    wait_for("it has failed", lambda: engine.task_ids("mail", DEAD, 10).ids == (task_id(1),))
