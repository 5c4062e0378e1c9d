# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What only RabbitMQ has: moves in two steps, looks that take, two ports, a virtual host, and a convention."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pika
import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    EXECUTING,
    PARKED,
    WAITING,
    Engine,
    Selection,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.engines import _amqp_moves as moves
from ansible_collections.backstep.workers.plugins.module_utils._queue.engines._amqp import AmqpLink
from ansible_collections.backstep.workers.plugins.module_utils._queue.engines._amqp_messages import parked_queue
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import (
    BadInput,
    BrokerRefused,
    BrokerUnreachable,
)

from tests.support.brokers import USER, Ports, RabbitBroker, server
from tests.support.documents import shown_and_tested
from tests.support.rabbitmq_bench import Workers
from tests.support.servers import free_port, own_certificate, rabbitmq_server, wait_for
from tests.support.trials import PREFIX, trial

QUEUES = ["mail"]
NAME = "mail/1.0-a/w1/1"
ONLY_WAITING, ONLY_PARKED = Selection(states=(WAITING,)), Selection(states=(PARKED,))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitBroker]:
    """One node for all."""
    with rabbitmq_server(tmp_path_factory.mktemp("rabbitmq")) as url:
        yield RabbitBroker(url)


@pytest.fixture
def broker(node: RabbitBroker) -> RabbitBroker:
    """The emptied one."""
    node.empty()
    return node


@pytest.fixture
def bench(broker: RabbitBroker, redis_url: str, client: Any, tmp_path: Path) -> Iterator[Workers]:
    """Starts consumers, and kills at the end what still runs."""
    found = Workers(broker.url, tmp_path, ledger_url=redis_url.rsplit("/", 1)[0] + "/15")
    yield found
    found.stop_all()


@pytest.fixture
def engine(broker: RabbitBroker) -> Iterator[Engine]:
    """The engine on the emptied node."""
    with open_engine("rabbitmq", broker.url, 5.0) as opened:
        yield opened


@pytest.fixture
def channel(broker: RabbitBroker) -> Iterator[Any]:
    """A producer's own channel, with the queue ``mail``."""
    with pika.BlockingConnection(pika.URLParameters(broker.amqp_url)) as connection:
        opened = connection.channel()
        opened.confirm_delivery()
        opened.queue_declare("mail", durable=True)
        yield opened


def test_the_documented_worker_is_the_one_that_is_tested() -> None:
    """But for where its tasks come from."""
    shown, tested = shown_and_tested("pika", "rabbitmq_worker.py")
    assert shown == tested != ""


def test_everything_about_a_message_comes_back(engine: Engine, broker: RabbitBroker, channel: Any) -> None:
    properties = pika.BasicProperties(
        content_type="application/x", content_encoding="gzip", headers={"a": 1, "nested": {"b": [1, "x"]}},
        delivery_mode=1, priority=3, correlation_id="c", reply_to="r", expiration="60000", message_id="7",
        timestamp=1_700_000_000, type="mail.send", user_id="guest", app_id="app",
    )  # fmt: skip
    channel.basic_publish("", "mail", bytes(range(256)), properties)
    channel.basic_publish("", "mail", b"", pika.BasicProperties(message_id="8"))
    before = broker.contents()
    engine.park(QUEUES, ONLY_WAITING, "ana", "")
    assert engine.task_ids("mail", PARKED, 10).ids == ("7", "8")
    engine.replay(QUEUES, ONLY_PARKED)
    assert broker.contents() == before


def test_what_is_parked_does_not_expire(engine: Engine, channel: Any) -> None:
    channel.basic_publish("", "mail", b"", pika.BasicProperties(message_id="7", expiration="300"))
    engine.park(QUEUES, ONLY_WAITING, "ana", "")
    channel.queue_declare("clock")
    channel.basic_publish("", "clock", b"", pika.BasicProperties(expiration="600"))
    wait_for("its time is over", lambda: not channel.queue_declare("clock", passive=True).method.message_count)
    assert engine.task_ids("mail", PARKED, 10).ids == ("7",)


def test_a_message_without_an_id_is_counted_and_stays_where_it_is(engine: Engine, channel: Any) -> None:
    channel.basic_publish("", "mail", b"")
    channel.basic_publish("", "mail", b"", pika.BasicProperties(message_id="7"))
    assert engine.park(QUEUES, ONLY_WAITING, "ana", "").ids == ("7",)
    (state,) = engine.queue_states(QUEUES)
    assert (state.waiting, state.parked) == (1, 1)


def test_tasks_are_selected_by_their_time(engine: Engine, channel: Any) -> None:
    for number in (1, 2, 3):
        channel.basic_publish("", "mail", b"", pika.BasicProperties(message_id=str(number), timestamp=number * 1000))
    chosen = Selection(states=(WAITING,), enqueued_after=1500, enqueued_before=2500)
    assert engine.park(QUEUES, chosen, "ana", "").ids == ("2",)


