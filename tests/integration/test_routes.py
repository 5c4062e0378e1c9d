# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real producers with Backstep's small file in them, and workers of two versions: who gets what share; none is lost."""

from __future__ import annotations

import importlib.util
import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.books import ROUTES_BOOK
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.engines._json_text import FIELDS, RENAMED
from ansible_collections.backstep.workers.plugins.module_utils._queue.routing import (
    end_routes,
    routes,
    set_routes,
    starts,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.routes import effective, route_of
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker
from rq import Queue

from tests.integration.test_rq_modules import Play, outcome, play  # noqa: F401  # pylint: disable=unused-import  # a fixture
from tests.support import ledger_tasks
from tests.support.bench import ENQUEUED, ID, TASK, Bench, bench_of, task_id
from tests.support.ledger import balance
from tests.support.ledger_tasks import STARTED
from tests.support.rq_bench import Workers
from tests.support.servers import free_port, wait_for
from tools.common import CHECKOUT

TAGGED = "mail.for-2.0"
OLD, NEW = "mail/1.0-aaaaaaaa/w1/1", "mail/2.0-bbbbbbbb/w1/1"
Send = Callable[[int, float], Any]


def helper() -> ModuleType:
    """The file that is copied into an app."""
    path = CHECKOUT / "roles" / "pool" / "files" / "producers" / "backstep_routes.py"
    spec = importlib.util.spec_from_file_location("backstep_routes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def celery_producer(url: str, routes: Any = None) -> Send:
    app = Celery(broker=url, set_as_current=False)
    app.conf.task_routes = {TASK: {"queue": "mail"}}
    (routes or helper()).route_celery(app)
    work = app.task(name=TASK)(ledger_tasks.work)

    def send(number: int, seconds: float) -> Any:
        if number % 2:
            return work.apply_async((number, seconds), task_id=task_id(number))
        return app.send_task(TASK, (number, seconds), task_id=task_id(number), queue="mail")

    return send


def dramatiq_producer(url: str) -> Send:
    broker = RedisBroker(url=url, middleware=[])
    helper().route_dramatiq(broker)

    def send(number: int, seconds: float) -> Any:
        message: Message[None] = Message("mail", TASK, (number, seconds), {}, {}, task_id(number))
        return broker.enqueue(message, delay=1 if number % 2 else None)

    return send


def rq_producer(url: str) -> Send:
    queue = Queue("mail", connection=redis.Redis.from_url(url))
    assert helper().route_rq(queue) is queue

    def send(number: int, seconds: float) -> Any:
        if number % 2:
            return queue.enqueue_many([Queue.prepare_data(TASK, (number, seconds), job_id=task_id(number))])
        return queue.enqueue(TASK, number, seconds, job_id=task_id(number))

    return send


PRODUCERS = {"celery": celery_producer, "dramatiq": dramatiq_producer, "rq": rq_producer}


class Two:
    """Workers of two versions of an app, each with a ledger of its own, and a producer."""

    def __init__(self, engine: str, url: str, folder: Path, parts: ExitStack, send: Send, ledgers: str = "") -> None:
        """:param ledgers: the URL of a Redis server for them; else the broker itself."""
        self.engine: Engine = parts.enter_context(open_engine(engine, url, 5.0))
        place = (ledgers or url).rsplit("/", 1)[0]
        self.old, self.new = (
            bench_of(engine)(url, folder, ledger_url=f"{place}/{number}") for number in (15, 14)
        )  # fmt: skip
        for bench in (self.old, self.new):
            parts.callback(bench.stop_all)
        self._send = send

    def send(self, numbers: Sequence[int], seconds: float = 0.0) -> None:
        """Enqueue these, by the producer's own means."""
        with redis.Redis.from_url(self.old.ledger_url) as notes:
            for number in numbers:
                self._send(number, seconds)
                notes.sadd(ENQUEUED, str(number))

    def route(self, share: float) -> None:
        """Send this share to the new version; before anything is sent, as producers keep to what they know."""
        now = time.time()
        set_routes(self.engine, [route_of("mail", "2.0", share, [], "ana", now, 600)], now)

    def wait_done(self, count: int) -> None:
        """Wait until so many are finished, and counted."""
        wait_for("all are done", lambda: self.old.finished() + self.new.finished() == count, 60)
        wait_for("all are counted", lambda: sum(seen.finished for seen in self.engine.workers()) == count)


@pytest.fixture(params=sorted(PRODUCERS))
def two(request: pytest.FixtureRequest, redis_url: str, client: redis.Redis, tmp_path: Path) -> Iterator[Two]:
    """The engine on the emptied server."""
    with ExitStack() as parts:
        yield Two(request.param, redis_url, tmp_path, parts, PRODUCERS[request.param](redis_url))


def begun(bench: Bench) -> set[int]:
    """The numbers of the tasks that this version's workers have begun."""
    with redis.Redis.from_url(bench.ledger_url) as notes:
        return set(map(int, notes.hkeys(STARTED)))


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
    told = effective(before, starts(two.engine, ["mail"], "2.0"), "2.0")
    assert told["releases"] == {"1.0-aaaaaaaa": 200 - len(chosen), "2.0-bbbbbbbb": len(chosen)}
    assert told["share"] == len(chosen) / 2


def test_workers_that_take_from_the_plain_queue_too_get_more_and_that_is_told(two: Two) -> None:
    two.old.start(OLD, ["mail"])
    two.new.start(NEW, [TAGGED, "mail"])
    two.route(25.0)
    before = starts(two.engine, ["mail"], "2.0")
    two.send(range(60))
    two.wait_done(60)
    counted = {"1.0-aaaaaaaa": len(begun(two.old)), "2.0-bbbbbbbb": len(begun(two.new))}
    told = effective(before, starts(two.engine, ["mail"], "2.0"), "2.0")
    assert {**dict.fromkeys(counted, 0), **told["releases"]} == counted
    assert told["share"] == round(100 * counted["2.0-bbbbbbbb"] / 60, 1)


def test_what_is_left_when_a_route_ends_is_done_by_the_others(two: Two) -> None:
    new = two.new.start(NEW, [TAGGED])
    two.route(100.0)
    two.new.stop(new)
    two.send(range(40))
    two.old.start(OLD, ["mail"])
    assert not begun(two.old)
    done = end_routes(two.engine, ["mail"], time.time(), time.sleep)
    assert done.moved.by_queue == {TAGGED: 40}
    two.send(range(40, 50))
    two.wait_done(50)
    assert begun(two.old) == set(range(50))
    found = balance(two.engine, two.old.ledger_url, ["mail", TAGGED])
    assert (found.counts()["finished"], found.lost, found.duplicated) == (50, frozenset(), frozenset())


def test_what_workers_had_taken_ahead_is_done_by_the_others_when_they_have_stopped(two: Two) -> None:
    new = two.new.start(NEW, [TAGGED])
    two.route(100.0)
    two.send(range(12), seconds=0.8)
    wait_for("it has begun", lambda: begun(two.new))
    end_routes(two.engine, ["mail"], time.time(), time.sleep)
    two.new.stop(new)
    end_routes(two.engine, ["mail"], time.time(), time.sleep, version="2.0")
    first = begun(two.new)
    assert 0 < len(first) < 12
    two.old.start(OLD, ["mail"])
    wait_for("all are done", lambda: two.old.finished() + two.new.finished() == 12, 60)
    assert begun(two.old) == set(range(12)) - first


def test_a_route_that_is_over_leads_nowhere(two: Two) -> None:
    over = route_of("mail", "2.0", 100.0, [], "ana", time.time() - 600, 599)
    two.engine.write_book(ROUTES_BOOK, {"mail": over.line})
    two.send(range(4))
    assert two.engine.reroute(TAGGED, "mail").count == 0
    two.old.start(OLD, ["mail"])
    two.wait_done(4)


def test_only_tasks_of_its_names_are_routed_and_what_is_sent_again_stays_while_the_route_does() -> None:
    now = time.time()
    told = {"mail": route_of("mail", "2.0", 100.0, ["a"], "ana", now, 60).line}
    asked: list[str] = []

    def ask(queue: str) -> tuple[Any, float]:
        asked.append(queue)
        return told.get(queue), now

    found = helper().Routes(ask)
    assert [found.queue_for("mail", task, "1") for task in ("a", "b")] == [TAGGED, "mail"]
    assert [found.queue_for(queue, "b", "1") for queue in (TAGGED, "mail.for-1.0", "other")] == [
        TAGGED, "mail", "other"
    ]  # fmt: skip
    assert asked == ["mail", "other"]  # each is asked for once a second
    told.clear()
    wait_for("that is noticed", lambda: found.queue_for(TAGGED, "a", "1") == "mail")


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b"no JSON", json.dumps({"until": "soon"}).encode()])
def test_what_cannot_be_read_routes_nothing(line: bytes) -> None:
    assert helper().Routes(lambda _queue: (line, 0.0)).queue_for("mail", "a", "1") == "mail"


