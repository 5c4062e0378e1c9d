# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a Dramatiq worker on RabbitMQ does with tasks whose actor it doesn't know: they are parked, as they were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    DEAD,
    PARKED,
    WAITING,
    Engine,
    Selection,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine

from tests.support.bench import UNKNOWN_TASK, task_id
from tests.support.brokers import RabbitBroker
from tests.support.dramatiq_rabbitmq_bench import Workers
from tests.support.ledger import balance
from tests.support.rabbitmq_bench import lying_in
from tests.support.servers import wait_for

NAME = "mail/1.0-a/w1/1"
QUEUES = ["mail"]
ONLY_PARKED = Selection(states=(PARKED,))


@pytest.fixture
def workers(node: RabbitBroker, redis_url: str, client: Any, tmp_path: Path) -> Iterator[Workers]:
    """Starts Dramatiq workers on the emptied node, and kills at the end what still runs."""
    bench = Workers(node.url, tmp_path, ledger_url=redis_url.rsplit("/", 1)[0] + "/15")
    yield bench
    bench.stop_all()


@pytest.fixture
def engine(node: RabbitBroker, workers: Workers) -> Iterator[Engine]:
    """The engine on the node."""
    with open_engine("dramatiq_rabbitmq", node.url, 5.0) as opened:
        yield opened


def messages(node: RabbitBroker, queue: str) -> list[tuple[dict[str, Any], bytes]]:
    """What lies in a queue."""
    return [(vars(properties), body) for properties, body in lying_in(node.amqp_url, queue)]


def test_they_are_parked_whole_and_come_back_in_their_old_order(
    engine: Engine, workers: Workers, node: RabbitBroker, tmp_path: Path
) -> None:
    # More than its worker takes ahead.
    ids = [workers.enqueue("mail", number, 0.5, task=UNKNOWN_TASK) for number in range(5)]
    (_properties, body), *_others = messages(node, "mail")
    # As another producer might write it.
    body = body.replace(b"task-0", b"task-9").replace(b":", b" :  ")
    properties = pika.BasicProperties(
        priority=3, headers={"trace": "a"}, expiration="3600000", content_type="text/plain", delivery_mode=1
    )
    with pika.BlockingConnection(pika.URLParameters(node.amqp_url)) as connection:
        connection.channel().basic_publish("", "mail", body, properties)
    before = messages(node, "mail")
    name = workers.start(NAME, QUEUES)
    wait_for("all are parked", lambda: len(engine.task_ids("mail", PARKED, 10).ids) == 6)
    assert balance(engine, workers.ledger_url, QUEUES).listed >= set(ids)
    kept = [json.loads(parked["headers"]["backstep-kept"]) for parked, _body in messages(node, "backstep.parked.mail")]
    assert {(one["owner"], one["reason"]) for one in kept} == {(name, "the worker's release doesn't know it")}
    assert [(worker.finished, worker.failed) for worker in engine.workers()] == [(0, 0)]
    assert workers.stop(name) == 0
    assert messages(node, "mail") == messages(node, "mail.XQ") == []
    assert engine.replay(QUEUES, ONLY_PARKED).count == 6
    assert messages(node, "mail") == before
    (log,) = tmp_path.glob("mail_*.log")
    assert "Traceback" not in log.read_text("utf-8")


def test_one_that_arrives_later_comes_behind_those_that_were_parked_by_hand(engine: Engine, workers: Workers) -> None:
    workers.enqueue("mail", 1, task=UNKNOWN_TASK)
    engine.park(QUEUES, Selection(states=(WAITING,)), "ana", "")
    name = workers.start(NAME, QUEUES)
    for number in (2, 3):
        workers.enqueue("mail", number, task=UNKNOWN_TASK, delay=0.2 * (number - 2))
    wait_for("they are parked", lambda: len(engine.task_ids("mail", PARKED, 10).ids) == 3)
    assert workers.stop(name) == 0
    engine.replay(QUEUES, ONLY_PARKED)
    assert workers.order("mail") == [task_id(number) for number in (1, 2, 3)]


def test_one_that_may_not_be_parked_is_kept_as_dramatiq_does(
    engine: Engine, workers: Workers, node: RabbitBroker, tmp_path: Path
) -> None:
    node.api("PUT", "users/narrow", {"password": "s3cret", "tags": ""})
    rights = {"configure": "^(?!backstep.parked).*", "write": ".*", "read": ".*"}
    node.api("PUT", "permissions/%2F/narrow", rights)
    url = node.url.replace("guest:guest@", "narrow:s3cret@")
    narrow = Workers(url, tmp_path, ledger_url=workers.ledger_url)
    try:
        narrow.start(NAME, QUEUES)
        workers.enqueue("mail", 1, task=UNKNOWN_TASK)
        workers.enqueue("mail", 2, 0)
        wait_for("the next one is done", lambda: workers.executions(2) == (1, 1))
        wait_for("it is dead", lambda: engine.task_ids("mail", DEAD, 10).ids == (task_id(1),))
    finally:
        narrow.stop_all()
        node.api("DELETE", "users/narrow")
    assert engine.task_ids("mail", PARKED, 10).ids == ()
    (log,) = tmp_path.glob("mail_*.log")
    assert "can't be parked now: ChannelClosedByBroker" in log.read_text("utf-8")
    assert "s3cret" not in log.read_text("utf-8")


def test_what_can_not_be_read_is_parked_as_the_bytes_that_it_is(
    engine: Engine, workers: Workers, node: RabbitBroker, tmp_path: Path
) -> None:
    workers.enqueue("mail", 0, 0)  # so that the queues are there
    unreadable = [b"\x80\x04}.", b'{"actor_name": "work", "message_id": "b', b"[1, 2]", b""]
    properties = pika.BasicProperties(priority=3, headers={"trace": "a"}, expiration="3600000")
    with pika.BlockingConnection(pika.URLParameters(node.amqp_url)) as connection:
        for place in ("mail", "mail.DQ"):
            for body in [*unreadable, json.dumps({"message_id": place}).encode()]:
                connection.channel().basic_publish("", place, body, properties)
    before = messages(node, "mail")[1:], messages(node, "mail.DQ")
    name = workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, 0)
    wait_for("the next one is done", lambda: workers.executions(1) == (1, 1))
    wait_for("all are parked", lambda: engine.queue_states(QUEUES)[0].parked == 10)
    ids = engine.task_ids("mail", PARKED, 20).ids
    assert {known for known in ids if not known.startswith("unreadable-")} == {"mail", "mail.DQ"}
    assert len(ids) == 10
    kept = [json.loads(parked["headers"]["backstep-kept"]) for parked, _body in messages(node, "backstep.parked.mail")]
    assert {(one["owner"], one["reason"]) for one in kept} == {(name, "the worker's release can't read it")}
    wait_for("they count", lambda: [(worker.finished, worker.failed) for worker in engine.workers()] == [(2, 0)])
    assert workers.stop(name) == 0
    assert messages(node, "mail") == messages(node, "mail.DQ") == messages(node, "mail.XQ") == []
    assert engine.replay(QUEUES, ONLY_PARKED).count == 10
    assert (messages(node, "mail"), messages(node, "mail.DQ")) == before
    (log,) = tmp_path.glob("mail_*.log")
    assert log.read_text("utf-8").count("this release can't read it") == 10


def test_it_can_be_switched_off(engine: Engine, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARK_UNKNOWN_TASKS", "no")
    workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, task=UNKNOWN_TASK)
    wait_for("it is dead", lambda: engine.task_ids("mail", DEAD, 10).ids == (task_id(1),))
