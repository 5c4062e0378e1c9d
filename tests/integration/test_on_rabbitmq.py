# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What only Celery and Dramatiq on RabbitMQ have: reporters that keep notes, tasks due later, and what a kill takes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    DEAD,
    EXECUTING,
    LOST,
    PARKED,
    RETRYING,
    SCHEDULED,
    WAITING,
    Engine,
    Selection,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput

from tests.support.bench import FAILING_TASK, TASK, UNKNOWN_TASK, Bench, bench_of, task_id
from tests.support.brokers import RabbitBroker
from tests.support.servers import rabbitmq_server, wait_for

QUEUES = ["mail"]
NAME = "mail/1.0-a/w1/1"
LATE_TASK = "ledger_tasks.work_late"
Start = Callable[[str], tuple[Bench, Engine]]
both = pytest.mark.parametrize("name", ["celery_rabbitmq", "dramatiq_rabbitmq"])


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitBroker]:
    """One node for all."""
    with rabbitmq_server(tmp_path_factory.mktemp("rabbitmq")) as url:
        yield RabbitBroker(url)


@pytest.fixture
def start(node: RabbitBroker, redis_url: str, client: Any, tmp_path: Path) -> Iterator[Start]:
    """Gives the bench and the engine of a name, on the emptied node."""
    node.empty()
    undo: list[Callable[[], None]] = []

    def given(name: str) -> tuple[Bench, Engine]:
        bench = bench_of(name)(node.url, tmp_path, ledger_url=redis_url.rsplit("/", 1)[0] + "/15")
        engine = open_engine(name, node.url, 5.0)
        undo.extend((bench.stop_all, engine.close))
        return bench, engine

    yield given
    for end in undo:
        end()


def children(worker: str) -> list[int]:
    """The processes that a worker's main process has started."""
    pid = worker.rpartition("/")[2]
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]


def counted(engine: Engine) -> list[tuple[int, int | None]]:
    """What each worker has finished and failed."""
    return [(worker.finished, worker.failed) for worker in engine.workers()]


def test_what_celery_acknowledges_early_is_told_as_lost_and_nothing_else(start: Start) -> None:
    bench, engine = start("celery_rabbitmq")
    name = bench.start(NAME, QUEUES, "--concurrency=2")
    early, late = bench.enqueue("mail", 1, 60), bench.enqueue("mail", 2, 60, task=LATE_TASK)
    wait_for("both execute", lambda: {task.id for task in engine.executing(QUEUES)} == {early, late})
    ahead = bench.enqueue("mail", 3, 60)
    wait_for("it is taken ahead", lambda: engine.task_ids("mail", WAITING, 10).ids == (ahead,))
    assert engine.lost_when_killed() == [FAILING_TASK, TASK]
    bench.kill(name)
    told = {task.id: (task.to, task.started, task.worker) for task in engine.recover(QUEUES, [name], WAITING)}
    assert told == {early: (LOST, True, name), late: (WAITING, True, name), ahead: (WAITING, False, name)}
    assert set(engine.task_ids("mail", WAITING, 10).ids) == {late, ahead}


def test_a_process_of_celerys_pool_that_is_killed_leaves_no_task_behind(start: Start) -> None:
    bench, engine = start("celery_rabbitmq")
    name = bench.start(NAME, QUEUES)
    bench.enqueue("mail", 1, 60)
    wait_for("it executes", lambda: engine.executing(QUEUES))
    for child in children(name):
        os.kill(child, signal.SIGKILL)
    wait_for("it has failed", lambda: counted(engine) == [(0, 1)])
    assert engine.executing(QUEUES) == []
    bench.enqueue("mail", 2, 0)
    wait_for("the next one is done", lambda: counted(engine) == [(1, 1)])


