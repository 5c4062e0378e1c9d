# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gates in BullMQ's workers: that JavaScript decides as all others do, what can't be parked, and what is put back."""

from __future__ import annotations

import json
import random
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.books import GATES_BOOK
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    EXECUTING,
    PARKED,
    WAITING,
    Engine,
    Selection,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.gating import set_gates
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.gates import Gate, passes
from ansible_collections.backstep.workers.plugins.module_utils._waiting.deadline import Deadline

from tests.support.bench import REPORTERS, TASK, task_id
from tests.support.bullmq_bench import Workers
from tests.support.ledger import balance
from tests.support.servers import wait_for

NAME = "mail/1.0-a/w1/1"
QUEUES = ["mail"]
ASK = """
const { whyHeld } = require(process.argv[1]);
const asked = JSON.parse(require('fs').readFileSync(0));
console.log(JSON.stringify(asked.map(([line, id]) => whyHeld(line, id))));
"""


class OlderWorkers(Workers):
    """BullMQ 5."""

    library = "bullmq5"


@pytest.fixture
def engine(redis_url: str, client: redis.Redis) -> Iterator[Engine]:
    """The engine on the emptied server."""
    with open_engine("bullmq", redis_url, 5.0) as opened:
        yield opened


@pytest.fixture(params=[OlderWorkers, Workers], ids=["5", "6"])
def workers(request: pytest.FixtureRequest, redis_url: str, client: redis.Redis, tmp_path: Path) -> Iterator[Workers]:
    """Starts workers of each version, and kills at the end what still runs."""
    bench = request.param(redis_url, tmp_path)
    yield bench
    bench.stop_all()


def close(engine: Engine) -> None:
    """Let none of these pass."""
    set_gates(engine, QUEUES, {TASK: Gate(TASK, 0.0, "ana", 1.0)}, Deadline(30).wait_until)


def wait_until_one_waits(tmp_path: Path) -> None:
    (log,) = tmp_path.glob("mail_*.log")
    wait_for("it waits", lambda: f"A task of {TASK} waits until its gate can be kept" in log.read_text("utf-8"))


def in_node(asked: list[tuple[str, str]]) -> list[str]:
    """What the file that workers load says of these lines and ids."""
    program = ["node", "-e", ASK, str(REPORTERS / "backstep_bullmq.cjs")]
    done = subprocess.run(program, input=json.dumps(asked), capture_output=True, text=True, check=True, timeout=60)
    found: list[str] = json.loads(done.stdout)
    return found


def test_javascript_decides_as_the_tool_does() -> None:
    dice = random.Random(7)
    letters = "aZ09-_:/ äß€漢🚂\u0000\u07ff\ud7ff\uffff"
    ids = [*("".join(dice.choices(letters, k=dice.randint(0, 20))) for _number in range(3000)), "task-1", "ä-1", "🚂"]
    shares = [0.0, 100.0, 33.335, *(round(dice.uniform(0, 100), dice.randint(0, 3)) for _n in ids)]
    # Those in the middle of two hundredths, and the ids on which it depends to which side they are rounded.
    borders = [0.005, 0.015, 0.025, 0.035, 1.125]
    first = {zlib.crc32(str(number).encode()) % 10_000: str(number) for number in range(200_000)}
    ids += [first[int(share * 100)] for share in borders]
    gates = [Gate(TASK, share, "ana", 1.0) for share in [*dice.choices(shares, k=len(ids) - len(borders)), *borders]]
    held = in_node([(gate.line, known) for gate, known in zip(gates, ids, strict=True)])
    assert [not why for why in held] == [passes(gate, known) for gate, known in zip(gates, ids, strict=True)]
    assert len(set(map(bool, held))) == 2
    said = in_node([('{"open": 0, "by": "ana", "reason": "new"}', "x"), ("{}", "x"), ("[1", "x"), ('{"open": 0}', "x")])
    assert said[0] == "0 % of these pass, as ana has set it: new"
    assert said[1] == said[2] == "what the book of gates says of it can't be understood"
    assert said[3] == "0 % of these pass, as somebody has set it"


