# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gates in plain consumers of RabbitMQ: what can't be parked, books that can't be read, and messages of any kind."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.books import GATES_BOOK
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import PARKED, Engine, Selection
from ansible_collections.backstep.workers.plugins.module_utils._queue.gating import set_gates
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.gates import Gate
from ansible_collections.backstep.workers.plugins.module_utils._waiting.deadline import Deadline

from tests.support.bench import TASK, UNKNOWN_TASK, task_id
from tests.support.brokers import RabbitBroker
from tests.support.rabbitmq_bench import Workers, lying_in
from tests.support.servers import wait_for

NAME = "mail/1.0-a/w1/1"
QUEUES = ["mail"]


@pytest.fixture
def workers(node: RabbitBroker, redis_url: str, client: Any, tmp_path: Path) -> Iterator[Workers]:
    """Starts consumers on the emptied node, and kills at the end what still runs."""
    bench = Workers(node.url, tmp_path, ledger_url=redis_url.rsplit("/", 1)[0] + "/15")
    yield bench
    bench.stop_all()


@pytest.fixture
def engine(node: RabbitBroker, workers: Workers) -> Iterator[Engine]:
    """The engine on the node."""
    with open_engine("rabbitmq", node.url, 5.0) as opened:
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


def close(engine: Engine, task: str = TASK) -> None:
    """Have it written that none of these pass."""
    engine.write_book(GATES_BOOK, {task: Gate(task, 0.0, "ana", time.time()).line})


def log_of(tmp_path: Path) -> str:
    (log,) = tmp_path.glob("mail_*.log")
    return log.read_text("utf-8")


def wait_until_one_waits(tmp_path: Path) -> None:
    wait_for("it waits", lambda: f"A task of {TASK} waits" in log_of(tmp_path))


def parked(engine: Engine) -> tuple[str, ...]:
    return engine.task_ids("mail", PARKED, 10).ids


def test_what_may_not_be_parked_waits_and_passes_when_its_gate_opens(
    engine: Engine, workers: Workers, narrow: Workers, node: RabbitBroker, tmp_path: Path
) -> None:
    refuse(node, "parked")
    close(engine)
    narrow.start(NAME, QUEUES)
    workers.enqueue("mail", 1, 0)
    wait_until_one_waits(tmp_path)
    (state,) = engine.queue_states(QUEUES)
    assert (state.waiting, state.executing, workers.executions(1)) == (1, 0, (0, 0))
    set_gates(engine, QUEUES, {TASK: None}, Deadline(30).wait_until)
    wait_for("it is done", lambda: workers.executions(1) == (1, 1))


def test_what_may_not_be_parked_is_given_back_by_a_worker_that_stops(
    engine: Engine, workers: Workers, narrow: Workers, node: RabbitBroker, tmp_path: Path
) -> None:
    refuse(node, "parked")
    close(engine)
    name = narrow.start(NAME, QUEUES)
    workers.enqueue("mail", 1, 0)
    wait_until_one_waits(tmp_path)
    assert narrow.stop(name) == 0
    assert (workers.order("mail"), workers.executions(1)) == ([task_id(1)], (0, 0))
    assert "s3cret" not in log_of(tmp_path)


def test_what_is_taken_before_the_book_could_be_read_waits(engine: Engine, workers: Workers, tmp_path: Path) -> None:
    close(engine)
    workers.enqueue("mail", 1, 0)
    with pika.BlockingConnection(pika.URLParameters(workers.client_url)) as somebody:
        somebody.channel().queue_declare("backstep.lock.book.gates", exclusive=True)
        workers.start(NAME, QUEUES)
        wait_until_one_waits(tmp_path)
        assert [worker.gates for worker in engine.workers()] == [None]
    wait_for("it is parked", lambda: parked(engine) == (task_id(1),))
    assert workers.executions(1) == (0, 0)


def test_a_user_that_may_not_read_the_book_keeps_no_gates(
    engine: Engine, workers: Workers, narrow: Workers, node: RabbitBroker, tmp_path: Path
) -> None:
    refuse(node, "book")
    close(engine)
    narrow.start(NAME, QUEUES)
    workers.enqueue("mail", 1, 0)
    wait_for("it is done", lambda: workers.executions(1) == (1, 1))
    assert [worker.gates for worker in engine.workers()] == [None]
    assert "keeps no gates" in log_of(tmp_path)


