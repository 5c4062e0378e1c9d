# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What only Celery has: priorities, late acknowledgement, workers that are silent or about to go, and its messages."""

from __future__ import annotations

import json
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    ABANDONED,
    LISTED_STATES,
    SCHEDULED,
    WAITING,
    Engine,
    Selection,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput, BrokerUnreachable
from celery import Celery

from tests.support.bench import Call, task_id
from tests.support.celery_bench import Workers
from tests.support.servers import wait_for

NAME = "mail/1.0-a/w1/1"
LATE = "ledger_tasks.work_late"
QUEUES = ["mail"]


@pytest.fixture
def engine(redis_url: str, client: redis.Redis) -> Iterator[Engine]:
    """The Celery engine on the emptied server."""
    with open_engine("celery", redis_url, 5.0) as opened:
        yield opened


@pytest.fixture
def workers(redis_url: str, client: redis.Redis, tmp_path: Path) -> Iterator[Workers]:
    """Starts Celery workers, and kills at the end what still runs."""
    bench = Workers(redis_url, tmp_path)
    yield bench
    bench.stop_all()


def hold(engine: Engine, workers: Workers, task: str) -> str:
    """Have a new worker execute task 1; its name."""
    name = workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, 60, task=task)
    wait_for("it executes", lambda: [found.worker for found in engine.executing(QUEUES)] == [name])
    wait_for("it is noted", lambda: workers.executions(1) == (1, 0))
    return name


def test_which_tasks_a_kill_would_lose_is_told_by_the_workers(engine: Engine, workers: Workers) -> None:
    assert engine.lost_when_killed() == []
    name = workers.start(NAME, QUEUES)
    wait_for("it answers", lambda: [found.name for found in engine.workers()] == [name])
    assert engine.lost_when_killed() == ["ledger_tasks.fail", "ledger_tasks.work"]


def test_each_priority_keeps_its_own_order(engine: Engine, workers: Workers) -> None:
    with Celery(broker=workers.url, set_as_current=False) as app:
        for number, priority in enumerate((9, 3, 0, 6, 0, 9)):
            app.send_task("app.send", task_id=f"task-{number}", queue="mail", priority=priority)
    before = workers.order("mail")
    assert before == ["task-2", "task-4", "task-1", "task-3", "task-0", "task-5"]
    assert list(engine.task_ids("mail", WAITING, 10).ids) == before
    engine.park(QUEUES, Selection(states=(WAITING,)), "ana", "")
    assert engine.replay(QUEUES, Selection(states=("parked",), limit=3)).count == 3
    assert workers.order("mail") == before[:3]
    engine.replay(QUEUES, Selection(states=("parked",)))
    assert workers.order("mail") == before


