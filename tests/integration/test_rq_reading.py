# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read from a broker, and that a broker that can't be read is an error and never empty."""

from __future__ import annotations

import os
import pickle
import zlib
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    LISTED_STATES,
    Engine,
    QueueState,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BrokerRefused
from rq import Queue, Retry
from rq.job import Job

from tests.support.rq_bench import Workers
from tests.support.servers import wait_for

NAME = "mail/1.0-a/w1/1"


class Trap:
    """Loading it makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def state_of(engine: Engine, queue: str) -> QueueState:
    return engine.queue_states([queue])[0]


def test_each_state_is_counted_and_listed(engine: Engine, client: redis.Redis, workers: Workers) -> None:
    queue = Queue("mail", connection=client)
    name = workers.start(NAME, ["mail"])
    queue.enqueue("ledger_tasks.fail", 1, job_id="dead-1")
    queue.enqueue("ledger_tasks.fail", 2, job_id="retrying-1", retry=Retry(max=3, interval=300))
    wait_for("both have failed", lambda: client.zcard("rq:scheduled:mail") and client.zcard("rq:failed:mail"))
    queue.enqueue("ledger_tasks.work", 3, 30, job_id="executing-1")
    wait_for("it executes", lambda: engine.workers()[0].current_task == "executing-1")
    first = queue.enqueue("ledger_tasks.work", 4, 0, job_id="waiting-1")
    queue.enqueue("ledger_tasks.work", 5, 0, job_id="deferred-1", depends_on=first)
    queue.enqueue_in(timedelta(hours=1), "ledger_tasks.work", 6, 0, job_id="scheduled-1")
    found = state_of(engine, "mail")
    counts = (found.waiting, found.scheduled, found.executing, found.retrying, found.dead, found.deferred)
    assert counts == (1, 1, 1, 1, 1, 1)
    assert (found.parked, found.abandoned, found.workers) == (0, 0, 1)
    assert found.oldest_waiting_seconds is not None
    assert 0 <= found.oldest_waiting_seconds < 20
    listed = {state: engine.task_ids("mail", state, 10).ids for state in LISTED_STATES}
    held = ("waiting", "scheduled", "executing", "retrying", "dead", "deferred")
    assert listed == {state: (f"{state}-1",) if state in held else () for state in LISTED_STATES}
    (task,) = engine.executing(["mail"])
    assert (task.id, task.task, task.queue, task.worker) == ("executing-1", "ledger_tasks.work", "mail", name)
    assert task.started is not None
    (worker,) = engine.workers()
    assert worker.parsed is not None
    assert (worker.name, worker.parsed.index, worker.queues, worker.state) == (name, 1, ("mail",), "busy")
    assert (worker.current_task, worker.failed, worker.connected) == ("executing-1", 2, True)


def test_a_task_that_was_popped_and_not_claimed_is_still_counted(engine: Engine, client: redis.Redis) -> None:
    Queue("mail", connection=client).enqueue("os.getpid", job_id="popped")
    client.lmove("rq:queue:mail", "rq:queue:mail:intermediate", "LEFT", "RIGHT")
    assert state_of(engine, "mail").waiting == 1
    assert engine.task_ids("mail", "waiting", 10).ids == ("popped",)


def test_a_name_is_told_for_a_description_of_the_apps_own(
    engine: Engine, client: redis.Redis, workers: Workers
) -> None:
    workers.start(NAME, ["mail"])
    Queue("mail", connection=client).enqueue("ledger_tasks.work", 1, 30, description="Send the newsletter (urgent)")
    wait_for("it executes", lambda: engine.executing(["mail"]))
    assert engine.executing(["mail"])[0].task == "ledger_tasks.work"


def test_reading_changes_nothing(engine: Engine, client: redis.Redis, workers: Workers) -> None:
    """RQ's own counting functions would move the abandoned task to the failed ones."""
    name = workers.start(NAME, ["mail"])
    Queue("mail", connection=client).enqueue("ledger_tasks.work", 1, 60, job_id="task-1")
    wait_for("it executes", lambda: engine.executing(["mail"]))
    workers.kill(name)
    (claim,) = client.zrange("rq:wip:mail", 0, -1)
    client.zadd("rq:wip:mail", {claim: 1})
    before = {key: client.dump(key) for key in client.keys("*") if not key.startswith(b"rq:worker:")}
    found = state_of(engine, "mail")
    assert (found.executing, found.abandoned) == (0, 1)
    assert engine.task_ids("mail", "abandoned", 10).ids == ("task-1",)
    engine.check(write=True)
    engine.workers()
    engine.executing(["mail"])
    engine.pause_state()
    engine.known_queues()
    assert {key: client.dump(key) for key in client.keys("*") if not key.startswith(b"rq:worker:")} == before


def test_a_payload_is_never_loaded(engine: Engine, client: redis.Redis, tmp_path: Path) -> None:
    job = Job.create("os.getpid", connection=client, origin="mail", id="trap")
    job.save()
    sprung = Trap(str(tmp_path / "sprung"))
    trap = zlib.compress(pickle.dumps(("app.tasks.send", None, (sprung,), {})))
    client.hset("rq:job:trap", mapping={"data": trap, "meta": pickle.dumps(sprung), "result": pickle.dumps(sprung)})
    client.sadd("rq:queues", "rq:queue:mail")
    client.zadd("rq:wip:mail", {"trap:1": 2**40})
    client.rpush("rq:queue:mail", "trap")
    engine.queue_states(["mail"])
    for state in LISTED_STATES:
        engine.task_ids("mail", state, 10)
    assert engine.executing(["mail"])[0].task == "app.tasks.send"
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("rules", "write", "missing"),
    [
        (["+@all", "-zcount"], False, ["+zcount"]),
        (["+@all", "-lset", "-lrem"], True, ["+lset", "+lrem"]),
        (["+@read", "+info", "+time", "+client|list", "+@connection"], True, ["+evalsha"]),
    ],
)
def test_missing_rights_are_named(
    client: redis.Redis, redis_url: str, rules: list[str], write: bool, missing: list[str]
) -> None:
    client.execute_command("ACL", "SETUSER", "narrow", "reset", "on", ">pw", "~*", "&*", *rules)
    with open_engine("rq", redis_url.replace("redis://", "redis://narrow:pw@"), 5.0) as engine:
        with pytest.raises(BrokerRefused) as failure:
            engine.check(write=write)
        assert failure.value.details["missing"] == missing
        assert not client.keys("*")


def test_rights_to_other_keys_only_are_named(client: redis.Redis, redis_url: str) -> None:
    client.execute_command("ACL", "SETUSER", "narrow", "reset", "on", ">pw", "~other:*", "+@all")
    url = redis_url.replace("redis://", "redis://narrow:pw@")
    with open_engine("rq", url, 5.0) as engine, pytest.raises(BrokerRefused, match=r"~rq:\* ~backstep:\*"):
        engine.check(write=False)


def test_without_client_list_liveness_is_unknown_and_the_rest_is_told(
    client: redis.Redis, redis_url: str, workers: Workers
) -> None:
    workers.start(NAME, ["mail"])
    client.execute_command("ACL", "SETUSER", "narrow", "reset", "on", ">pw", "~*", "+@all", "-client|list")
    with open_engine("rq", redis_url.replace("redis://", "redis://narrow:pw@"), 5.0) as engine:
        assert [worker.connected for worker in engine.workers()] == [None]
