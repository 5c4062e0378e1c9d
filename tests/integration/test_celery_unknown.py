# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a Celery worker on Redis doesn't know or can't read: it is parked as it was."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import PARKED, WAITING, Engine, Selection
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine

from tests.support.bench import UNKNOWN_TASK, task_id
from tests.support.celery_bench import Workers
from tests.support.ledger import balance
from tests.support.servers import wait_for

NAME = "mail/1.0-a/w1/1"
QUEUES = ["mail"]
LISTS = ["mail", *(f"mail\x06\x16{priority}" for priority in (3, 6, 9))]


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


def waiting_messages(client: redis.Redis) -> dict[str, dict[str, object]]:
    """The messages by id, with the list that each is in."""
    found = {}
    for key in LISTS:
        for raw in client.lrange(key, 0, -1):
            message = json.loads(raw)
            found[message["headers"]["id"]] = {"list": key, **message}
    return found


def test_they_are_parked_whole_and_come_back_in_their_old_order(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    for number in range(6):
        workers.enqueue("mail", number, 0.5, task=UNKNOWN_TASK, urgent=number % 2 == 1)
    before = waiting_messages(client)
    order = workers.order("mail")
    workers.start(NAME, QUEUES)
    wait_for("all are parked", lambda: len(engine.task_ids("mail", PARKED, 10).ids) == 6)
    wait_for("the worker has let go of them", lambda: not client.hlen("unacked"))
    assert not client.zcard("unacked_index")
    assert balance(engine, workers.ledger_url, QUEUES).balanced
    workers.stop_all()
    assert engine.replay(QUEUES, Selection(states=(PARKED,))).count == 6
    assert (waiting_messages(client), workers.order("mail")) == (before, order)


def test_one_that_arrives_later_comes_behind_those_that_were_parked_by_hand(engine: Engine, workers: Workers) -> None:
    for number in (1, 2):
        workers.enqueue("mail", number, task=UNKNOWN_TASK)
    engine.park(QUEUES, Selection(states=(WAITING,)), "ana", "")
    workers.start(NAME, QUEUES)
    workers.enqueue("mail", 3, task=UNKNOWN_TASK)
    wait_for("it is parked", lambda: len(engine.task_ids("mail", PARKED, 10).ids) == 3)
    workers.stop_all()
    engine.replay(QUEUES, Selection(states=(PARKED,)))
    assert workers.order("mail") == [task_id(number) for number in (1, 2, 3)]


def test_one_that_cannot_be_parked_stays_with_its_worker_and_comes_back(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    # Of another type, so that whoever would park into it is refused.
    client.set("backstep:celery:parked:mail", "in the way")
    worker = workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, task=UNKNOWN_TASK)
    workers.enqueue("mail", 2, 0)
    wait_for("the next one is done", lambda: workers.executions(2) == (1, 1))
    client.delete("backstep:celery:parked:mail")
    assert workers.stop(worker) == 0
    assert engine.task_ids("mail", WAITING, 10).ids == (task_id(1),)


def unreadable(known: str, body: bytes, headers: dict[str, object] | None, content_type: str) -> str:
    """A message as kombu writes it, with a body that a worker of this app doesn't take."""
    properties = {
        "correlation_id": known, "delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": "mail"},
        "priority": 0, "body_encoding": "base64", "delivery_tag": f"tag of {known}",
    }  # fmt: skip
    more = {"content-encoding": "binary", "content-type": content_type, "headers": headers}
    return json.dumps({"body": base64.b64encode(body).decode(), "properties": properties, **more})


def test_what_can_not_be_read_is_parked_as_the_bytes_that_it_is(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    named: dict[str, object] = {"lang": "py", "task": "ledger_tasks.work", "retries": 0, "eta": None}
    sent = [
        unreadable("pickled", b"\x80\x04cos\n_exit\n.", {**named, "id": "pickled"}, "application/x-python-serialize"),
        unreadable("broken", b"[[1], {", {**named, "id": "broken"}, "application/json"),
        unreadable("nameless", b"\xff\xfe", {}, "application/json"),
        unreadable("another program's", b"[1, 2]", {}, "application/json"),
        unreadable("", b"{}", None, "application/json"),
    ]
    client.rpush("mail", *reversed(sent))
    worker = workers.start(NAME, QUEUES)
    workers.enqueue("mail", 2, 0)
    ids = ("pickled", "broken", "nameless", "another program's", "tag of ")
    wait_for("all are parked", lambda: set(engine.task_ids("mail", PARKED, 10).ids) == set(ids))
    wait_for("the next one is done", lambda: workers.executions(2) == (1, 1))
    wait_for("the worker has let go of them", lambda: not client.hlen("unacked"))
    assert workers.stop(worker) == 0
    assert engine.replay(QUEUES, Selection(states=(PARKED,))).count == len(sent)
    lying = [json.loads(raw) for raw in client.lrange("mail", 0, -1)]
    assert sorted(lying, key=str) == sorted(map(json.loads, sent), key=str)


def test_it_can_be_switched_off(
    engine: Engine, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARK_UNKNOWN_TASKS", "no")
    workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, task=UNKNOWN_TASK)
    workers.enqueue("mail", 2, 0)
    wait_for("the next one is done", lambda: workers.executions(2) == (1, 1))
    assert balance(engine, workers.ledger_url, QUEUES).lost == {task_id(1)}
