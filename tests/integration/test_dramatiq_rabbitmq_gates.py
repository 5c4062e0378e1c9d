# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gates in Dramatiq's workers on RabbitMQ: what is held and can't be parked now, and books that can't be read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.books import GATES_BOOK, digest
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import PARKED, Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.gates import Gate

from tests.support.bench import TASK, task_id
from tests.support.brokers import RabbitBroker
from tests.support.dramatiq_rabbitmq_bench import Workers
from tests.support.rabbitmq_bench import lying_in
from tests.support.servers import RabbitPorts, set_rabbitmq_disk_limit, wait_for

NAME = "mail/1.0-a/w1/1"
QUEUES = ["mail"]


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


@pytest.fixture
def narrow(node: RabbitBroker, workers: Workers, tmp_path: Path) -> Iterator[Workers]:
    """Starts workers whose user may do nothing with queues of Backstep's named in ``refuse``."""
    node.api("PUT", "users/narrow", {"password": "s3cret", "tags": ""})
    bench = Workers(node.url.replace("guest:guest@", "narrow:s3cret@"), tmp_path, ledger_url=workers.ledger_url)
    yield bench
    bench.stop_all()
    node.api("DELETE", "users/narrow")


def refuse(node: RabbitBroker, prefix: str) -> None:
    rule = f"^(?!backstep[.]{prefix}).*"
    node.api("PUT", "permissions/%2F/narrow", {"configure": rule, "write": rule, "read": rule})


def close(engine: Engine) -> None:
    engine.write_book(GATES_BOOK, {TASK: Gate(TASK, 0.0, "ana", time.time()).line})


def wait_until_one_waits(tmp_path: Path) -> None:
    (log,) = tmp_path.glob("mail_*.log")
    wait_for("it waits", lambda: f"A task of {TASK} waits" in log.read_text("utf-8"))


def test_what_is_held_while_rabbitmq_takes_no_message_is_parked_once(
    engine: Engine, workers: Workers, node: RabbitBroker, home: Path, ports: RabbitPorts, tmp_path: Path
) -> None:
    close(engine)
    workers.enqueue("mail", 1, 0)
    set_rabbitmq_disk_limit(home, ports, "900000GB")
    name = workers.start(NAME, QUEUES)
    wait_until_one_waits(tmp_path)
    set_rabbitmq_disk_limit(home, ports, "1MB")
    wait_for("it is parked", lambda: engine.task_ids("mail", PARKED, 10).ids)
    assert workers.stop(name) == 0  # if it were killed now, it might not have let go of it yet
    assert len(lying_in(node.amqp_url, "backstep.parked.mail")) == 1
    assert (workers.order("mail"), workers.executions(1)) == ([], (0, 0))


@pytest.mark.parametrize("refused", ["parked", "(parked|worker)"])
def test_a_gate_that_opens_before_a_task_is_parked_lets_it_pass(
    engine: Engine, workers: Workers, narrow: Workers, node: RabbitBroker, tmp_path: Path, refused: str
) -> None:
    refuse(node, refused)  # a worker that can't tell what it does follows the book as well
    close(engine)
    narrow.start(NAME, QUEUES)
    for number in (1, 2):
        workers.enqueue("mail", number, 0)
    wait_until_one_waits(tmp_path)
    engine.write_book(GATES_BOOK, {TASK: None})
    wait_for("they are done", lambda: all(workers.executions(number) == (1, 1) for number in (1, 2)))


def test_what_cannot_be_parked_is_given_back_by_a_worker_that_stops(
    engine: Engine, workers: Workers, narrow: Workers, node: RabbitBroker, tmp_path: Path
) -> None:
    refuse(node, "parked")
    close(engine)
    name = narrow.start(NAME, QUEUES)
    workers.enqueue("mail", 1, 0)
    wait_until_one_waits(tmp_path)
    assert narrow.stop(name) == 0
    assert (workers.order("mail"), workers.executions(1)) == ([task_id(1)], (0, 0))


def test_what_is_taken_before_the_book_could_be_read_waits(engine: Engine, workers: Workers, tmp_path: Path) -> None:
    close(engine)
    workers.enqueue("mail", 1, 0)
    with pika.BlockingConnection(pika.URLParameters(workers.client_url)) as somebody:
        somebody.channel().queue_declare("backstep.lock.book.gates", exclusive=True)
        workers.start(NAME, QUEUES)
        wait_until_one_waits(tmp_path)
        assert [worker.gates for worker in engine.workers()] == [None]
    wait_for("it is parked", lambda: engine.task_ids("mail", PARKED, 10).ids == (task_id(1),))
    assert workers.executions(1) == (0, 0)


@pytest.mark.parametrize("refused", ["lock", "book"])
def test_a_user_that_may_not_read_the_book_keeps_no_gates(
    engine: Engine, workers: Workers, narrow: Workers, node: RabbitBroker, tmp_path: Path, refused: str
) -> None:
    refuse(node, refused)
    close(engine)
    narrow.start(NAME, QUEUES)
    workers.enqueue("mail", 1, 0)
    wait_for("it is done", lambda: workers.executions(1) == (1, 1))
    assert [worker.gates for worker in engine.workers()] == [None]
    (log,) = tmp_path.glob("mail_*.log")
    assert ("keeps no gates" in log.read_text("utf-8"), "s3cret" in log.read_text("utf-8")) == (True, False)
    assert TASK in engine.read_book(GATES_BOOK)  # nobody has left it locked


def test_no_error_is_logged_while_nobody_has_set_a_gate(engine: Engine, workers: Workers, home: Path) -> None:
    workers.start(NAME, QUEUES)
    wait_for("it keeps gates", lambda: engine.workers()[0].gates == digest({}))
    close(engine)
    wait_for("it has looked again", lambda: engine.workers()[0].gates == digest(engine.read_book(GATES_BOOK)))
    (log,) = (home / "log").glob("backstep@localhost.log")
    assert "no queue 'backstep.book.gates'" not in log.read_text("utf-8")
