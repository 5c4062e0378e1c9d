# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real producers on RabbitMQ with Backstep's two files in their app: what they send where, whatever happens."""

from __future__ import annotations

import importlib
import logging
import re
import shutil
import socket
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import kombu.pools
import pika
import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.books import ROUTES_BOOK
from ansible_collections.backstep.workers.plugins.module_utils._queue.routing import end_routes, starts
from ansible_collections.backstep.workers.plugins.module_utils._rollout.routes import effective, route_of
from celery import Celery
from dramatiq import Message
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from tests.integration.test_routes import NEW, OLD, TAGGED, Send, Two, begun, celery_producer
from tests.support.bench import ID, REPORTERS, TASK, task_id
from tests.support.brokers import RabbitBroker
from tests.support.rabbitmq_bench import lying_in
from tests.support.servers import free_port, rabbitmq_server, wait_for
from tools.common import CHECKOUT

LOCK = "backstep.lock.book.routes"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitBroker]:
    """One node for all."""
    with rabbitmq_server(tmp_path_factory.mktemp("rabbitmq")) as url:
        yield RabbitBroker(url)


@pytest.fixture
def node(server: RabbitBroker) -> RabbitBroker:
    """The emptied node."""
    server.empty()
    return server


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The file for producers, beside the other one in a package of an app."""
    package = tmp_path / f"app_{uuid4().hex}"
    package.mkdir()
    for file in (CHECKOUT / "roles/pool/files/producers/backstep_routes.py", REPORTERS / "backstep_gates.py"):
        shutil.copy(file, package)
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module(f"{package.name}.backstep_routes")


def dramatiq_producer(url: str, routes: Any) -> Send:
    broker = RabbitmqBroker(url=url, middleware=[])
    routes.route_dramatiq(broker)

    def send(number: int, seconds: float) -> Any:
        message: Message[None] = Message("mail", TASK, (number, seconds), {}, {}, task_id(number))
        return broker.enqueue(message, delay=1 if number % 2 else None)

    return send


PRODUCERS: dict[str, Callable[[str, Any], Send]] = {
    "celery_rabbitmq": celery_producer,
    "dramatiq_rabbitmq": dramatiq_producer,
}


@pytest.fixture(params=sorted(PRODUCERS))
def kind(request: pytest.FixtureRequest) -> str:
    """The engine."""
    return str(request.param)


@pytest.fixture
def reads_always(helper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer that keeps to what it knows for no time at all, so that nobody has to wait."""
    monkeypatch.setattr(helper, "_CACHED_SECONDS", 0.0)


@pytest.fixture
def two(kind: str, helper: Any, node: RabbitBroker, redis_url: str, client: Any, tmp_path: Path) -> Iterator[Two]:
    """The engine on the emptied node."""
    with ExitStack() as parts:
        send = PRODUCERS[kind](node.amqp_url, helper)
        # A connection that is kept from the last test knows of queues that are gone.
        kombu.pools.reset()
        yield Two(kind, node.url, tmp_path, parts, send, redis_url)


@pytest.fixture
def narrow(node: RabbitBroker) -> Iterator[str]:
    """A URL of a user who may do what it takes to send, and not read the book."""
    node.api("PUT", "users/narrow", {"password": "s3cret", "tags": ""})
    give(node)
    yield node.amqp_url.replace("guest:guest@", "narrow:s3cret@")
    node.api("DELETE", "users/narrow")


def give(node: RabbitBroker, more: str = "", read: str = "") -> None:
    """Give that user the rights to configure and to read these queues, too."""
    own = r"mail(\..*)?"
    rights = {"configure": f"^({own}{more})$", "write": rf"^({own}|amq\.default)$", "read": f"^({own}{read})$"}
    node.api("PUT", "permissions/%2F/narrow", rights)


def write(two: Two, share: float = 100.0, seconds: int = 600, at: float | None = None) -> None:
    """A route, whether or not anybody listens."""
    now = time.time() if at is None else at
    two.engine.write_book(ROUTES_BOOK, {"mail": route_of("mail", "2.0", share, [], "ana", now, seconds).line})


def lies(two: Two, queue: str) -> int:
    """How many tasks wait in a queue, by the broker itself; what is due at once, too."""
    place = two.old.client_url
    return sum(len(lying_in(place, name)) for name in (queue, f"{queue}.DQ"))


