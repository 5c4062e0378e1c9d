# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a Celery worker on RabbitMQ doesn't know or can't read: it is parked as it was."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    PARKED,
    SCHEDULED,
    WAITING,
    Engine,
    Selection,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine

from tests.support.bench import UNKNOWN_TASK, task_id
from tests.support.brokers import RabbitBroker
from tests.support.celery_rabbitmq_bench import Workers
from tests.support.ledger import balance
from tests.support.rabbitmq_bench import lying_in
from tests.support.servers import wait_for

NAME = "mail/1.0-a/w1/1"
QUEUES = ["mail"]


@pytest.fixture
def engine(node: RabbitBroker) -> Iterator[Engine]:
    """Celery's engine on it."""
    with open_engine("celery_rabbitmq", node.url, 5.0) as opened:
        yield opened


@pytest.fixture
def workers(node: RabbitBroker, redis_url: str, client: redis.Redis, tmp_path: Path) -> Iterator[Workers]:
    """Starts Celery workers, and kills at the end what still runs."""
    bench = Workers(node.url, tmp_path, ledger_url=redis_url.rsplit("/", 1)[0] + "/15")
    yield bench
    bench.stop_all()


def enqueue_oddities(node: RabbitBroker) -> None:
    """What an app may send: unpacked bytes in a compressed body, a time to live, a priority, headers of its own."""
    headers: dict[str, Any] = {"lang": "py", "task": UNKNOWN_TASK, "retries": 0, "eta": None, "own": {"a": [1, None]}}
    more: dict[str, Any] = {"content_type": "application/json", "content_encoding": "utf-8"}
    with pika.BlockingConnection(pika.URLParameters(node.amqp_url)) as connection:
        channel = connection.channel()
        channel.queue_declare("mail", durable=True)
        packed = {**headers, "id": "task-1", "compression": "application/x-gzip"}
        sent = pika.BasicProperties(
            headers=packed, expiration="3600000", priority=3, timestamp=1_700_000_000, delivery_mode=1,
            correlation_id="task-1", reply_to="answers", message_id="m", type="t", app_id="letters", **more,
        )  # fmt: skip
        channel.basic_publish("", "mail", zlib.compress(b"[[1], {}, {}]", 1), sent)
        later = {**headers, "id": "task-2", "eta": "2099-01-01T00:00:00+00:00"}
        channel.basic_publish("", "mail", b"\xff no JSON", pika.BasicProperties(headers=later, **more))


def lying(node: RabbitBroker) -> list[tuple[dict[str, Any], bytes]]:
    """All that the broker has of the messages in the queue."""
    return [(vars(properties), body) for properties, body in lying_in(node.amqp_url, "mail")]


def test_they_are_parked_whole_and_come_back(engine: Engine, workers: Workers, node: RabbitBroker) -> None:
    enqueue_oddities(node)
    before = lying(node)
    worker = workers.start(NAME, QUEUES)
    wait_for("both are parked", lambda: engine.task_ids("mail", PARKED, 10).ids == ("task-1", "task-2"))
    assert workers.stop(worker) == 0
    assert lying(node) == []
    assert engine.replay(QUEUES, Selection(states=(PARKED,))).after == {WAITING: 1, SCHEDULED: 1}
    assert lying(node) == before


