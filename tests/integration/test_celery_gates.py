# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a Celery worker on Redis does when it can't keep to the gates: what it takes waits, and is not executed."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from pathlib import Path

import kombu
import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.books import GATES_BOOK
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import PARKED, WAITING, Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.gates import Gate

from tests.support.bench import FAILING_TASK, REPORTERS, TASK, task_id
from tests.support.celery_bench import Workers
from tests.support.servers import wait_for

NAME = "mail/1.0-a/w1/1"
QUEUES = ["mail"]
CLOSED = {TASK: Gate(TASK, 0.0, "ana", time.time()).line}
# All that Celery itself needs, and what Backstep's reporter tells.
NARROW = "~_kombu* ~unacked* ~mail* ~celery* ~*pidbox* ~backstep:celery:counts* ~backstep:celery:exec* &* +@all"


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


def log(folder: Path) -> str:
    """What the worker has written."""
    return (folder / f"{NAME.replace('/', '_')}.log").read_text("utf-8")


@pytest.mark.parametrize("book", ["in the way", "{no JSON"])
def test_a_task_waits_while_its_gate_cannot_be_read(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path, book: str
) -> None:
    if book == "in the way":  # of another type, so that whoever would read it is refused
        client.set("backstep:celery:book:gates", book)
    else:
        engine.write_book(GATES_BOOK, {TASK: book})
    workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, 0)
    wait_for("it waits for the second time", lambda: log(tmp_path).count("Task task-1 waits") > 1)
    assert engine.task_ids("mail", WAITING, 10).ids == (task_id(1),)
    assert workers.executions(1) == (0, 0)
    client.delete("backstep:celery:book:gates")
    wait_for("it is done", lambda: workers.executions(1) == (1, 1))


def test_one_that_is_held_and_cannot_be_parked_is_parked_when_it_can(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    engine.write_book(GATES_BOOK, CLOSED)
    client.set("backstep:celery:parked:mail", "in the way")
    worker = workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, 0)
    workers.enqueue("mail", 2, task=FAILING_TASK)
    wait_for("the next one is executed", lambda: workers.executions(2) == (1, 0))
    client.delete("backstep:celery:parked:mail")
    wait_for("it is parked", lambda: engine.task_ids("mail", PARKED, 10).ids == (task_id(1),))
    assert workers.stop(worker) == 0
    assert not client.hlen("unacked")
    assert workers.executions(1) == (0, 0)


def test_a_worker_that_may_not_read_the_book_says_so(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path
) -> None:
    client.execute_command("ACL", "SETUSER", "narrow", "reset", "on", ">s3cret", *NARROW.split())
    url = workers.url.replace("redis://", "redis://narrow:s3cret@")
    narrow = Workers(url, tmp_path, ledger_url=workers.ledger_url)
    try:
        narrow.start(NAME, QUEUES)
        (seen,) = engine.workers()
        assert (seen.gates, seen.failed) == (None, 0)
        workers.enqueue("mail", 1, 0)
        wait_for("it is done", lambda: workers.executions(1) == (1, 1))
    finally:
        narrow.stop_all()
        client.execute_command("ACL", "DELUSER", "narrow")
    assert "keeps no gates" in log(tmp_path)
    assert "s3cret" not in log(tmp_path)


def test_a_task_is_not_parked_for_a_gate_that_has_been_opened_meanwhile(
    engine: Engine, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(REPORTERS))
    parking, unknown = map(importlib.import_module, ("backstep_celery_parking", "backstep_celery_unknown"))
    engine.write_book(GATES_BOOK, CLOSED)
    workers.enqueue("mail", 1, 0)
    with kombu.Connection(workers.client_url) as connection:
        message = connection.channel().basic_get("mail")
        why = unknown.Why(f"gate {TASK}", "trying it out", TASK, CLOSED[TASK])
        engine.write_book(GATES_BOOK, {TASK: None})
        assert not parking.RedisWay().park(None, message, task_id(1), why)
        assert engine.task_ids("mail", PARKED, 10).ids == ()
        engine.write_book(GATES_BOOK, CLOSED)
        assert parking.RedisWay().park(None, message, task_id(1), why)
    assert engine.task_ids("mail", PARKED, 10).ids == tuple(engine.gated(QUEUES, TASK)) == (task_id(1),)