def lying(two: Two, count: int) -> tuple[int, int]:
    """How many tasks wait in the plain queue and in the tagged one, once all have arrived."""

    def found() -> tuple[int, int]:
        return lies(two, "mail"), lies(two, TAGGED)

    wait_for(f"all {count} have arrived", lambda: sum(found()) == count)
    return found()


def sent(two: Two, number: int) -> bool:
    """Send one more."""
    two.send([number])
    return True


def test_a_share_gets_to_the_workers_of_a_version(two: Two) -> None:
    two.old.start(OLD, ["mail"])
    two.new.start(NEW, [TAGGED])
    two.route(25.0)
    before = starts(two.engine, ["mail"], "2.0")
    numbers = range(400, 600)
    two.send(numbers)
    two.wait_done(200)
    chosen = {number for number in numbers if zlib.crc32(f"route:{ID}{number}".encode()) % 10_000 < 2500}
    assert (begun(two.new), begun(two.old)) == (chosen, set(numbers) - chosen)
    assert len(chosen) == 50  # of these ids
    assert effective(before, starts(two.engine, ["mail"], "2.0"), "2.0")["share"] == len(chosen) / 2


@pytest.mark.usefixtures("reads_always")
def test_a_route_is_noticed_and_so_is_its_end(two: Two) -> None:
    two.send(range(2))
    assert lying(two, 2) == (2, 0)
    write(two)
    two.send(range(2, 6))
    assert lying(two, 6) == (2, 4)
    end_routes(two.engine, ["mail"], time.time(), time.sleep)
    two.send(range(6, 10))
    assert lying(two, 10) == (10, 0)


@pytest.mark.usefixtures("reads_always")
def test_a_route_that_is_over_leads_nowhere(two: Two) -> None:
    write(two, seconds=599, at=time.time() - 600)
    two.send(range(4))
    assert lying(two, 4) == (4, 0)
    write(two)
    two.send(range(4, 6))
    write(two, seconds=599, at=time.time() - 600)
    two.send(range(6, 8))
    assert lying(two, 8) == (6, 2)