def test_what_can_not_be_read_is_parked_as_the_bytes_that_it_is(
    engine: Engine, workers: Workers, node: RabbitBroker
) -> None:
    named = {"lang": "py", "task": "ledger_tasks.work", "retries": 0, "eta": None}
    sent = [
        ("pickled", b"\x80\x04cos\n_exit\n.", named, "application/x-python-serialize"),
        ("broken", b"[[1], {", named, "application/json"),
        ("nameless", b"\xff\xfe", {}, "application/json"),
        ("another program's", b"[1, 2]", {}, "application/json"),
        (None, b"{}", {}, "application/json"),
    ]
    with pika.BlockingConnection(pika.URLParameters(node.amqp_url)) as connection:
        channel = connection.channel()
        channel.queue_declare("mail", durable=True)
        for known, body, headers, content_type in sent:
            own = {**headers, "id": known} if headers else None
            properties = pika.BasicProperties(
                headers=own, content_type=content_type, content_encoding="binary", correlation_id=known
            )
            channel.basic_publish("", "mail", body, properties)
    before = lying(node)
    worker = workers.start(NAME, QUEUES)
    workers.enqueue("mail", 2, 0)
    wait_for("all are parked", lambda: engine.queue_states(QUEUES)[0].parked == len(sent))
    *ids, last = engine.task_ids("mail", PARKED, 10).ids
    assert ids == [known for known, *_rest in sent[:-1]]
    assert last.startswith("unreadable-")
    wait_for("the next one is done", lambda: workers.executions(2) == (1, 1))
    assert workers.stop(worker) == 0
    assert engine.replay(QUEUES, Selection(states=(PARKED,))).after == {WAITING: len(sent)}
    assert lying(node) == before


def test_one_that_arrives_later_comes_behind_those_that_were_parked_by_hand(engine: Engine, workers: Workers) -> None:
    for number in (1, 2):
        workers.enqueue("mail", number, task=UNKNOWN_TASK)
    engine.park(QUEUES, Selection(states=(WAITING,)), "ana", "")
    worker = workers.start(NAME, QUEUES)
    for number in (3, 4):
        workers.enqueue("mail", number, task=UNKNOWN_TASK)
    workers.enqueue("mail", 5, 0)
    wait_for("the worker has come past them", lambda: workers.executions(5) == (1, 1))
    assert balance(engine, workers.ledger_url, QUEUES).balanced
    assert workers.stop(worker) == 0
    engine.replay(QUEUES, Selection(states=(PARKED,)))
    assert workers.order("mail") == [task_id(number) for number in (1, 2, 3, 4)]


@pytest.mark.parametrize("dead_letters", [True, False])
def test_one_that_may_not_be_parked_goes_celerys_way(
    engine: Engine, workers: Workers, node: RabbitBroker, tmp_path: Path, dead_letters: bool
) -> None:
    node.api("PUT", "users/narrow", {"password": "s3cret", "tags": ""})
    rights = {"configure": "^(?!backstep.parked).*", "write": ".*", "read": ".*"}
    node.api("PUT", "permissions/%2F/narrow", rights)
    url = node.url.replace("guest:guest@", "narrow:s3cret@")
    narrow = Workers(url, tmp_path, ledger_url=workers.ledger_url)
    with pika.BlockingConnection(pika.URLParameters(node.amqp_url)) as connection:
        connection.channel().queue_declare("dead", durable=True)
    if dead_letters:
        to = {"dead-letter-exchange": "", "dead-letter-routing-key": "dead"}
        node.api("PUT", "policies/%2F/dead", {"pattern": "^mail$", "apply-to": "queues", "definition": to})
    try:
        narrow.start(NAME, QUEUES)
        workers.enqueue("mail", 1, task=UNKNOWN_TASK)
        workers.enqueue("mail", 2, 0)
        wait_for("the next one is done", lambda: workers.executions(2) == (1, 1))
    finally:
        narrow.stop_all()
        node.api("DELETE", "users/narrow")
        if dead_letters:
            node.api("DELETE", "policies/%2F/dead")
    found = [str((properties.headers or {})["id"]) for properties, _body in lying_in(node.amqp_url, "dead")]
    assert found == ([task_id(1)] if dead_letters else [])
    (log,) = tmp_path.glob("mail_*.log")
    said = log.read_text("utf-8")
    assert "Task task-1 can't be parked (the worker's release doesn't know it): AccessRefused" in said
    assert "s3cret" not in said


def test_it_can_be_switched_off(engine: Engine, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARK_UNKNOWN_TASKS", "no")
    workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, task=UNKNOWN_TASK)
    workers.enqueue("mail", 2, 0)
    wait_for("the next one is done", lambda: workers.executions(2) == (1, 1))
    assert balance(engine, workers.ledger_url, QUEUES).lost == {task_id(1)}
