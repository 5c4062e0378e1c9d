# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gates in consumers of Redis Streams: what can't be parked, streams that others read too, and entries of any bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.books import ALWAYS_FRESH, GATES_BOOK
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    EXECUTING,
    PARKED,
    WAITING,
    Engine,
    Selection,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.gating import set_gates
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import GateRefused
from ansible_collections.backstep.workers.plugins.module_utils._rollout.gates import Gate
from ansible_collections.backstep.workers.plugins.module_utils._waiting.deadline import Deadline

from tests.support.bench import REPORTERS, TASK, UNKNOWN_TASK, task_id
from tests.support.ledger import balance
from tests.support.servers import wait_for
from tests.support.streams_bench import Workers

NAME = "mail/1.0-a/w1/1"
QUEUES = ["mail"]
UNREADABLE = (b"[1", b"\x80\xff", b"")


@pytest.fixture
def engine(redis_url: str, client: redis.Redis) -> Iterator[Engine]:
    """The engine on the emptied server."""
    with open_engine("streams", redis_url, 5.0) as opened:
        yield opened


@pytest.fixture
def workers(redis_url: str, client: redis.Redis, tmp_path: Path) -> Iterator[Workers]:
    """Starts consumers, and kills at the end what still runs."""
    bench = Workers(redis_url, tmp_path)
    yield bench
    bench.stop_all()


@pytest.fixture
def gates_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The file that consumers import, in this process."""
    monkeypatch.syspath_prepend(str(REPORTERS))
    monkeypatch.setenv("BACKSTEP_WORKER", "ana")
    import backstep_streams  # type: ignore[import-not-found]

    return backstep_streams.Gates


def close(engine: Engine, task: str = TASK) -> None:
    """Let none of these pass."""
    set_gates(engine, QUEUES, {task: Gate(task, 0.0, "ana", time.time())}, Deadline(30).wait_until)


def parked(engine: Engine) -> tuple[str, ...]:
    return engine.task_ids("mail", PARKED, 10).ids


def wait_until_one_waits(tmp_path: Path, why: str) -> None:
    (log,) = tmp_path.glob("mail_*.log")
    wait_for("it waits", lambda: f"waits until its gate can be kept: {why}" in log.read_text("utf-8"))


def take(client: redis.Redis, *fields: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Have the consumer ana read an entry with these fields."""
    client.execute_command("XADD", "mail", "*", *fields)
    client.xgroup_create("mail", "workers", "0")
    ((_queue, (found,)),) = client.xreadgroup("workers", "ana", {"mail": ">"})
    entry: tuple[bytes, dict[bytes, bytes]] = found
    return entry


def test_what_cannot_be_parked_waits_and_stays_when_the_worker_stops(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path
) -> None:
    close(engine)
    client.set("backstep:streams:parked:mail", "in the way")
    name = workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, 0)
    wait_until_one_waits(tmp_path, "ResponseError")
    assert workers.stop(name) != 0
    assert engine.task_ids("mail", EXECUTING, 10).ids == (task_id(1),)
    client.delete("backstep:streams:parked:mail")
    (told,) = engine.recover(QUEUES, [name], WAITING)
    workers.start(NAME, QUEUES)
    wait_for("it is parked", lambda: parked(engine) == (task_id(1),))
    assert (told.id, workers.executions(1)) == (task_id(1), (0, 0))
    assert balance(engine, workers.ledger_url, QUEUES).balanced


def test_nothing_is_executed_while_the_gates_cannot_be_read(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path
) -> None:
    workers.start(NAME, QUEUES)
    book = "backstep:streams:book:gates"
    client.set(book, "not a book")
    workers.enqueue("mail", 1, 0)
    wait_until_one_waits(tmp_path, "ResponseError")
    assert workers.executions(1) == (0, 0)
    client.delete(book)
    wait_for("it is done", lambda: workers.executions(1) == (1, 1))


def test_what_is_not_understood_holds_and_what_is_not_known_is_parked_as_such(
    engine: Engine, workers: Workers
) -> None:
    engine.write_book(GATES_BOOK, {TASK: '{"shut": true}', UNKNOWN_TASK: '{"shut": true}'})
    name = workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, 0)
    workers.enqueue("mail", 2, task=UNKNOWN_TASK)
    wait_for("both are parked", lambda: parked(engine) == (task_id(1), task_id(2)))
    assert engine.parked_by(QUEUES) == {f"gate {TASK}", name}
    assert (list(engine.gated(QUEUES, TASK)), engine.gated(QUEUES, UNKNOWN_TASK)) == ([task_id(1)], {})