@both
def test_failed_tasks_are_counted_and_canaries_are_not(start: Start, name: str) -> None:
    bench, engine = start(name)
    bench.start(NAME, QUEUES)
    wait_for("it counts", lambda: counted(engine) == [(0, 0)])
    for number in range(3):
        bench.enqueue("mail", number, 0)
    bench.enqueue("mail", 3, task=FAILING_TASK)
    canary = engine.send_canary("mail", FAILING_TASK, 1, 60)
    wait_for("everything has ended", lambda: engine.canaries(canary)[0].state == "failed")
    wait_for("it is counted", lambda: counted(engine) == [(3, 2)])
    engine.withdraw("mail", canary)
    assert counted(engine) == [(3, 1)]
    assert engine.queue_states(QUEUES)[0].dead in (0, None)


@both
def test_a_canary_that_a_busy_worker_has_taken_is_sent_again(start: Start, name: str) -> None:
    bench, engine = start(name)
    bench.start(NAME, QUEUES)
    bench.enqueue("mail", 1, 60)
    wait_for("it executes", lambda: engine.executing(QUEUES))
    canaries = engine.send_canary("mail", engine.default_canary, 1, 60)
    wait_for("it is of no use", lambda: engine.canaries(canaries)[0].state == "gone")


# Celery takes more than it has been promised at first only bit by bit.
@pytest.mark.parametrize(("name", "count"), [("celery_rabbitmq", 8), ("dramatiq_rabbitmq", 150)])
def test_what_a_worker_keeps_for_later_comes_back_when_it_stops(start: Start, name: str, count: int) -> None:
    bench, engine = start(name)
    worker = bench.start(NAME, QUEUES)
    later = [bench.enqueue("mail", number, 0, delay=3600) for number in range(count)]
    wait_for("all are taken", lambda: engine.queue_states(QUEUES)[0].scheduled == count)
    (state,) = engine.queue_states(QUEUES)
    assert (state.waiting, state.retrying, state.executing) == (0, 0, 0)
    told = engine.task_ids("mail", SCHEDULED, 1000)
    # A worker names a hundred of them.
    assert (len(told.ids), told.cut, set(told.ids) <= set(later)) == (min(count, 100), count > 100, True)
    assert bench.stop(worker) == 0
    assert engine.park(QUEUES, Selection(states=(SCHEDULED,)), "ana", "").count == count
    assert engine.replay(QUEUES, Selection(states=(PARKED,))).after == {SCHEDULED: count}
    bench.start(NAME, QUEUES)
    wait_for("all are taken again", lambda: engine.queue_states(QUEUES)[0].scheduled == count)


def test_a_retry_of_dramatiq_is_no_scheduled_task(start: Start) -> None:
    bench, engine = start("dramatiq_rabbitmq")
    worker = bench.start(NAME, QUEUES)
    bench.enqueue("mail", 1, task=FAILING_TASK)
    wait_for("it is to be retried", lambda: engine.queue_states(QUEUES)[0].retrying == 1)
    assert engine.task_ids("mail", RETRYING, 10).ids == (task_id(1),)
    assert bench.stop(worker) == 0
    (state,) = engine.queue_states(QUEUES)
    assert (state.scheduled, state.retrying) == (1, None)
    assert engine.task_ids("mail", RETRYING, 10).ids == (task_id(1),)


def test_dead_letters_of_dramatiq_are_parked_and_replayed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARK_UNKNOWN_TASKS", "no")
    bench, engine = start("dramatiq_rabbitmq")
    worker = bench.start(NAME, QUEUES)
    ids = [bench.enqueue("mail", number, task=UNKNOWN_TASK) for number in range(3)]
    wait_for("they are dead", lambda: engine.queue_states(QUEUES)[0].dead == 3)
    assert bench.stop(worker) == 0
    only_dead = Selection(states=(DEAD,), ids=(ids[0],))
    assert engine.park(QUEUES, only_dead, "ana", "").after == {PARKED: 1}
    assert engine.replay(QUEUES, Selection(states=(PARKED,))).after == {DEAD: 1}
    assert engine.replay(QUEUES, only_dead).after == {WAITING: 1}
    assert (bench.order("mail"), engine.queue_states(QUEUES)[0].dead) == ([ids[0]], 2)