def test_the_end_of_the_task_that_sends_is_not_held_up() -> None:
    def ask(_queue: str) -> tuple[Any, float]:
        raise SoftTimeLimitExceeded

    with pytest.raises(SoftTimeLimitExceeded):
        helper().Routes(ask).queue_for("mail", "a", "1")


def test_with_no_broker_the_task_itself_fails() -> None:
    queue = Queue("mail", connection=redis.Redis(port=free_port()))
    helper().route_rq(queue)
    with pytest.raises(redis.ConnectionError):
        queue.enqueue(TASK, 1, 0)


@pytest.mark.parametrize(
    "raw",
    [
        '{"queue_name":"%s","args":[],"kwargs":{},"n":1e400,"message_id":"1"}',
        ' { "n" : 10000000000000001 , "queue_name" : "%s" }',
        r'{"a":{"queue_name":"mail.for-2.0"},"b":"\"queue_name\":\"mail.for-2.0\"","queue_name":"%s","c":"\\"}',
        '{"ä":"\\u00e4","queue_name":"%s","x":[[{}]]}',
    ],
)
def test_only_the_name_of_the_queue_is_written_anew(client: redis.Redis, raw: str) -> None:
    script = FIELDS + RENAMED + "return renamed(ARGV[1], {'queue_name'}, {[ARGV[2]] = ARGV[3]})"
    before = raw % TAGGED
    assert client.eval(script, 0, before, TAGGED, '"mail"').decode() == raw % "mail"
    assert client.eval(script, 0, before, "another", '"mail"').decode() == before