class _Died(BaseException):
    """In place of a mover's death, at one exact place."""


def die_before_removing(monkeypatch: pytest.MonkeyPatch, engine: Engine, move: Callable[[], object]) -> None:
    """Have a mover come to its end when it has copied, and not removed yet."""
    note = moves._note

    def die(channel: Any, queue: str, source: str, targets: Any, ids: Any) -> None:
        if not ids:
            raise _Died
        note(channel, queue, source, targets, ids)

    with monkeypatch.context() as patched:
        patched.setattr(moves, "_note", die)
        with pytest.raises(_Died):
            move()


def places(engine: Engine) -> list[str]:
    return sorted(known for state in (WAITING, PARKED, EXECUTING) for known in engine.task_ids("mail", state, 100).ids)


def test_what_a_dead_mover_has_only_copied_counts_once_and_is_finished(
    engine: Engine, bench: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = bench.fill("mail", 5)
    die_before_removing(monkeypatch, engine, lambda: engine.park(QUEUES, ONLY_WAITING, "ana", ""))
    (state,) = engine.queue_states(QUEUES)
    assert (state.waiting, state.parked, places(engine)) == (5, 0, ids)
    engine.park(QUEUES, ONLY_WAITING, "ana", "")
    (state,) = engine.queue_states(QUEUES)
    assert (state.waiting, state.parked, places(engine)) == (0, 5, ids)
    die_before_removing(monkeypatch, engine, lambda: engine.replay(QUEUES, ONLY_PARKED))
    assert places(engine) == ids
    engine.replay(QUEUES, ONLY_PARKED)
    assert (places(engine), bench.order("mail")) == (ids, ids)


def test_a_task_that_a_worker_took_from_a_dead_mover_is_told(
    engine: Engine, bench: Workers, channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.fill("mail", 3)
    die_before_removing(monkeypatch, engine, lambda: engine.park(QUEUES, ONLY_WAITING, "ana", ""))
    assert channel.basic_get("mail", auto_ack=True)[1].message_id == "task-0"
    told = engine.recover(QUEUES, [], WAITING)
    assert [(task.id, task.to, task.started) for task in told] == [("task-0", PARKED, True)]
    assert engine.task_ids("mail", PARKED, 10).ids == ("task-0", "task-1", "task-2")
    assert (engine.recover(QUEUES, [], WAITING), bench.order("mail")) == ([], [])


def test_what_was_recorded_as_copied_and_has_no_copy_stays(
    engine: Engine, bench: Workers, channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a broker's death in the middle of a transaction, which keeps each of its queues by itself."""
    ids = bench.fill("mail", 3)
    die_before_removing(monkeypatch, engine, lambda: engine.park(QUEUES, ONLY_WAITING, "ana", ""))
    assert channel.basic_get(parked_queue("mail"), auto_ack=True)[1].message_id == "task-0"
    assert engine.recover(QUEUES, [], WAITING) == []
    assert (bench.order("mail"), engine.task_ids("mail", PARKED, 10).ids) == (["task-0"], ("task-1", "task-2"))
    engine.park(QUEUES, ONLY_WAITING, "ana", "")
    die_before_removing(monkeypatch, engine, lambda: engine.replay(QUEUES, ONLY_PARKED))
    taken = channel.basic_get("mail", auto_ack=True)[1].message_id
    assert [(task.id, task.to) for task in engine.recover(QUEUES, [], WAITING)] == [(taken, PARKED)]
    assert engine.task_ids("mail", PARKED, 10).ids == (taken,)
    assert sorted([taken, *bench.order("mail")]) == ids


def test_nobody_is_told_nothing_while_another_looks(broker: RabbitBroker, bench: Workers) -> None:
    """A look takes for a moment what it looks at: the other one waits, or says that it could not find out."""
    bench.fill("mail", 3)
    one = AmqpLink(broker.url, 5.0, "")
    with open_engine("rabbitmq", broker.url, 0.5) as other:
        with one.locked("queue.mail"), pytest.raises(BrokerUnreachable):
            other.queue_states(QUEUES)
        with moves.moving(one, "mail"):
            assert other.queue_states(QUEUES)[0].waiting is None
        assert other.queue_states(QUEUES)[0].waiting == 3
    one.close()


def test_a_worker_on_two_queues_tells_what_it_has_taken_ahead(engine: Engine, bench: Workers) -> None:
    name = bench.start(NAME, ["mail", "other"])
    began = bench.enqueue("mail", 1, 60)
    wait_for("it executes", lambda: engine.executing(QUEUES))
    ahead = bench.enqueue("other", 2, 60)
    wait_for("it has both", lambda: engine.queue_states(["other"])[0].waiting == 1 and not bench.order("other"))
    bench.kill(name)
    told = engine.recover(["mail", "other"], [name], WAITING)
    assert {(task.id, task.started) for task in told} == {(began, True), (ahead, False)}


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_both_kinds_of_queue_are_parked_and_replayed(
    engine: Engine, channel: Any, kind: str
) -> None:
    channel.queue_declare("kind", durable=True, arguments={"x-queue-type": kind})
    for number in range(20):
        channel.basic_publish("", "kind", b"", pika.BasicProperties(message_id=str(number), delivery_mode=2))
    assert engine.park(["kind"], ONLY_WAITING, "ana", "").count == 20
    assert engine.task_ids("kind", WAITING, 100).ids == ()
    assert engine.replay(["kind"], ONLY_PARKED).count == 20
    wait_for("all are back", lambda: engine.queue_states(["kind"])[0].waiting == 20)
    assert sorted(map(int, engine.task_ids("kind", WAITING, 100).ids)) == list(range(20))


def test_what_is_parked_survives_a_restart(tmp_path: Path, redis_url: str, client: Any) -> None:
    ports = Ports("rabbitmq")
    with ExitStack() as parts:
        with server("rabbitmq", tmp_path, ports) as url:
            ids = Workers(url, tmp_path, ledger_url=redis_url).fill("mail", 10)
            engine = parts.enter_context(open_engine("rabbitmq", url, 5.0))
            engine.park(QUEUES, Selection(states=(WAITING,), limit=4), "ana", "")
        parts.enter_context(server("rabbitmq", tmp_path, ports))
        assert engine.task_ids("mail", PARKED, 10).ids == tuple(ids[:4])
        assert engine.task_ids("mail", WAITING, 10).ids == tuple(ids[4:])


def test_a_virtual_host_may_have_a_slash(broker: RabbitBroker, tmp_path: Path, redis_url: str, client: Any) -> None:
    broker.api("PUT", f"vhosts/{quote('a/b', safe='')}")
    try:
        url = broker.url.replace("/%2F?", "/a%2Fb?")
        Workers(url, tmp_path, ledger_url=redis_url).fill("mail", 2)
        with open_engine("rabbitmq", url, 5.0) as engine:
            assert (engine.known_queues(), engine.queue_states(QUEUES)[0].waiting) == (["mail"], 2)
    finally:
        broker.api("DELETE", f"vhosts/{quote('a/b', safe='')}")


def test_a_connection_that_ended_while_nothing_was_asked_is_made_again(broker: RabbitBroker, engine: Engine) -> None:
    engine.queue_states(QUEUES)
    (name,) = wait_for("the broker lists it", lambda: [one["name"] for one in broker.api("GET", "connections")], 30)
    broker.api("DELETE", f"connections/{quote(name, safe='')}")
    assert engine.queue_states(QUEUES)[0].waiting == 0


def test_a_lock_that_went_with_its_connection_is_not_thought_to_be_held(broker: RabbitBroker) -> None:
    one = AmqpLink(broker.url, 5.0, "")
    with one.locked("queue.mail"):
        found = wait_for("the broker lists it", lambda: [each["name"] for each in broker.api("GET", "connections")], 30)
        for name in found:
            broker.api("DELETE", f"connections/{quote(name, safe='')}")
        for _again in range(2):
            with pytest.raises(BrokerUnreachable):
                one.count("mail")
    assert one.count("mail") is None
    one.close()


def test_a_refusal_keeps_the_code_that_programs_know(broker: RabbitBroker, channel: Any) -> None:
    channel.queue_declare("backstep.theirs", exclusive=True)
    link = AmqpLink(broker.url, 5.0, "")
    with pytest.raises(BrokerRefused) as caught:
        link.count("backstep.theirs")
    assert caught.value.result()["error"]["code"] == "broker_refused"
    assert caught.value.details == {"reply_code": 405}
    link.close()


def test_a_canary_that_was_taken_without_a_word_is_gone(engine: Engine, channel: Any) -> None:
    """By a worker that has ended since, say: then another one has to be sent."""
    (known,) = engine.send_canary("mail", engine.default_canary, 1, 60)
    assert engine.canaries([known])[0].state == WAITING
    channel.basic_get("mail", auto_ack=True)
    assert engine.canaries([known])[0].state == WAITING  # a worker may just be about to note it
    wait_for("it is missed", lambda: engine.canaries([known])[0].state == "gone")


def test_workers_are_proven_and_tasks_moved_over_tls(
    tmp_path: Path, redis_url: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (certificate, key), port = own_certificate(tmp_path), free_port()
    files = [f"ssl_options.{name} = {path}" for name, path in (("keyfile", key), ("certfile", certificate))]
    with rabbitmq_server(tmp_path, f"listeners.ssl.1 = 127.0.0.1:{port}", *files) as plain:
        url = f"amqps://guest:guest@127.0.0.1:{port}/%2F?{plain.partition('?')[2]}"
        with open_engine("rabbitmq", url, 5.0) as engine, pytest.raises(BrokerUnreachable) as refused:
            engine.queue_states(QUEUES)
        assert "certificate" in str(refused.value).lower()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        bench = Workers(url, tmp_path, ledger_url=redis_url.rsplit("/", 1)[0] + "/15")
        try:
            with open_engine("rabbitmq", url, 5.0) as engine:
                bench.fill("mail", 3)
                engine.park(QUEUES, ONLY_WAITING, "ana", "")
                engine.replay(QUEUES, ONLY_PARKED)
                name = bench.start(f"{PREFIX}/1", QUEUES)
                assert trial(engine, name)[1] == "good"
        finally:
            bench.stop_all()


def test_a_node_that_hangs_is_an_error_within_the_time_out(tmp_path: Path) -> None:
    with rabbitmq_server(tmp_path) as url, open_engine("rabbitmq", url, 1.0) as engine:
        engine.queue_states(QUEUES)
        found = wait_for("it tells", lambda: RabbitBroker(url).api("GET", "nodes")[0].get("os_pid"))
        pid = int(str(found))
        os.kill(pid, signal.SIGSTOP)
        try:
            on_a_connection, on_a_new_one = [lambda: engine.queue_states(QUEUES)] * 2
            for ask in (on_a_connection, on_a_new_one, engine.workers, engine.known_queues):
                began = time.monotonic()
                with pytest.raises(BrokerUnreachable):
                    ask()
                assert time.monotonic() - began < 4
        finally:
            os.kill(pid, signal.SIGCONT)
        assert wait_for("it answers again", lambda: engine.queue_states(QUEUES))


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("redis://:s3cret@rabbit", "amqp://"),
        ("amqp://u:s3cret@rabbit/a/b", "%2F"),
        ("amqp://u:s3cret@rabbit:port/", "port"),
        ("amqp://u:s3cret@/x", "host"),
        ("amqp://u:s3cret@rabbit/x?ssl_options=y", "ssl_options"),
        ("amqp://u:s3cret@rabbit/x?management=rabbit:15672", "management"),
        ("amqp://u:pw@rabbit/x?management=http://u:s3cret@rabbit", "management"),
    ],
)
def test_a_url_that_can_not_be_used_is_refused_without_its_password(url: str, word: str) -> None:
    with pytest.raises(BadInput) as refused:
        open_engine("rabbitmq", url, 1.0)
    assert word in str(refused.value)
    assert "s3cret" not in str(refused.value.result())


def test_a_wrong_management_url_is_an_error_that_names_it(broker: RabbitBroker) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with open_engine("rabbitmq", f"{broker.amqp_url}?management={nowhere}", 1.0) as engine:
        asked = (engine.workers, engine.known_queues, lambda: engine.queue_states(QUEUES))
        for ask in (*asked, lambda: engine.check(False)):
            with pytest.raises(BrokerUnreachable) as failure:
                ask()
            assert nowhere in str(failure.value)


def test_wrong_credentials_are_refused_and_not_shown(broker: RabbitBroker) -> None:
    with open_engine("rabbitmq", broker.url.replace("guest:guest", "guest:wr0ng"), 5.0) as engine:
        for ask in (lambda: engine.check(False), lambda: engine.send_canary("mail", "x", 1, 5)):
            with pytest.raises(BrokerRefused) as failure:
                ask()
            assert "wr0ng" not in str(failure.value.result())


@pytest.mark.parametrize(
    ("tags", "rights", "missing"),
    [
        ("", (r"^backstep\.", ".*", ".*"), "management"),
        ("management", ("^$", ".*", ".*"), "configure"),
        ("management", (r"^backstep\.", "^$", ".*"), "write"),
        ("management", (r"^backstep\.", ".*", "^$"), "read"),
    ],
)
def test_a_missing_right_is_named(broker: RabbitBroker, tags: str, rights: tuple[str, ...], missing: str) -> None:
    broker.api("PUT", f"users/{USER}", {"password": "pw", "tags": tags})
    broker.api("PUT", f"permissions/%2F/{USER}", dict(zip(("configure", "write", "read"), rights, strict=True)))
    try:
        with open_engine("rabbitmq", broker.url.replace("guest:guest@", f"{USER}:pw@"), 5.0) as engine:
            with pytest.raises(BrokerRefused) as refused:
                engine.check(write=True)
            assert missing in " ".join(refused.value.details["missing"])
            assert "set_permissions" in refused.value.next_step
    finally:
        broker.api("DELETE", f"users/{USER}")