def test_what_can_not_be_read_is_parked_as_the_bytes_that_it_is(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    workers.start(NAME, QUEUES)
    named = {b"task": TASK.encode()}
    sent = [{**named, b"id": str(number).encode(), b"arguments": raw} for number, raw in enumerate(UNREADABLE)]
    for fields in sent:
        client.xadd("mail", fields)
    workers.enqueue("mail", 9, 0)
    wait_for("the next one is done", lambda: workers.executions(9) == (1, 1))
    assert parked(engine) == ("0", "1", "2")
    (why,) = client.hvals("backstep:streams:parked:mail:why")
    assert why == b"the worker's release can't read it"
    workers.stop_all()
    assert engine.replay(QUEUES, Selection(states=(PARKED,))).count == 3
    assert [fields for _entry, fields in client.xrange("mail")][-3:] == sent


def test_a_worker_whose_stream_others_read_too_takes_nothing_from_them(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path
) -> None:
    close(engine)
    name = workers.start(NAME, QUEUES)
    assert [worker.gates for worker in engine.workers()] == [ALWAYS_FRESH]
    client.xgroup_create("mail", "audit", "0")
    workers.enqueue("mail", 1, 0)
    wait_until_one_waits(tmp_path, "SeveralGroupsReadThisStream")
    with pytest.raises(GateRefused) as refused:
        close(engine, UNKNOWN_TASK)
    assert refused.value.details["workers"] == [name]
    client.xgroup_destroy("mail", "audit")
    wait_for("it is parked", lambda: parked(engine) == (task_id(1),))


def test_a_worker_that_may_not_read_the_gates_keeps_none(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    client.execute_command(
        *("ACL", "SETUSER", "narrow", "reset", "on", ">s3cret", "~mail", "~backstep:streams:worker:*", "&*", "+@all")
    )
    try:
        workers.url = workers.url.replace("://", "://narrow:s3cret@")
        workers.start(NAME, QUEUES)
        workers.enqueue("mail", 1, 0)
        wait_for("it is done", lambda: workers.executions(1) == (1, 1))
        assert [worker.gates for worker in engine.workers()] == [None]
    finally:
        workers.stop_all()
        client.execute_command("ACL", "DELUSER", "narrow")


def test_entries_of_any_bytes_are_parked_whole(engine: Engine, client: redis.Redis, gates_of: Any) -> None:
    fields = [b"task", TASK.encode(), b"data", bytes(range(256)), b"id", "ä-1".encode(), b"twice", b"a", b"twice", b"b"]
    gates = gates_of(client, lambda: True)
    entry, found = take(client, *fields)
    assert gates.held(b"mail", entry, found) is False
    close(engine)
    assert gates.held(b"mail", entry, found) is True
    assert (parked(engine), list(engine.gated(QUEUES, TASK))) == (("ä-1",), ["ä-1"])
    assert client.xlen("mail") == 0
    assert gates.held(b"mail", entry, found) is True  # it isn't this consumer's any more
    engine.replay(QUEUES, Selection(states=(PARKED,)))
    assert client.eval("return redis.call('XRANGE', 'mail', '-', '+')[1][2]", 0) == fields


def test_an_entry_that_was_trimmed_away_is_parked_as_it_was_read(
    engine: Engine, client: redis.Redis, gates_of: Any
) -> None:
    close(engine)
    entry, found = take(client, b"id", b"7", b"task", TASK.encode())
    client.xtrim("mail", maxlen=0, approximate=False)
    gates = gates_of(client, lambda: True, ["another"])
    assert gates.held("mail", entry, {}) is False
    assert gates.held("mail", entry, found) is True
    engine.replay(QUEUES, Selection(states=(PARKED,)))
    assert [fields for _entry, fields in client.xrange("mail")] == [found]


def test_a_gate_that_opens_meanwhile_leaves_nothing_behind(engine: Engine, client: redis.Redis, gates_of: Any) -> None:
    close(engine)
    entry, found = take(client, b"id", b"7", b"task", TASK.encode())

    class Opening:
        """A client in whose hands the gate opens after the look at it."""

        eval, hset = client.eval, client.hset

        def hget(self, book: str, task: str) -> Any:
            line = client.hget(book, task)
            client.hdel(book, task)
            return line

    assert gates_of(Opening(), lambda: True).held("mail", entry, found) is False
    assert (parked(engine), engine.gated(QUEUES, TASK)) == ((), {})
