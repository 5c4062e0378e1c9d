# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gates in Sidekiq workers: which name counts, and what they do where a gate can't be kept to."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.books import GATES_BOOK
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import PARKED, WAITING, Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.gating import set_gates
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.gates import Gate, passes
from ansible_collections.backstep.workers.plugins.module_utils._waiting.deadline import Deadline

from tests.support.bench import SUPPORT, UNKNOWN_TASK, task_id
from tests.support.ledger import balance
from tests.support.servers import wait_for
from tests.support.sidekiq_bench import Workers

NAME = "mail/1.0-a/w1/1"
QUEUES = ["mail"]
WORK = "LedgerTasks::Work"
GATES = f"backstep:sidekiq:book:{GATES_BOOK}"
# Opens the gate in the moment between a worker's look at it and its parking of what it holds.
OPENING = """
require "{support}/sidekiq_app.rb"
module Opening
  def why_held(*)
    Sidekiq.redis {{ |connection| connection.call("DEL", "{gates}") }}
    super
  end
end
BackstepReporter.singleton_class.prepend(Opening)
"""


@pytest.fixture
def engine(redis_url: str, client: redis.Redis) -> Iterator[Engine]:
    """The Sidekiq engine on the emptied server."""
    with open_engine("sidekiq", redis_url, 5.0) as opened:
        yield opened


@pytest.fixture
def workers(redis_url: str, client: redis.Redis, tmp_path: Path) -> Iterator[Workers]:
    """Starts Sidekiq workers, and kills at the end what still runs."""
    bench = Workers(redis_url, tmp_path)
    yield bench
    bench.stop_all()


def gate(engine: Engine, task: str, share: float = 0.0) -> Gate:
    """Let only that share of these pass."""
    made = Gate(task, share, "ana", time.time())
    set_gates(engine, QUEUES, {task: made}, Deadline(30).wait_until)
    return made


def parked(engine: Engine) -> tuple[str, ...]:
    return engine.task_ids("mail", PARKED, 1000).ids


def test_a_task_of_activejob_has_the_name_of_its_own_class(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    gate(engine, "A::Job")
    name = workers.start(NAME, QUEUES)
    fields = {"class": WORK, "retry": 0, "queue": "mail"}
    for number, more in ((1, {"wrapped": "A::Job"}), (2, {})):
        client.lpush("queue:mail", json.dumps({**fields, **more, "args": [number, 0], "jid": task_id(number)}))
    wait_for("the other one is done", lambda: workers.executions(2) == (1, 1))
    assert parked(engine) == (task_id(1),)
    assert client.hgetall("backstep:sidekiq:parked:mail:why") == {
        b"gate A::Job": b"0 % of these pass, as ana has set it"
    }  # fmt: skip
    # One that the worker doesn't know is parked as such.
    unknown = workers.named(UNKNOWN_TASK)
    gate(engine, unknown)
    workers.enqueue("mail", 3, task=UNKNOWN_TASK)
    wait_for("it is parked", lambda: len(parked(engine)) == 2)
    assert engine.parked_by(QUEUES) == {"gate A::Job", name}
    assert engine.gated(QUEUES, unknown) == {}


def test_it_decides_as_python_does_whatever_the_id_is(engine: Engine, workers: Workers, client: redis.Redis) -> None:
    made = gate(engine, WORK, 37.5)
    ids = [f"jøb {number}" for number in range(300)]
    item = {"class": WORK, "retry": 0, "queue": "mail"}
    client.lpush("queue:mail", *(json.dumps({**item, "args": [at, 0], "jid": known}) for at, known in enumerate(ids)))
    workers.start(NAME, QUEUES)
    held = {known for known in ids if not passes(made, known)}
    wait_for("none waits", lambda: not engine.task_ids("mail", WAITING, 1000).ids and len(parked(engine)) >= len(held))
    assert set(parked(engine)) == held
    wait_for("the others are done", lambda: workers.finished() == len(ids) - len(held))


def test_a_gate_that_opens_meanwhile_leaves_nothing_behind(engine: Engine, workers: Workers, tmp_path: Path) -> None:
    (tmp_path / "app.rb").write_text(OPENING.format(support=SUPPORT, gates=GATES))
    gate(engine, WORK)
    workers.start(NAME, QUEUES, f"--require={tmp_path / 'app.rb'}")
    workers.enqueue("mail", 1, 0)
    wait_for("it is done", lambda: workers.executions(1) == (1, 1))
    assert engine.gated(QUEUES, WORK) == {}


def test_what_cannot_be_understood_holds(engine: Engine, workers: Workers) -> None:
    engine.write_book(GATES_BOOK, {WORK: '{"shut": true}'})
    workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, 0)
    wait_for("it is parked", lambda: parked(engine) == (task_id(1),))
    assert list(engine.gated(QUEUES, WORK)) == [task_id(1)]


@pytest.mark.parametrize("key", ["backstep:sidekiq:parked:mail", GATES])
def test_while_a_gate_cannot_be_kept_to_tasks_wait(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path, key: str
) -> None:
    gate(engine, WORK)
    book = engine.read_book(GATES_BOOK)
    client.delete(key)
    # Of another type, so that whoever would park, or look, is refused.
    client.set(key, "in the way")
    workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, 0)
    (log,) = tmp_path.glob("mail_*.log")
    wait_for("the worker has said so", lambda: "can't keep to a gate" in log.read_text("utf-8"))
    with client.pipeline() as step:
        step.delete(key).hset(GATES, mapping=book)
        step.execute()
    wait_for("it is parked", lambda: parked(engine) == (task_id(1),))
    assert workers.executions(1) == (0, 0)
    assert balance(engine, workers.ledger_url, QUEUES).balanced
