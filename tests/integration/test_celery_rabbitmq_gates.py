# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a Celery worker on RabbitMQ does when it can't read the gates, and how it follows the book of them."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import kombu
import pika
import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.books import GATES_BOOK, digest
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import PARKED, WAITING, Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.gates import Gate

from tests.support.bench import FAILING_TASK, REPORTERS, TASK, task_id
from tests.support.brokers import RabbitBroker
from tests.support.celery_rabbitmq_bench import Workers
from tests.support.rabbitmq_bench import lying_in
from tests.support.servers import RabbitPorts, set_rabbitmq_disk_limit, wait_for

NAME = "mail/1.0-a/w1/1"
QUEUES = ["mail"]
CLOSED = {TASK: Gate(TASK, 0.0, "ana", time.time()).line}


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


@pytest.fixture(params=["amqp", "pika"])
def follower(request: pytest.FixtureRequest, node: RabbitBroker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Follows the book by one of the client libraries: what it is, and how it opens a channel."""
    monkeypatch.syspath_prepend(str(REPORTERS))
    following = importlib.import_module("backstep_gates").Follower
    if request.param == "amqp":
        with kombu.Connection(node.amqp_url) as connection:
            found = following(lambda told: told.message_count, lambda got: None if got is None else got.body)
            yield found, connection.channel
    else:
        with pika.BlockingConnection(pika.URLParameters(node.amqp_url)) as connection:
            yield following(lambda told: told.method.message_count, lambda got: got[2]), connection.channel


@contextmanager
def narrow(workers: Workers, rights: dict[str, str], folder: Path) -> Iterator[Workers]:
    """Starts workers whose user has no more rights than these."""
    node = RabbitBroker(workers.url)
    node.api("PUT", "users/narrow", {"password": "s3cret", "tags": ""})
    node.api("PUT", "permissions/%2F/narrow", {"configure": ".*", "write": ".*", "read": ".*", **rights})
    bench = Workers(node.url.replace("guest:guest@", "narrow:s3cret@"), folder, ledger_url=workers.ledger_url)
    try:
        yield bench
    finally:
        bench.stop_all()
        node.api("DELETE", "users/narrow")


def log(folder: Path) -> str:
    """What the worker has written."""
    return (folder / f"{NAME.replace('/', '_')}.log").read_text("utf-8")


def test_what_is_taken_before_the_book_could_be_read_waits(
    engine: Engine, workers: Workers, node: RabbitBroker, tmp_path: Path
) -> None:
    engine.write_book(GATES_BOOK, CLOSED)
    with pika.BlockingConnection(pika.URLParameters(node.amqp_url)) as other:
        other.channel().queue_declare("backstep.lock.book.gates", exclusive=True)
        workers.start(NAME, QUEUES)
        workers.enqueue("mail", 1, 0)
        workers.enqueue("mail", 2, task=FAILING_TASK)
        waiting = {task_id(1), task_id(2)}
        wait_for("both wait", lambda: all(f"Task {known} waits" in log(tmp_path) for known in waiting))
        assert set(engine.task_ids("mail", WAITING, 10).ids) == waiting
        assert engine.workers()[0].gates is None
    wait_for("the free one is executed", lambda: workers.executions(2) == (1, 0))
    wait_for("the other one is parked", lambda: engine.task_ids("mail", PARKED, 10).ids == (task_id(1),))
    assert workers.executions(1) == (0, 0)
    assert engine.workers()[0].gates == digest(CLOSED)


def test_what_is_held_while_rabbitmq_takes_no_message_is_parked_once(
    engine: Engine, workers: Workers, node: RabbitBroker, home: Path, ports: RabbitPorts, tmp_path: Path
) -> None:
    engine.write_book(GATES_BOOK, CLOSED)
    workers.enqueue("mail", 1, 0)
    set_rabbitmq_disk_limit(home, ports, "900000GB")
    name = workers.start(NAME, QUEUES, wait=False)
    wait_for("it was tried twice", lambda: log(tmp_path).count("be parked now") > 1, 60)
    set_rabbitmq_disk_limit(home, ports, "1MB")
    wait_for("it is parked", lambda: engine.task_ids("mail", PARKED, 10).ids)
    assert workers.stop(name) == 0  # if it were killed now, it might not have let go of it yet
    assert len(lying_in(node.amqp_url, "backstep.parked.mail")) == 1
    assert (workers.order("mail"), workers.executions(1)) == ([], (0, 0))


@pytest.mark.parametrize("right", ["configure", "read"])
def test_a_worker_that_may_not_read_the_book_says_so(
    engine: Engine, workers: Workers, tmp_path: Path, right: str
) -> None:
    with narrow(workers, {right: r"^(?!backstep\.(lock\.)?book).*"}, tmp_path) as started:
        started.start(NAME, QUEUES)
        (seen,) = engine.workers()
        assert (seen.gates, seen.failed) == (None, 0)
        workers.enqueue("mail", 1, 0)
        wait_for("it is done", lambda: workers.executions(1) == (1, 1))
    assert "keeps no gates" in log(tmp_path)
    assert "s3cret" not in log(tmp_path)
    assert engine.read_book(GATES_BOOK) == {}  # nobody has left it locked


def test_a_worker_that_cannot_tell_follows_the_book_all_the_same(
    engine: Engine, workers: Workers, tmp_path: Path
) -> None:
    engine.write_book(GATES_BOOK, CLOSED)
    with narrow(workers, {"configure": r"^(?!backstep\.(worker|parked)).*"}, tmp_path) as started:
        started.start(NAME, QUEUES)
        workers.enqueue("mail", 1, 0)
        wait_for("it waits", lambda: f"Task {task_id(1)} waits" in log(tmp_path))
        engine.write_book(GATES_BOOK, {TASK: None})
        wait_for("it is done", lambda: workers.executions(1) == (1, 1))


def test_the_book_is_followed_through_all_its_changes(
    engine: Engine, follower: Any, node: RabbitBroker
) -> None:
    book, channel = follower
    with pytest.raises(LookupError):
        book.line(TASK)
    for number in range(25):  # it is written anew in between
        engine.write_book(GATES_BOOK, {TASK: str(number), f"other {number}": "1"})
        if number % 3 == 0:
            book.look(channel)
            assert (book.line(TASK), book.digest) == (str(number), digest(engine.read_book(GATES_BOOK)))
    engine.write_book(GATES_BOOK, {TASK: None})
    book.look(channel)
    assert book.line(TASK) is None
    with pika.BlockingConnection(pika.URLParameters(node.amqp_url)) as other:
        others = other.channel()
        others.queue_declare("backstep.lock.book.gates", exclusive=True)
        others.basic_publish("", "backstep.book.gates", b'{"late": "1"}')
        others.queue_declare("backstep.book.gates", durable=True)  # by whose answer it is there
        book.look(channel)
        assert (book.line("late"), book.is_reading) == (None, False)
    wait_for("it is read", lambda: book.look(channel) or book.line("late"))


def test_no_other_state_is_told_while_a_task_is_parked_for_this_one(engine: Engine, follower: Any) -> None:
    book, channel = follower
    engine.write_book(GATES_BOOK, CLOSED)
    book.look(channel)
    engine.write_book(GATES_BOOK, {TASK: None})
    looking = Thread(target=book.look, args=(channel,))
    with book.steady(TASK, CLOSED[TASK]) as still:
        looking.start()
        looking.join(0.5)
        assert (still, looking.is_alive(), book.digest) == (True, True, digest(CLOSED))
    looking.join(10)
    assert book.digest == digest({})
    with book.steady(TASK, CLOSED[TASK]) as still:
        assert not still