def test_who_may_not_read_the_book_sends_to_the_plain_queue(
    two: Two, kind: str, helper: Any, narrow: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(two)
    send = PRODUCERS[kind](narrow, helper)
    for number in range(4):
        send(number, 0.0)
    assert lying(two, 4) == (4, 0)
    assert [record.levelname for record in caplog.records if record.name == helper.__name__] == ["WARNING"]
    assert "s3cret" not in caplog.text
    assert set(two.engine.read_book(ROUTES_BOOK)) == {"mail"}  # nobody has left it locked


def test_the_documented_rights_are_enough(two: Two, kind: str, helper: Any, node: RabbitBroker, narrow: str) -> None:
    rules = re.findall(r"`\|(backstep\S*book\S*routes)`", (CHECKOUT / "docs" / "engines.md").read_text("utf-8"))
    write(two)
    give(node, *[f"|{rule}" for rule in rules])
    send = PRODUCERS[kind](narrow, helper)
    for number in range(4):
        send(number, 0.0)
    assert lying(two, 4) == (0, 4)


@pytest.mark.usefixtures("reads_always")
def test_what_was_read_last_holds_while_somebody_else_reads(two: Two, node: RabbitBroker) -> None:
    write(two)
    with pika.BlockingConnection(pika.URLParameters(node.amqp_url)) as other:
        channel = other.channel()
        channel.queue_declare(LOCK, exclusive=True)
        two.send(range(2))
        assert lying(two, 2) == (2, 0)  # when nothing was ever read
        channel.queue_delete(LOCK)
        wait_for("it is read", lambda: sent(two, 2) and lies(two, TAGGED))
        two.send([3])
        wait_for("it has arrived", lambda: lies(two, TAGGED) > 1)
        channel.queue_declare(LOCK, exclusive=True)
        channel.basic_publish("", "backstep.book.routes", b'{"mail": null}')
        channel.queue_declare("backstep.book.routes", durable=True)  # by whose answer it is there
        before = lies(two, TAGGED)
        two.send(range(4, 6))
        wait_for("they have arrived", lambda: lies(two, TAGGED) == before + 2)
        plain = lies(two, "mail")
    wait_for("it is read", lambda: sent(two, 6) and lies(two, "mail") > plain)


@pytest.fixture
def asked(kind: str, helper: Any) -> Callable[[str], Any]:
    """The routes as a producer at a URL has them, without what it sends."""

    def at(url: str) -> Any:
        if kind == "celery_rabbitmq":
            return helper.routes_of_celery(Celery(broker=url, set_as_current=False))
        return helper.routes_of_dramatiq(RabbitmqBroker(url=url, middleware=[]))

    return at


def test_a_broker_that_says_nothing_takes_a_second_at_most_and_that_not_often(asked: Callable[[str], Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        routes = asked(f"amqp://guest:guest@127.0.0.1:{silent.getsockname()[1]}/")
        began = time.monotonic()
        for _number in range(1000):
            assert routes.queue_for("mail", TASK, "1") == "mail"
        assert time.monotonic() - began < 5
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


@pytest.mark.usefixtures("reads_always")
def test_a_broker_that_falls_silent_takes_a_second_and_what_was_read_holds(
    two: Two, asked: Callable[[str], Any], node: RabbitBroker
) -> None:
    write(two)
    with Through(urlsplit(node.amqp_url).port or 0) as between:
        routes = asked(f"amqp://guest:guest@127.0.0.1:{between.port}/")
        assert routes.queue_for("mail", TASK, "1") == TAGGED
        between.is_open.clear()
        began = time.monotonic()
        assert routes.queue_for("mail", TASK, "1") == TAGGED
        assert 0.5 < time.monotonic() - began < 5
        between.is_open.set()
        two.engine.write_book(ROUTES_BOOK, {"mail": None})
        wait_for("it is read again", lambda: routes.queue_for("mail", TASK, "1") == "mail", 30)


def test_a_node_that_is_away_is_passed_over(two: Two, asked: Callable[[str], Any], node: RabbitBroker) -> None:
    write(two)
    routes = asked(f"amqp://guest:guest@127.0.0.1:{free_port()}/;{node.amqp_url}")
    assert routes.queue_for("mail", TASK, "1") == TAGGED


@pytest.mark.usefixtures("reads_always")
def test_who_has_not_sent_for_a_while_reads_anew(
    two: Two, asked: Callable[[str], Any], helper: Any, node: RabbitBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helper, "_IDLE_SECONDS", 0.0)
    write(two)
    routes = asked(two.old.client_url)
    assert routes.queue_for("mail", TASK, "1") == TAGGED
    with pika.BlockingConnection(pika.URLParameters(node.amqp_url)) as other:
        channel = other.channel()
        channel.queue_purge("backstep.book.routes")
        channel.basic_publish("", "backstep.book.routes", b'{"other": null}')  # as many changes as there were
        assert routes.queue_for("mail", TASK, "1") == "mail"
        channel.queue_declare(LOCK, exclusive=True)  # nobody is left who has it


@pytest.mark.usefixtures("reads_always")
def test_all_threads_send_by_one_connection_and_a_forked_process_by_its_own(
    two: Two, asked: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    write(two)
    routes = asked(two.old.client_url)
    ready = Barrier(8)

    def ask(number: int) -> str:
        ready.wait(10)
        return str(routes.queue_for("mail", TASK, str(number)))

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(ask, range(8))) == {TAGGED}
    child = get_context("fork").Process(target=lambda: sys.exit(routes.queue_for("mail", TASK, "1") != TAGGED))
    child.start()
    child.join(10)
    assert child.exitcode == 0
    two.engine.write_book(ROUTES_BOOK, {"mail": None})
    assert routes.queue_for("mail", TASK, "1") == "mail"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class Through:
    """A way to a server that can be closed without anybody's being told."""

    def __init__(self, port: int) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._to = port
        self.is_open = Event()
        self.is_open.set()

    def __enter__(self) -> Through:
        Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_told: object) -> None:
        self._server.close()
        self.is_open.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                one, _address = self._server.accept()
                other = socket.create_connection(("127.0.0.1", self._to))
                for ends in ((one, other), (other, one)):
                    Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while said := source.recv(65536):
                self.is_open.wait()
                target.sendall(said)
            target.shutdown(socket.SHUT_WR)