def test_several_processes_of_dramatiq_are_one_worker(start: Start) -> None:
    bench, engine = start("dramatiq_rabbitmq")
    name = bench.start(NAME, QUEUES, "--processes=2")
    wait_for("both are there", lambda: len(engine.workers()) == 1 and len(children(name)) >= 2)
    tasks = [bench.enqueue("mail", number, 60) for number in (1, 2)]
    wait_for("both execute", lambda: {task.id for task in engine.executing(QUEUES)} == set(tasks))
    assert {task.worker for task in engine.executing(QUEUES)} == {name}
    bench.kill(name)
    told = engine.recover(QUEUES, [name], WAITING)
    assert {(task.id, task.started) for task in told} == {(known, True) for known in tasks}
    assert engine.recover(QUEUES, [name], WAITING) == []


def test_a_canary_of_dramatiqs_that_has_run_out_is_not_executed(start: Start) -> None:
    bench, engine = start("dramatiq_rabbitmq")
    canaries = engine.send_canary("mail", FAILING_TASK, 1, -1)
    bench.start(NAME, QUEUES)
    bench.enqueue("mail", 1, 0)
    wait_for("the next one is done", lambda: counted(engine) == [(1, 0)])
    assert engine.canaries(canaries)[0].state == "gone"


@both
def test_a_reporter_that_may_not_write_fails_no_task(
    start: Start, node: RabbitBroker, name: str, tmp_path: Path
) -> None:
    bench, engine = start(name)
    node.api("PUT", "users/narrow", {"password": "s3cret", "tags": ""})
    rights = {"configure": "^(?!backstep).*", "write": "^(?!backstep).*", "read": ".*"}
    node.api("PUT", "permissions/%2F/narrow", rights)
    narrow = bench_of(name)(node.url.replace("guest:guest@", "narrow:s3cret@"), tmp_path, ledger_url=bench.ledger_url)
    try:
        narrow.start(NAME, QUEUES)
        bench.enqueue("mail", 1, 0)
        wait_for("it is done", lambda: bench.executions(1) == (1, 1))
    finally:
        narrow.stop_all()
        node.api("DELETE", "users/narrow")
    assert engine.workers() == []
    (log,) = tmp_path.glob("mail_*.log")
    said = log.read_text("utf-8")
    assert said.count("told what this worker does") == 1
    assert "s3cret" not in said


def test_a_queue_of_celerys_with_an_exchange_of_its_own_is_told_by_its_name(
    start: Start, node: RabbitBroker
) -> None:
    bench, engine = start("celery_rabbitmq")
    bench.start(NAME, QUEUES)
    with pika.BlockingConnection(pika.URLParameters(node.amqp_url)) as connection:
        headers = {"id": "task-1", "task": TASK, "lang": "py", "retries": 0, "eta": None}
        properties = pika.BasicProperties(
            content_type="application/json", content_encoding="utf-8", headers=headers, correlation_id="task-1"
        )
        body = json.dumps([[1, 60], {}, {}])
        connection.channel().basic_publish("mail", "mail", body.encode(), properties)
    (task,) = wait_for("it executes", lambda: engine.executing(QUEUES))
    assert (task.id, task.task, task.queue) == ("task-1", TASK, "mail")
    assert engine.known_queues() == ["mail"]


@both
def test_what_is_no_task_is_left_where_it_is(start: Start, node: RabbitBroker, name: str) -> None:
    _bench, engine = start(name)
    with pika.BlockingConnection(pika.URLParameters(node.amqp_url)) as connection:
        channel = connection.channel()
        channel.queue_declare("mail", durable=True)
        for body in (b"", b"{", b"[1]", b"\xff\x00"):
            channel.basic_publish("", "mail", body)
    assert engine.task_ids("mail", WAITING, 10).ids == engine.task_ids("mail", EXECUTING, 10).ids == ()
    assert engine.park(QUEUES, Selection(states=(WAITING,)), "ana", "").count == 0
    assert engine.queue_states(QUEUES)[0].waiting == 4


def test_times_select_nothing_of_celerys_as_none_are_noted(start: Start) -> None:
    _bench, engine = start("celery_rabbitmq")
    with pytest.raises(BadInput):
        engine.park(QUEUES, Selection(states=(WAITING,), enqueued_after=1.0), "ana", "")