def test_an_unknown_task_that_may_not_be_parked_is_the_programs(
    engine: Engine, workers: Workers, narrow: Workers, node: RabbitBroker
) -> None:
    refuse(node, "parked")
    narrow.start(NAME, QUEUES)
    workers.enqueue("mail", 1, task=UNKNOWN_TASK)
    wait_for("it has failed", lambda: engine.workers()[0].failed == 1)


def test_what_can_not_be_read_is_parked_as_the_bytes_that_it_is(
    engine: Engine, workers: Workers, node: RabbitBroker
) -> None:
    name = workers.start(NAME, QUEUES)
    sent = [(f"{number}", raw) for number, raw in enumerate((b"[1", b"\x80\xff", b""))]
    with pika.BlockingConnection(pika.URLParameters(node.amqp_url)) as connection:
        for known, raw in sent:
            connection.channel().basic_publish("", "mail", raw, pika.BasicProperties(type=TASK, message_id=known))
    workers.enqueue("mail", 9, 0)
    wait_for("the next one is done", lambda: workers.executions(9) == (1, 1))
    assert parked(engine) == ("0", "1", "2")
    lying = lying_in(node.amqp_url, "backstep.parked.mail")
    kept = [json.loads(properties.headers["backstep-kept"]) for properties, _body in lying]
    assert {(one["owner"], one["reason"]) for one in kept} == {(name, "the worker's release can't read it")}
    assert workers.stop(name) == 0
    assert engine.replay(QUEUES, Selection(states=(PARKED,))).count == 3
    assert [(properties.message_id, body) for properties, body in lying_in(node.amqp_url, "mail")] == sent


def test_a_gate_is_kept_to_while_a_long_task_is_executed(engine: Engine, workers: Workers) -> None:
    workers.start(NAME, ["mail", "other"])
    workers.enqueue("mail", 1, 60)
    wait_for("it executes", lambda: workers.executions(1) == (1, 0))
    workers.enqueue("other", 2, 0, task=UNKNOWN_TASK)
    gate = Gate(TASK, 0.0, "ana", time.time())
    set_gates(engine, QUEUES, {TASK: gate}, Deadline(30).wait_until)  # which waits for what the worker tells
    assert workers.executions(1) == (1, 0)


def test_messages_come_back_as_they_were_sent(engine: Engine, workers: Workers, node: RabbitBroker) -> None:
    close(engine)
    sent = pika.BasicProperties(
        message_id="ä-1", type=TASK, headers={"x": [1, "ä"]}, expiration="60000", priority=3, timestamp=12,
        correlation_id="c", content_type="text/plain", delivery_mode=1,
    )  # fmt: skip
    name = workers.start(NAME, ["mail", "other"])
    with pika.BlockingConnection(pika.URLParameters(workers.client_url)) as connection:
        channel = connection.channel()
        for queue in ("mail", "other"):
            channel.basic_publish("", queue, b'[ 1e9,  "\\u00e4" ]', sent)
        channel.basic_publish("", "mail", b"[]", pika.BasicProperties(type=UNKNOWN_TASK))
    wait_for("all are parked", lambda: [state.parked for state in engine.queue_states(["mail", "other"])] == [2, 1])
    assert engine.parked_by(["mail", "other"]) == {f"gate {TASK}", name}
    for properties, _body in lying_in(node.amqp_url, "backstep.parked.mail"):
        assert (properties.expiration, properties.delivery_mode) == (None, 2)
        assert json.loads(properties.headers["backstep-kept"])["place"] == "mail"
    assert workers.stop(name) == 0  # if it were killed now, it might not have let go of them yet
    assert engine.replay(["mail", "other"], Selection(states=(PARKED,))).count == 3
    (first, body), (second, _body) = lying_in(node.amqp_url, "mail")
    assert (vars(first), body) == (vars(sent), b'[ 1e9,  "\\u00e4" ]')
    assert (second.type, bool(second.message_id)) == (UNKNOWN_TASK, True)  # it had no id, by which it could be moved
    assert [properties.message_id for properties, _body in lying_in(node.amqp_url, "other")] == ["ä-1"]
