# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Park and replay: everything about a task is kept, and nothing is lost or doubled when the mover dies half way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine, Selection
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput
from rq import Queue

from tests.support.rq_bench import Workers, wait_for

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


def test_what_is_parked_comes_back_byte_for_byte_in_its_old_order(
    engine: Engine, client: redis.Redis, queue: Queue
) -> None:
    fill(queue, 2500)
    queue.enqueue("app.tasks.known", job_id="urgent", at_front=True)
    queue.enqueue_in(timedelta(hours=1), "app.tasks.known", job_id="due-later")
    before, old_order = everything(client), order(client)
    parked = engine.park(["mail"], ALL, "ana", "rollback")
    assert (parked.count, parked.before, parked.after) == (
        2502, {"waiting": 2501, "scheduled": 1}, {"parked": 2502}
    )  # fmt: skip
    assert (len(parked.ids), parked.cut) == (1000, True)
    state = engine.queue_states(["mail"])[0]
    assert (state.waiting, state.scheduled, state.parked) == (0, 0, 2502)
    replayed = engine.replay(["mail"], PARKED)
    assert (replayed.count, replayed.after) == (2502, {"waiting": 2501, "scheduled": 1})
    assert order(client) == old_order
    # The list's entries are compared above: how the server cuts them into nodes depends on how they were pushed.
    after = {key: dump for key, dump in everything(client).items() if not key.endswith(b":order")}
    assert before.pop(b"rq:queue:mail")
    assert after.pop(b"rq:queue:mail")
    assert after == before


def test_no_worker_reaches_what_is_parked(engine: Engine, queue: Queue, workers: Workers) -> None:
    fill(queue, 5, "os.getpid")
    engine.park(["mail"], WAITING, "ana", "")
    workers.start("mail/1.0-a/w1/1", ["mail"])
    queue.enqueue("os.getpid", job_id="other")
    wait_for("the other one is done", lambda: engine.workers()[0].finished == 1)
    assert engine.queue_states(["mail"])[0].parked == 5
    engine.replay(["mail"], PARKED)
    wait_for("the parked ones are done", lambda: engine.workers()[0].finished == 6)


def test_only_what_is_selected_moves_and_the_rest_keeps_its_order(
    engine: Engine, client: redis.Redis, queue: Queue
) -> None:
    for number in range(3000):
        name = "app.tasks.unknown" if number % 3 == 0 else "app.tasks.known"
        queue.enqueue(name, job_id=f"task-{number}")
    parked = engine.park(["mail"], Selection(states=("waiting",), tasks=("app.tasks.unknown",)), "ana", "")
    assert parked.count == 1000
    assert order(client) == [f"task-{number}" for number in range(3000) if number % 3]
    engine.replay(["mail"], PARKED)
    assert order(client)[:1000] == [f"task-{number}" for number in range(0, 3000, 3)]


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


def test_a_limited_replay_takes_the_oldest(engine: Engine, client: redis.Redis, queue: Queue) -> None:
    fill(queue, 2500)
    engine.park(["mail"], WAITING, "ana", "")
    limited = Selection(states=("parked",), limit=1200)
    assert engine.replay(["mail"], limited).count == 1200
    assert order(client) == [f"task-{number}" for number in range(1200)]
    assert engine.replay(["mail"], PARKED).count == 1300


def test_a_later_park_comes_back_behind_an_earlier_one(engine: Engine, client: redis.Redis, queue: Queue) -> None:
    fill(queue, 3)
    engine.park(["mail"], WAITING, "ana", "")
    fill(queue, 3, start=3)
    engine.park(["mail"], WAITING, "ana", "")
    engine.replay(["mail"], PARKED)
    assert order(client) == [f"task-{number}" for number in range(6)]


def test_a_dry_run_tells_the_same_and_writes_nothing(engine: Engine, client: redis.Redis, queue: Queue) -> None:
    fill(queue, 1500)
    before = everything(client)
    told = engine.park(["mail"], WAITING, "ana", "", dry_run=True)
    assert everything(client) == before
    assert engine.park(["mail"], WAITING, "ana", "") == told
    parked = everything(client)
    told = engine.replay(["mail"], PARKED, dry_run=True)
    assert everything(client) == parked
    assert engine.replay(["mail"], PARKED) == told
    assert engine.replay(["mail"], PARKED).count == 0


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