def test_what_a_worker_holds_for_later_is_scheduled_and_comes_back_when_it_stops(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    workers.enqueue("mail", 1, 0, delay=3600)
    name = workers.start(NAME, QUEUES)
    wait_for("the worker has taken it", lambda: client.hlen("unacked") == 1)
    wait_for("it is counted", lambda: engine.queue_states(QUEUES)[0].scheduled == 1)
    workers.stop(name)
    assert engine.task_ids("mail", SCHEDULED, 10).ids == ("task-1",)
    assert engine.park(QUEUES, Selection(states=(SCHEDULED,)), "ana", "").count == 1


def test_a_late_acknowledged_task_of_a_worker_that_still_ends_is_left_to_it(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    """It listens no more, and looks like a dead one. Only where everything has to run again is its task taken."""
    name = hold(engine, workers, LATE)
    client.delete(f"backstep:celery:executing:{name}")
    other = workers.start("mail/1.0-a/w1/2", ["other"])
    workers.signal(name, signal.SIGTERM)
    wait_for("it listens no more", lambda: name not in [worker.name for worker in engine.workers()])
    wait_for("its task is nobody's", lambda: engine.task_ids("mail", ABANDONED, 10).ids == ("task-1",))
    assert engine.queue_states(QUEUES)[0].abandoned == 1
    assert engine.recover(QUEUES, [], "dead") == []
    assert client.hlen("unacked") == 1
    workers.stop(other)
    # For a second after it was told to stop, a worker's last question for a task is still open, and may get one.
    wait_for("nobody asks for a task", lambda: not any("b" in found["flags"] for found in client.client_list()))
    (task,) = engine.recover(QUEUES, [], "waiting")
    assert (task.id, task.worker, task.to, task.started) == ("task-1", None, "waiting", True)
    assert workers.order("mail") == ["task-1"]


def test_what_was_taken_from_a_worker_that_still_ends_runs_once(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    """When it ends, it puts back what it took, which another worker has by then."""
    for number, seconds in enumerate([6, 10, 0, 0]):
        workers.enqueue("mail", number, seconds)
    ending = workers.start("mail/1.0-a/w1/1", ["mail"])
    wait_for("it has taken all", lambda: workers.executions(0) == (1, 0) and client.hlen("unacked") == 3)
    workers.signal(ending, signal.SIGTERM)
    wait_for("it listens no more", lambda: engine.workers() == [])
    # For a second after it was told to stop, a worker's last question for a task is still open, and may get one.
    wait_for("nobody asks for a task", lambda: not any("b" in found["flags"] for found in client.client_list()))
    assert {task.id for task in engine.recover(QUEUES, [], "waiting")} == {task_id(number) for number in (1, 2, 3)}
    workers.start("mail/2.0-b/w1/1", ["mail"])
    wait_for("the other one has them", lambda: workers.executions(1) == (1, 0) and client.hlen("unacked") == 2)
    assert workers.wait(ending) == 0
    wait_for("all are done", lambda: workers.finished() == 4 and client.hlen("unacked") == 0)
    assert [workers.executions(number) for number in range(4)] == [(1, 1)] * 4


@pytest.mark.parametrize("task", ["ledger_tasks.work", LATE])
def test_what_a_worker_executes_that_listens_no_more_is_told(engine: Engine, workers: Workers, task: str) -> None:
    """It executes, and is nobody's to take, however badly everything is to run again."""
    name = hold(engine, workers, task)
    workers.signal(name, signal.SIGTERM)
    wait_for("it listens no more", lambda: engine.workers() == [])
    (executing,) = engine.executing(QUEUES)
    assert (executing.id, executing.task, executing.worker) == ("task-1", task, name)
    assert engine.queue_states(QUEUES)[0].abandoned == 0
    assert engine.recover(QUEUES, [], "waiting") == []
    workers.kill(name)
    (gone,) = engine.recover(QUEUES, [name], "dead")
    assert (gone.id, gone.worker, gone.to) == ("task-1", name, "lost" if task != LATE else "waiting")
    assert engine.executing(QUEUES) == []


def test_without_anybody_who_knows_a_task_nothing_is_put_back_that_may_have_begun(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    name = hold(engine, workers, LATE)
    workers.kill(name)
    client.delete(f"backstep:celery:executing:{name}")
    assert engine.recover(QUEUES, [name], "dead") == []
    assert client.hlen("unacked") == 1
    assert [task.id for task in engine.recover(QUEUES, [name], "waiting")] == ["task-1"]
    assert not client.exists("unacked", "unacked_index")


def test_what_a_dead_worker_said_that_it_executes_comes_back_as_begun(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    """Unlike what another one executes that listens no more."""
    name = hold(engine, workers, LATE)
    other = workers.start("mail/1.0-a/w1/2", ["reports"])
    workers.enqueue("reports", 2, 60, task=LATE)
    wait_for("it executes too", lambda: workers.executions(2) == (1, 0))
    workers.signal(other, signal.SIGTERM)
    workers.kill(name)
    wait_for("nobody listens", lambda: engine.workers() == [])
    (task,) = engine.recover(["mail", "reports"], [name], "dead")
    assert (task.id, task.worker, task.to, task.started) == ("task-1", name, "waiting", True)
    assert engine.recover(["mail", "reports"], [name], "dead") == []


def test_a_silent_worker_makes_what_it_holds_unknown(workers: Workers, redis_url: str) -> None:
    with open_engine("celery", redis_url, 1.0) as engine:
        name = hold(engine, workers, "ledger_tasks.work")
        workers.enqueue("mail", 2, 0)
        wait_for("it has been taken ahead", lambda: workers.is_settled("mail"))
        workers.signal(name, signal.SIGSTOP)
        state = engine.queue_states(QUEUES)[0]
        assert (state.workers, state.abandoned) == (None, None)
        for ask in (engine.workers, lambda: engine.executing(QUEUES), lambda: engine.recover(QUEUES, [], WAITING)):
            with pytest.raises(BrokerUnreachable, match="no answer"):
                ask()
        workers.signal(name, signal.SIGCONT)
        wait_for("it answers again", lambda: engine.queue_states(QUEUES)[0].workers == 1)


def test_questions_leave_nothing_behind(engine: Engine, workers: Workers, client: redis.Redis) -> None:
    workers.start(NAME, QUEUES)
    wait_for("it counts", lambda: client.keys("backstep:celery:counts:*"))
    before = sorted(client.keys("*"))
    engine.workers()
    engine.queue_states(QUEUES)
    assert sorted(client.keys("*")) == before


def test_times_select_nothing_as_none_are_noted(engine: Engine) -> None:
    with pytest.raises(BadInput, match="notes nowhere"):
        engine.park(QUEUES, Selection(states=(WAITING,), enqueued_before=1.0), "ana", "")


def test_dead_tasks_cannot_be_replayed_as_none_are_kept(engine: Engine) -> None:
    with pytest.raises(BadInput):
        engine.replay(QUEUES, Selection(states=("dead",)))


class Trap:
    """Loading it makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def test_a_payload_is_never_loaded_and_comes_back_as_it_was(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path
) -> None:
    workers.send("mail", "trap", Call("app.send", (1,), 0, False))
    (key,) = client.keys("mail*")
    message = json.loads(client.lindex(key, 0) or b"")
    message["content-type"] = "application/x-python-serialize"
    message["body"] = pickle.dumps(Trap(str(tmp_path / "sprung"))).hex()
    # Numbers and empty lists that a careless decoding and encoding would change.
    message["headers"]["stamps"] = {"big": 2**63 + 1, "none": [], "nothing": {}}
    raw = json.dumps(message).encode()
    client.lset(key, 0, raw)
    client.hset("unacked", "tag", json.dumps([message, "", "mail"]))
    client.zadd("unacked_index", {"tag": 1})
    engine.queue_states(QUEUES)
    for state in LISTED_STATES:
        engine.task_ids("mail", state, 10)
    assert engine.park(QUEUES, Selection(states=(WAITING,), tasks=("app.send",)), "ana", "").ids == ("trap",)
    engine.replay(QUEUES, Selection(states=("parked",)))
    assert client.lrange(key, 0, -1) == [raw]
    engine.recover(QUEUES, [], WAITING)
    first, second = client.lrange(key, 0, -1)
    # All but the tag, by which a worker that is about to end would put it back once more.
    tag, other = (json.loads(one)["properties"]["delivery_tag"] for one in (raw, second))
    assert (first, second.replace(other.encode(), tag.encode())) == (raw, raw)
    assert tag != other
    assert not (tmp_path / "sprung").exists()


def test_what_is_no_message_is_left_where_it_is(engine: Engine, client: redis.Redis) -> None:
    junk = [b"", b"{", b"[1]", b'{"headers": []}', b"\xff\x00"]
    client.rpush("mail", *junk)
    assert engine.task_ids("mail", WAITING, 10).ids == ()
    assert engine.park(QUEUES, Selection(states=(WAITING,)), "ana", "").count == 0
    assert client.lrange("mail", 0, -1) == junk


def test_failed_tasks_are_counted_by_the_worker_s_reporter(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    name = workers.start(NAME, QUEUES)
    wait_for("it counts", lambda: [(worker.finished, worker.failed) for worker in engine.workers()] == [(0, 0)])
    for number in range(3):
        workers.enqueue("mail", number, 0)
    workers.enqueue("mail", 3, task="ledger_tasks.fail")
    canary = engine.send_canary("mail", "ledger_tasks.fail", 1, 60)
    wait_for("everything has ended", lambda: engine.canaries(canary)[0].state == "failed")
    wait_for("it is counted", lambda: (engine.workers()[0].finished, engine.workers()[0].failed) == (3, 1))
    client.delete(f"backstep:celery:counts:{name}")
    engine.withdraw("mail", canary)
    # Its main process learns of a task's end after the process that has executed it.
    wait_for("it counts as ended", lambda: [(seen.finished, seen.failed) for seen in engine.workers()] == [(4, None)])


def test_a_reporter_that_may_not_write_fails_no_task(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path
) -> None:
    # All keys but Backstep's. A worker answers to a key with a random hexadecimal name, which may begin with a b.
    others = ("~[^b]*", "~b[^a]*", "~ba[^c]*", "~bac[^k]*")
    client.execute_command("ACL", "SETUSER", "narrow", "reset", "on", ">s3cret", *others, "&*", "+@all")
    narrow = Workers(workers.url.replace("redis://", "redis://narrow:s3cret@"), tmp_path)
    try:
        narrow.start(NAME, QUEUES)
        workers.enqueue("mail", 1, 0)
        workers.enqueue("mail", 2, task="ledger_tasks.fail")
        wait_for("both have ended", lambda: engine.workers()[0].finished == 2)
    finally:
        narrow.stop_all()
        client.execute_command("ACL", "DELUSER", "narrow")
    assert workers.executions(1) == (1, 1)
    (log,) = tmp_path.glob("*.log")
    said = log.read_text("utf-8")
    assert said.count("Backstep is not told") >= 1
    assert "s3cret" not in said