@pytest.mark.parametrize("raw", ["", "[]", "{", '{"queue_name":', '{"queue_name":1}', '{"other":"mail"}'])
def test_what_names_no_queue_stays_as_it_is(client: redis.Redis, raw: str) -> None:
    script = FIELDS + RENAMED + "return renamed(ARGV[1], {'queue_name'}, {mail = '\"x\"'})"
    assert client.eval(script, 0, raw).decode() == raw


def test_the_module_in_check_mode_and_for_real(play: Play, engine: Engine, workers: Workers) -> None:  # noqa: F811
    route = {"queues": ["mail"], "version": "2.0", "share": 25, "owner": "ana"}
    absent = {"queues": [["mail"]], "version": "2.0", "state": "absent"}
    (refused,) = play([("queue_route", True, route)])
    assert (refused["failed"], refused["error"]["code"]) == (True, "route_refused")
    name = workers.start(NEW, [TAGGED])
    results = play([
        ("queue_route", True, route),
        ("queue_route", False, {**route, "measure": 0.2}),
        ("queue_route", False, route),
        ("queue_route", False, {**route, "owner": "bo"}),
        ("queue_route", False, {**route, "queues": [TAGGED]}),
        ("queue_route", True, {**absent, "owner": "bo"}),
        ("queue_route", True, absent),
    ])  # fmt: skip
    assert [outcome(result) for result in results] == [
        (False, True, ["route"]),
        (False, True, ["route"]),
        (False, False, ["extend"]),
        (True, False, []),
        (True, False, []),
        (True, False, []),
        (False, True, ["end_route"]),
    ]
    assert [results[number]["error"]["code"] for number in (3, 4, 5)] == ["route_refused", "bad_input", "route_refused"]
    measured = {"releases": {"2.0-bbbbbbbb": 0}, "share": None}
    assert (results[0]["effective"], results[1]["effective"]) == (None, measured)
    assert results[1]["routes"]["mail"]["to"] == TAGGED
    assert (results[1]["diff"]["before"], results[1]["diff"]["after"]) == ({}, results[1]["routes"])
    assert set(routes(engine)) == {"mail"}
    workers.stop(name)
    for number in range(3):
        workers.enqueue(TAGGED, number, 0)
    results = play([("queue_route", True, absent), *[("queue_route", False, absent)] * 2])
    assert [outcome(result) for result in results] == [
        (False, True, ["end_route", "move"]),
        (False, True, ["end_route", "move"]),
        (False, False, []),
    ]
    assert results[0]["moved"] == results[1]["moved"]
    assert (results[1]["moved"]["count"], results[1]["moved"]["by_queue"]) == (3, {TAGGED: 3})
    assert workers.order("mail") == [task_id(number) for number in range(3)]