def test_canaries_are_never_parked(engine: Engine) -> None:
    engine.send_canary("mail", engine.default_canary, 1, 60)
    assert engine.park(["mail"], WAITING, "ana", "").count == 0


@pytest.mark.parametrize(
    "selection", [Selection(states=()), Selection(states=("parked",)), Selection(states=("waiting",), limit=0)]
)
def test_a_selection_that_makes_no_sense_is_refused(engine: Engine, selection: Selection) -> None:
    with pytest.raises(BadInput):
        engine.park(["mail"], selection, "ana", "")


MOVER = """
import sys
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Selection
from ansible_collections.backstep.workers.plugins.module_utils._queue.engines import _rq_moves
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
_rq_moves.BATCH = 10
with open_engine("rq", sys.argv[1], 5.0) as engine:
    print("ready", flush=True)
    sys.stdin.readline()
    if sys.argv[2] == "park":
        engine.park(["mail"], Selection(states=("waiting", "scheduled")), "ana", "")
    else:
        engine.replay(["mail"], Selection(states=("parked",)))
"""


def places(client: redis.Redis) -> Counter[str]:
    """In how many places each task is."""
    found = client.lrange("rq:queue:mail", 0, -1) + client.zrange("rq:scheduled:mail", 0, -1)
    return Counter(entry.decode() for entry in found + client.zrange("backstep:rq:parked:mail", 0, -1))


def kill_in_the_middle(client: redis.Redis, url: str, verb: str, far_enough: Any) -> None:
    """Start a move and SIGKILL its process between two of its batches."""
    mover = subprocess.Popen(
        [sys.executable, "-c", MOVER, url, verb],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert mover.stdin is not None
    assert mover.stdout is not None
    try:
        assert mover.stdout.readline() == b"ready\n"
        mover.stdin.write(b"go\n")
        mover.stdin.flush()
        wait_for("it is in the middle", far_enough)
    finally:
        mover.send_signal(signal.SIGKILL)
        mover.communicate(timeout=10)


def test_a_mover_that_is_killed_loses_nothing_and_a_second_run_finishes(
    engine: Engine, client: redis.Redis, queue: Queue, redis_url: str
) -> None:
    ids = fill(queue, 20_000)
    queue.enqueue_in(timedelta(hours=1), "app.tasks.known", job_id="due-later")
    everyone = Counter([*ids, "due-later"])
    due = client.zscore("rq:scheduled:mail", "due-later")

    kill_in_the_middle(client, redis_url, "park", lambda: client.zcard("backstep:rq:parked:mail") > 100)
    half = client.zcard("backstep:rq:parked:mail")
    assert 0 < half < 20_001
    assert places(client) == everyone
    engine.park(["mail"], Selection(states=("waiting", "scheduled")), "ana", "")
    assert client.zcard("backstep:rq:parked:mail") == 20_001
    assert places(client) == everyone

    kill_in_the_middle(client, redis_url, "replay", lambda: client.llen("rq:queue:mail") > 100)
    assert 0 < client.zcard("backstep:rq:parked:mail") < 20_001
    assert places(client) == everyone
    engine.replay(["mail"], PARKED)
    assert order(client) == ids
    assert client.zscore("rq:scheduled:mail", "due-later") == due
    assert places(client) == everyone
    assert client.hlen("backstep:rq:parked:mail:from") == 0


def test_a_move_next_to_busy_workers_and_producers_loses_nothing(
    engine: Engine, client: redis.Redis, queue: Queue, workers: Workers
) -> None:
    ids = fill(queue, 300, "os.getpid")
    workers.start("mail/1.0-a/w1/1", ["mail"])
    wait_for("it has begun", lambda: engine.workers()[0].finished > 0)
    parked = engine.park(["mail"], WAITING, "ana", "")
    wait_for("the rest is done", lambda: engine.workers()[0].finished == 300 - parked.count)
    assert parked.count > 0
    engine.replay(["mail"], PARKED)
    wait_for("everything is done", lambda: engine.workers()[0].finished == len(ids), 60)
