# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a Dramatiq worker on Redis does with tasks whose actor it doesn't know: they are parked, as they were."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    DEAD,
    PARKED,
    SCHEDULED,
    WAITING,
    Engine,
    Selection,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine

from tests.support.bench import UNKNOWN_TASK, task_id
from tests.support.dramatiq_bench import Workers
from tests.support.ledger import balance
from tests.support.servers import wait_for

NAME = "mail/1.0-a/w1/1"
QUEUES = ["mail"]
ONLY_PARKED = Selection(states=(PARKED,))


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


def test_they_are_parked_whole_and_come_back_in_their_old_order(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path
) -> None:
    # More than its worker takes ahead: what is parked is no longer counted among that.
    ids = [workers.enqueue("mail", number, 0.5, task=UNKNOWN_TASK) for number in range(6)]
    before = client.hgetall("dramatiq:mail.msgs"), client.lrange("dramatiq:mail", 0, -1)
    name = workers.start(NAME, QUEUES)
    wait_for("all are parked", lambda: len(engine.task_ids("mail", PARKED, 10).ids) == 6)
    assert client.keys("dramatiq:__acks__.*") == client.keys("dramatiq:mail*") == []
    assert balance(engine, workers.ledger_url, QUEUES).balanced
    assert [(worker.finished, worker.failed) for worker in engine.workers()] == [(0, 0)]
    assert client.hgetall("backstep:dramatiq:parked:mail:why") == {
        name.encode(): b"the worker's release doesn't know it"
    }  # fmt: skip
    workers.stop_all()
    assert engine.replay(QUEUES, ONLY_PARKED).count == 6
    assert (client.hgetall("dramatiq:mail.msgs"), client.lrange("dramatiq:mail", 0, -1)) == before
    assert workers.order("mail") == ids
    (log,) = tmp_path.glob("mail_*.log")
    assert "Traceback" not in log.read_text("utf-8")


def test_one_that_arrives_later_comes_behind_those_that_were_parked_by_hand(engine: Engine, workers: Workers) -> None:
    for number in (1, 2):
        workers.enqueue("mail", number, task=UNKNOWN_TASK)
    engine.park(QUEUES, Selection(states=(WAITING,)), "ana", "")
    workers.start(NAME, QUEUES)
    for number in (3, 4):
        workers.enqueue("mail", number, task=UNKNOWN_TASK)
    wait_for("they are parked", lambda: len(engine.task_ids("mail", PARKED, 10).ids) == 4)
    workers.stop_all()
    engine.replay(QUEUES, ONLY_PARKED)
    assert workers.order("mail") == [task_id(number) for number in (1, 2, 3, 4)]


def test_one_that_is_due_later_is_parked_when_it_is_due(engine: Engine, workers: Workers) -> None:
    workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, task=UNKNOWN_TASK, delay=3600)
    workers.enqueue("mail", 2, task=UNKNOWN_TASK, delay=0.2)
    wait_for("one is parked", lambda: engine.task_ids("mail", PARKED, 10).ids == (task_id(2),))
    assert engine.task_ids("mail", SCHEDULED, 10).ids == (task_id(1),)


def test_one_that_cannot_be_parked_is_kept_as_dramatiq_does(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path
) -> None:
    # Of another type, so that whoever would park into it is refused.
    client.set("backstep:dramatiq:parked:mail", "in the way")
    workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, task=UNKNOWN_TASK)
    workers.enqueue("mail", 2, 0)
    wait_for("the next one is done", lambda: workers.executions(2) == (1, 1))
    client.delete("backstep:dramatiq:parked:mail")
    assert engine.task_ids("mail", DEAD, 10).ids == (task_id(1),)
    (log,) = tmp_path.glob("mail_*.log")
    assert "can't be parked now: ResponseError" in log.read_text("utf-8")


# As other encoders write, by Redis id: the last one could be read but for a field that this Dramatiq doesn't have.
UNREADABLE = {
    "pickled": pickle.dumps({"actor_name": "work", "message_id": "p"}),
    "broken": b'{"actor_name": "work", "message_id": "b',
    "a list": b"[1, 2]",
    "nothing": b"",
    "half": b'{"message_id": "whole", "actor_name": "work", "later": 1}',
}
KNOWN_AS = ["pickled", "broken", "a list", "nothing", "whole"]


def test_what_can_not_be_read_is_parked_as_the_bytes_that_it_is(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path
) -> None:
    for place in ("mail", "mail.DQ"):
        for number, (redis_id, raw) in enumerate(UNREADABLE.items()):
            client.hset(f"dramatiq:{place}.msgs", f"{place} {redis_id}", raw)
            client.rpush(f"dramatiq:{place}", f"{place} {redis_id}")
            if place == "mail":  # taken at the same time as what can't be read
                workers.enqueue("mail", number, 0)
    before = client.hgetall("dramatiq:mail.DQ.msgs"), client.lrange("dramatiq:mail.DQ", 0, -1)
    ids = {f"{place} {known}" for place in ("mail", "mail.DQ") for known in KNOWN_AS[:-1]} | {"whole"}
    name = workers.start(NAME, QUEUES)
    wait_for("all are parked", lambda: client.zcard("backstep:dramatiq:parked:mail") == 10)
    wait_for("the others are done", lambda: workers.executions(4) == (1, 1))
    assert [workers.executions(number) for number in range(4)] == [(1, 1)] * 4
    assert client.hgetall("backstep:dramatiq:parked:mail:why") == {name.encode(): b"the worker's release can't read it"}
    assert set(engine.task_ids("mail", PARKED, 20).ids) == ids
    assert {(one.state, one.task, one.count) for one in engine.named_tasks(QUEUES)} == {
        (PARKED, None, 8), (PARKED, "work", 2)
    }  # fmt: skip
    wait_for("all are acknowledged", lambda: client.keys("dramatiq:__acks__.*") == [])
    assert [(worker.finished, worker.failed) for worker in engine.workers()] == [(5, 0)]
    workers.stop_all()
    assert engine.replay(QUEUES, ONLY_PARKED).count == 10
    assert (client.hgetall("dramatiq:mail.DQ.msgs"), client.lrange("dramatiq:mail.DQ", 0, -1)) == before
    lying = client.lrange("dramatiq:mail", 0, -1)
    assert [known.decode().partition(" ")[2] for known in lying] == list(UNREADABLE)
    assert client.hmget("dramatiq:mail.msgs", lying) == list(UNREADABLE.values())
    (log,) = tmp_path.glob("mail_*.log")
    assert "Traceback" not in log.read_text("utf-8")


def test_what_can_not_be_read_stays_with_its_worker_where_it_cannot_be_parked(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    client.set("backstep:dramatiq:parked:mail", "in the way")
    client.hset("dramatiq:mail.msgs", "broken", UNREADABLE["broken"])
    client.rpush("dramatiq:mail", "broken")
    name = workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, 0)
    wait_for("the next one is done", lambda: workers.executions(1) == (1, 1))
    client.delete("backstep:dramatiq:parked:mail")
    workers.kill(name)
    assert [task.id for task in engine.recover(QUEUES, [name], WAITING)] == ["broken"]
    assert client.hgetall("dramatiq:mail.msgs") == {b"broken": UNREADABLE["broken"]}


def test_it_can_be_switched_off(engine: Engine, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARK_UNKNOWN_TASKS", "no")
    workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, task=UNKNOWN_TASK)
    wait_for("it is dead", lambda: engine.task_ids("mail", DEAD, 10).ids == (task_id(1),))
