# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Park and replay: everything about a task is kept, and nothing is lost or doubled when the mover dies half way."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine, Selection
from rq import Queue

from tests.support.rq_bench import Workers
from tests.support.servers import wait_for

ALL = Selection(states=("waiting", "scheduled", "retrying", "dead"))
WAITING = Selection(states=("waiting",))
PARKED = Selection(states=("parked",))
# Fields that RQ sets anew when a dead task is put back.
REQUEUED = {b"status", b"enqueued_at", b"started_at", b"ended_at", b"exc_info"}


@pytest.fixture
def queue(client: redis.Redis) -> Queue:
    """A queue of RQ's own."""
    return Queue("mail", connection=client)


def fill(queue: Queue, count: int, task: str = "app.tasks.known", start: int = 0) -> list[str]:
    jobs = [Queue.prepare_data(task, job_id=f"task-{number}") for number in range(start, start + count)]
    return [job.id for job in queue.enqueue_many(jobs)]


def order(client: redis.Redis) -> list[str]:
    return [entry.decode() for entry in client.lrange("rq:queue:mail", 0, -1)]


def everything(client: redis.Redis) -> dict[bytes, Any]:
    """Every key of the database, as the bytes that the server would restore it from."""
    return {key: client.dump(key) for key in client.keys("*")}


def test_a_task_with_a_description_of_its_own_is_selected_by_its_name(
    engine: Engine, client: redis.Redis, queue: Queue
) -> None:
    queue.enqueue("app.tasks.unknown", job_id="task-0", description="Send the newsletter (urgent)")
    queue.enqueue("app.tasks.known", job_id="task-1", description="app.tasks.unknown, but not really")
    queue.enqueue("app.tasks.unknown", job_id="task-2")
    selection = Selection(states=("waiting",), tasks=("app.tasks.unknown",))
    assert engine.park(["mail"], selection, "ana", "", dry_run=True).count == 2
    assert set(engine.park(["mail"], selection, "ana", "").ids) == {"task-0", "task-2"}
    assert order(client) == ["task-1"]
    assert engine.replay(["mail"], Selection(states=("parked",), tasks=("app.tasks.unknown",))).count == 2


def test_tasks_are_selected_by_id_and_by_time(engine: Engine, client: redis.Redis, queue: Queue) -> None:
    fill(queue, 3)
    middle = time.time()
    fill(queue, 3, start=3)
    early = Selection(states=("waiting",), enqueued_before=middle)
    late = Selection(states=("waiting",), enqueued_after=middle, ids=("task-0", "task-4"))
    assert set(engine.park(["mail"], early, "ana", "", dry_run=True).ids) == {"task-0", "task-1", "task-2"}
    assert engine.park(["mail"], late, "ana", "").ids == ("task-4",)
    assert order(client) == ["task-0", "task-1", "task-2", "task-3", "task-5"]


def test_time_to_live_stands_still_while_parked(engine: Engine, client: redis.Redis, queue: Queue) -> None:
    queue.enqueue("app.tasks.known", job_id="task-0", ttl=500)
    engine.park(["mail"], WAITING, "ana", "")
    assert client.ttl("rq:job:task-0") == -1
    engine.replay(["mail"], PARKED)
    assert 490 < client.ttl("rq:job:task-0") <= 500


def test_dead_tasks_come_back_as_waiting_ones(
    engine: Engine, client: redis.Redis, queue: Queue, workers: Workers
) -> None:
    name = workers.start("mail/1.0-a/w1/1", ["mail"])
    for number in range(2):
        queue.enqueue("ledger_tasks.fail", number, job_id=f"task-{number}")
    wait_for("both are dead", lambda: client.zcard("rq:failed:mail") == 2)
    workers.stop(name)
    before = client.hgetall("rq:job:task-0")
    assert engine.replay(["mail"], Selection(states=("dead",), ids=("task-0",))).count == 1
    assert engine.park(["mail"], Selection(states=("dead",)), "ana", "").ids == ("task-1",)
    assert client.zcard("rq:failed:mail") == 0
    assert engine.replay(["mail"], PARKED).after == {"waiting": 1}
    assert sorted(order(client)) == ["task-0", "task-1"]
    after = client.hgetall("rq:job:task-0")
    assert {key for key in before if before[key] != after.get(key)} <= REQUEUED
    assert (after[b"status"], after[b"started_at"], after[b"ended_at"]) == (b"queued", b"", b"")
    assert after[b"data"] == before[b"data"]
    workers.start("mail/1.0-a/w1/2", ["mail"])
    wait_for("both have been executed again", lambda: client.zcard("rq:failed:mail") == 2)


def test_a_parked_task_that_somebody_deletes_is_reported(engine: Engine, client: redis.Redis, queue: Queue) -> None:
    fill(queue, 2)
    engine.park(["mail"], WAITING, "ana", "")
    client.delete("rq:job:task-0")
    replayed = engine.replay(["mail"], PARKED)
    assert (replayed.ids, replayed.vanished) == (("task-1",), ("task-0",))
    assert engine.queue_states(["mail"])[0].parked == 0
