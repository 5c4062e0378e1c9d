# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger finds what is lost and what ran twice: an oracle that can't fail proves nothing."""

from __future__ import annotations

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine, Selection

from tests.support.bench import task_id
from tests.support.ledger import balance
from tests.support.rq_bench import Workers
from tests.support.servers import wait_for

NAME = "mail/1.0-a/w1/1"
QUEUES = ["mail"]


def test_a_pool_through_a_kill_a_park_and_a_failure_balances(
    engine: Engine, client: redis.Redis, workers: Workers
) -> None:
    for number in range(20):
        workers.enqueue("mail", number, 0.01)
    workers.enqueue("mail", 20, 30)
    workers.enqueue("mail", 21, task="ledger_tasks.fail")
    for number in range(22, 30):
        workers.enqueue("mail", number, 0.01)
    name = workers.start(NAME, QUEUES)
    wait_for("the long one executes", lambda: [task.id for task in engine.executing(QUEUES)] == [task_id(20)])
    notes = redis.Redis.from_url(workers.ledger_url)
    wait_for("it is noted", lambda: notes.hget("ledger:started", "20"))
    workers.kill(name)
    announced = [task.id for task in engine.recover(QUEUES, [name], "waiting") if task.started]
    engine.park(QUEUES, Selection(states=("waiting",), ids=(task_id(25),)), "ana", "")
    workers.start(NAME, QUEUES)
    wait_for("the long one executes again", lambda: notes.hget("ledger:started", "20") == b"2")
    found = balance(engine, workers.ledger_url, QUEUES, announced)
    assert found.balanced
    assert (found.counts()["enqueued"], found.counts()["lost"]) == (30, 0)
    assert found.duplicated == found.announced == {task_id(20)}
    assert {task_id(20), task_id(25)} <= found.listed
    assert len(found.finished) + len(found.listed) == 30
    notes.close()


def test_a_task_that_ran_twice_unannounced_is_found(
    engine: Engine, client: redis.Redis, workers: Workers
) -> None:
    workers.enqueue("mail", 1, 0)
    client.rpush("rq:queue:mail", task_id(1))
    workers.start(NAME, QUEUES)
    wait_for("both are done", lambda: engine.workers()[0].finished == 2)
    found = balance(engine, workers.ledger_url, QUEUES)
    assert (found.duplicated, found.announced, found.balanced) == ({task_id(1)}, frozenset(), False)
    assert balance(engine, workers.ledger_url, QUEUES, [task_id(1)]).balanced


def test_a_task_that_the_broker_did_not_take_is_not_counted(engine: Engine, workers: Workers) -> None:
    lost = Workers("redis://127.0.0.1:1/0")
    lost.ledger_url = workers.ledger_url
    with pytest.raises(redis.ConnectionError):
        lost.enqueue("mail", 1, 0)
    assert balance(engine, workers.ledger_url, QUEUES).counts()["enqueued"] == 0


def test_a_failed_task_that_is_replayed_is_no_duplicate(
    engine: Engine, client: redis.Redis, workers: Workers
) -> None:
    workers.enqueue("mail", 1, task="ledger_tasks.fail")
    workers.start(NAME, QUEUES)
    wait_for("it is dead", lambda: client.zcard("rq:failed:mail") == 1)
    engine.replay(QUEUES, Selection(states=("dead",)))
    wait_for("it is dead again", lambda: engine.workers()[0].failed == 2)
    found = balance(engine, workers.ledger_url, QUEUES)
    assert (found.listed, found.duplicated) == ({task_id(1)}, frozenset())
