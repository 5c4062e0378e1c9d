# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gates in Dramatiq's workers on Redis: what is held and can't be parked now, and what is never held."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.books import GATES_BOOK
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import PARKED, WAITING, Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.gates import Gate

from tests.support.bench import TASK, task_id
from tests.support.dramatiq_bench import Workers
from tests.support.servers import wait_for

NAME = "mail/1.0-a/w1/1"
QUEUES = ["mail"]
PLACE = "backstep:dramatiq:parked:mail"


@pytest.fixture
def engine(redis_url: str, client: redis.Redis) -> Iterator[Engine]:
    """The Dramatiq engine on the emptied server."""
    with open_engine("dramatiq", redis_url, 5.0) as opened:
        yield opened


@pytest.fixture
def workers(redis_url: str, client: redis.Redis, tmp_path: Path) -> Iterator[Workers]:
    """Starts Dramatiq workers, and kills at the end what still runs."""
    bench = Workers(redis_url, tmp_path)
    yield bench
    bench.stop_all()


def close(engine: Engine, task: str) -> None:
    engine.write_book(GATES_BOOK, {task: Gate(task, 0.0, "ana", time.time()).line})


def start_and_have_one_wait(workers: Workers, client: redis.Redis, tmp_path: Path) -> str:
    """A worker whose next task is held and can't be parked."""
    client.set(PLACE, "of another type, so that whoever would park into it is refused")
    name = workers.start(NAME, QUEUES)
    for number in (1, 2):
        workers.enqueue("mail", number, 0)
    (log,) = tmp_path.glob("mail_*.log")
    wait_for("it waits", lambda: f"A task of {TASK} waits" in log.read_text("utf-8"))
    return name


def test_what_cannot_be_parked_waits_until_it_can(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path
) -> None:
    close(engine, TASK)
    start_and_have_one_wait(workers, client, tmp_path)
    client.delete(PLACE)
    wait_for("they are parked", lambda: engine.task_ids("mail", PARKED, 10).ids == (task_id(1), task_id(2)))
    assert [workers.executions(number) for number in (1, 2)] == [(0, 0), (0, 0)]
    assert set(engine.gated(QUEUES, TASK)) == {task_id(1), task_id(2)}
    # Its place among what the worker has taken is free again.
    assert client.keys("dramatiq:__acks__.*") == client.keys("dramatiq:mail*") == []


def test_what_cannot_be_parked_is_given_back_by_a_worker_that_stops(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path
) -> None:
    close(engine, TASK)
    name = start_and_have_one_wait(workers, client, tmp_path)
    assert workers.stop(name) == 0
    client.delete(PLACE)
    assert task_id(1) in workers.order("mail")
    assert workers.executions(1) == (0, 0)


def test_a_gate_that_opens_before_a_task_is_parked_lets_it_pass(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path
) -> None:
    close(engine, TASK)
    start_and_have_one_wait(workers, client, tmp_path)
    engine.write_book(GATES_BOOK, {TASK: None})
    wait_for("they are done", lambda: all(workers.executions(number) == (1, 1) for number in (1, 2)))


def test_a_line_that_cannot_be_understood_lets_nothing_pass(engine: Engine, workers: Workers) -> None:
    engine.write_book(GATES_BOOK, {TASK: '{"open": "half"}'})
    workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, 0)
    wait_for("it is parked", lambda: engine.task_ids("mail", PARKED, 10).ids == (task_id(1),))
    assert engine.parked_by(QUEUES) == {f"gate {TASK}"}
    assert workers.executions(1) == (0, 0)


def test_a_canary_is_held_by_no_gate(engine: Engine, workers: Workers) -> None:
    close(engine, "backstep_canary")
    workers.start(NAME, QUEUES)
    canaries = engine.send_canary("mail", "backstep_canary", 1, 60)
    wait_for("it is done", lambda: [one.state for one in engine.canaries(canaries)] == ["finished"])
    assert engine.task_ids("mail", WAITING, 10).ids == ()