def test_what_is_held_keeps_its_order_its_priority_and_its_attempts(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    close(engine)
    numbers = {1: 0, 2: 7, 3: 0, 4: 7, 5: 3}
    jobs = [
        {"name": TASK, "data": [number, 0], "opts": {"jobId": task_id(number), "attempts": 2, "priority": priority}}
        for number, priority in numbers.items()
    ]
    workers.ask("mail", jobs=jobs)
    before, whole = workers.order("mail"), client.hgetall("bull:mail:task-2")
    name = workers.start(NAME, QUEUES)
    wait_for("all are parked", lambda: engine.queue_states(QUEUES)[0].parked == 5)
    workers.stop(name)
    assert engine.task_ids("mail", EXECUTING, 10).ids == ()
    assert {**client.hgetall("bull:mail:task-2"), b"ats": b""} == {**whole, b"ats": b""}
    assert int(client.hget("bull:mail:task-2", "ats") or 0) == 0
    assert set_gates(engine, QUEUES, {TASK: None}, Deadline(30).wait_until).moved.count == 5
    assert (workers.order("mail"), client.zcard("bull:mail:prioritized")) == (before, 3)
    workers.start(NAME, QUEUES)
    wait_for("all are done", lambda: all(workers.executions(number) == (1, 1) for number in numbers))
    assert balance(engine, workers.ledger_url, QUEUES).lost == frozenset()


def test_what_cannot_be_parked_waits_and_stays_when_the_worker_is_closed(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path
) -> None:
    close(engine)
    client.set("backstep:bullmq:parked:mail:order", "in the way")
    name = workers.start(NAME, QUEUES)
    for number in (1, 2):
        workers.enqueue("mail", number, 0)
    wait_until_one_waits(tmp_path)
    assert workers.stop(name) == 0
    assert engine.task_ids("mail", EXECUTING, 10).ids == (task_id(1),)
    assert engine.task_ids("mail", WAITING, 10).ids == (task_id(2),)
    client.delete("backstep:bullmq:parked:mail:order")
    assert [told.id for told in engine.recover(QUEUES, [name], WAITING)] == [task_id(1)]
    workers.start(NAME, QUEUES)
    wait_for("both are parked", lambda: engine.task_ids("mail", PARKED, 10).ids == (task_id(1), task_id(2)))
    assert [workers.executions(number) for number in (1, 2)] == [(0, 0), (0, 0)]


def test_nothing_is_executed_while_the_gates_cannot_be_read(
    workers: Workers, client: redis.Redis, tmp_path: Path
) -> None:
    workers.start(NAME, QUEUES)
    book = f"backstep:bullmq:book:{GATES_BOOK}"
    client.set(book, "not a book")
    workers.enqueue("mail", 1, 0)
    wait_until_one_waits(tmp_path)
    workers.start("mail/1.0-a/w1/2", QUEUES, wait=False)
    (log,) = tmp_path.glob("mail_*w1_2.log")
    wait_for("it begins none", lambda: "begins no task" in log.read_text("utf-8"))
    assert workers.executions(1) == (0, 0)
    client.delete(book)
    wait_for("it is done", lambda: workers.executions(1) == (1, 1))


def test_a_worker_that_may_not_read_the_gates_keeps_none(engine: Engine, workers: Workers, client: redis.Redis) -> None:
    client.execute_command("ACL", "SETUSER", "default", "resetkeys", "~bull:*", "~ledger:*")
    try:
        workers.start(NAME, QUEUES)
    finally:
        client.execute_command("ACL", "SETUSER", "default", "allkeys")
    assert [worker.gates for worker in engine.workers()] == [None]
    workers.enqueue("mail", 1, 0)
    wait_for("it is done", lambda: workers.executions(1) == (1, 1))


def test_a_task_that_has_failed_is_held_when_it_is_tried_again(engine: Engine, workers: Workers) -> None:
    name = workers.start(NAME, QUEUES)
    failing = "ledger_tasks.fail"
    opts = {"jobId": task_id(1), "attempts": 3, "backoff": 1000}
    workers.ask("mail", jobs=[{"name": failing, "data": [1, 0], "opts": opts}])
    wait_for("it has failed", lambda: workers.executions(1)[0] == 1)
    gate = Gate(failing, 0.0, "ana", 1.0)
    set_gates(engine, QUEUES, {failing: gate}, Deadline(30).wait_until)
    wait_for("it is parked", lambda: engine.task_ids("mail", PARKED, 10).ids == (task_id(1),))
    assert (workers.executions(1)[0], engine.parked_by(QUEUES)) == (1, {f"gate {failing}"})
    assert workers.stop(name) == 0


def test_what_can_not_be_read_is_parked_as_the_bytes_that_it_is(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path
) -> None:
    unreadable = (b"{\x80bad", b"[1", b"{")
    workers.enqueue("mail", 8, 0)  # its end brings the next one
    for number, raw in enumerate(unreadable):
        workers.enqueue("mail", number, 0)
        client.hset(f"bull:mail:{task_id(number)}", "data", raw)
    before = [client.hgetall(f"bull:mail:{task_id(number)}") for number in range(3)]
    name = workers.start(NAME, QUEUES)
    workers.enqueue("mail", 9, 0)
    wait_for("the next one is done", lambda: workers.executions(9) == (1, 1))
    assert workers.executions(8) == (1, 1)
    assert engine.task_ids("mail", PARKED, 10).ids == tuple(map(task_id, range(3)))
    assert client.hgetall("backstep:bullmq:parked:mail:why") == {name.encode(): b"the worker's release can't read it"}
    workers.stop_all()
    assert engine.replay(QUEUES, Selection(states=(PARKED,))).count == 3
    assert workers.order("mail") == list(map(task_id, range(3)))
    after = [client.hgetall(f"bull:mail:{task_id(number)}") for number in range(3)]
    assert [{**job, b"ats": b"0"} for job in after] == [{**job, b"ats": b"0"} for job in before]
    (log,) = tmp_path.glob("mail_*.log")
    assert "SyntaxError" not in log.read_text("utf-8")
