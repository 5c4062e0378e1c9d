# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a Sidekiq worker does with tasks whose class it doesn't know: they are parked, as they were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    PARKED,
    RETRYING,
    SCHEDULED,
    WAITING,
    Engine,
    Selection,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine

from tests.support.bench import SUPPORT, UNKNOWN_TASK, task_id
from tests.support.ledger import balance
from tests.support.servers import wait_for
from tests.support.sidekiq_bench import Workers

NAME = "mail/1.0-a/w1/1"
QUEUES = ["mail"]
ONLY_PARKED = Selection(states=(PARKED,))
# Fails by an unknown name of its own; has ActiveJob's class in its place; has a class whose file is broken.
APP = """
require "{support}/sidekiq_app.rb"
class Misspelt
  include Sidekiq::Worker
  def perform(*)
    Unknown
  end
end
module ActiveJob
  module QueueAdapters
    class SidekiqAdapter
      class JobWrapper
        include Sidekiq::Worker
        sidekiq_options retry: 0
        def perform(number)
          LedgerTasks.note("started", number)
          LedgerTasks.note("finished", number)
        end
      end
    end
  end
end
autoload :Broken, "{folder}/broken.rb"
"""
# Has the connection end after the first step that parks, and before the second one.
APP_WITHOUT_ANSWERS = """
require "{support}/sidekiq_app.rb"
module NoAnswer
  def script(text, *rest)
    return super unless text.equal?(BackstepReporter::PARK) && (@steps = @steps.to_i + 1) < 3
    super if @steps == 1
    raise Redis::CannotConnectError
  end
end
BackstepReporter.singleton_class.prepend(NoAnswer)
"""
WRAPPER = "ActiveJob::QueueAdapters::SidekiqAdapter::JobWrapper"


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


def push(client: redis.Redis, number: int, **fields: object) -> str:
    """Enqueue as Sidekiq's client does, but for the spaces; the payload."""
    raw = json.dumps({"retry": True, "queue": "mail", "args": [number], "jid": task_id(number), **fields})
    client.lpush("queue:mail", raw)
    return raw


def test_they_are_parked_whole_and_come_back_in_their_old_order(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path
) -> None:
    for number in range(4):
        workers.enqueue("mail", number, 0.5, task=UNKNOWN_TASK)
    # One that has been tried before, and one that Sidekiq would drop.
    push(client, 8, **{"class": "Gone", "retry_count": 3, "error_class": "NameError", "args": [{}, [], 1e20]})
    push(client, 9, **{"class": "LedgerTasks::Gone", "retry": False})
    before = client.lrange("queue:mail", 0, -1)
    name = workers.start(NAME, QUEUES)
    wait_for("all are parked", lambda: len(engine.task_ids("mail", PARKED, 10).ids) == 6)
    assert not client.keys("backstep:sidekiq:held:*") + client.keys("retry") + client.keys("dead")
    assert balance(engine, workers.ledger_url, QUEUES).listed >= {task_id(number) for number in range(4)}
    assert [(worker.finished, worker.failed) for worker in engine.workers()] == [(0, 0)]
    assert client.hgetall("backstep:sidekiq:parked:mail:why") == {
        name.encode(): b"the worker's release doesn't know it"
    }  # fmt: skip
    assert workers.stop(name) == 0
    assert engine.replay(QUEUES, ONLY_PARKED).count == 6
    assert client.lrange("queue:mail", 0, -1) == before
    (log,) = tmp_path.glob("mail_*.log")
    assert "NameError" not in log.read_text("utf-8")


def test_what_can_not_be_read_is_parked_as_the_bytes_that_it_is(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    # The last two are JSON, and no tasks.
    unreadable = [b"\x80\x04}.", b'{"class": "LedgerTasks::Work", "jid": "b', b"", b"[1, 2]", b'"jid"']
    client.lpush("queue:mail", *unreadable)
    before = client.lrange("queue:mail", 0, -1)
    name = workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, 0)
    wait_for("all are parked", lambda: len(engine.task_ids("mail", PARKED, 10).ids) == 5)
    wait_for("the next one is done", lambda: workers.executions(1) == (1, 1))
    assert client.hgetall("backstep:sidekiq:parked:mail:why") == {name.encode(): b"the worker's release can't read it"}
    assert workers.stop(name) == 0
    assert not client.keys("backstep:sidekiq:held:*") + client.keys("retry") + client.keys("dead")
    ids = engine.task_ids("mail", PARKED, 10).ids
    assert all(known.startswith("unreadable-") for known in ids)
    assert [(one.state, one.task, one.count) for one in engine.named_tasks(QUEUES)] == [(PARKED, None, 5)]
    assert engine.replay(QUEUES, Selection(states=(PARKED,), ids=ids[:1])).count == 1
    assert engine.replay(QUEUES, Selection(states=(PARKED,), limit=1)).count == 1
    assert engine.replay(QUEUES, ONLY_PARKED).count == 3
    assert sorted(client.lrange("queue:mail", 0, -1)) == sorted(before)


def test_one_that_arrives_later_comes_behind_those_that_were_parked_by_hand(engine: Engine, workers: Workers) -> None:
    for number in (1, 2):
        workers.enqueue("mail", number, task=UNKNOWN_TASK)
    engine.park(QUEUES, Selection(states=(WAITING,)), "ana", "")
    workers.start(NAME, QUEUES)
    workers.enqueue("mail", 5, task=UNKNOWN_TASK, delay=3600)
    for number in (3, 4):
        workers.enqueue("mail", number, task=UNKNOWN_TASK)
    wait_for("they are parked", lambda: len(engine.task_ids("mail", PARKED, 10).ids) == 4)
    assert engine.task_ids("mail", SCHEDULED, 10).ids == (task_id(5),)
    workers.stop_all()
    engine.replay(QUEUES, ONLY_PARKED)
    assert workers.order("mail") == [task_id(number) for number in (1, 2, 3, 4)]


def test_only_what_its_own_class_is_missing_for_is_parked(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path
) -> None:
    (tmp_path / "app.rb").write_text(APP.format(support=SUPPORT, folder=tmp_path))
    (tmp_path / "broken.rb").write_text("class Broken\n  include Unheard\nend\n")
    push(client, 1, **{"class": "Misspelt"})
    push(client, 2, **{"class": "Broken"})
    push(client, 3, **{"class": WRAPPER, "wrapped": "Gone::Job"})
    push(client, 4, **{"class": WRAPPER, "wrapped": "LedgerTasks::Work"})
    push(client, 5, **{"class": "Sidekiq::ActiveJob::Wrapper", "wrapped": "LedgerTasks::Work"})
    push(client, 6, **{"class": "LedgerTasks::Work", "wrapped": "A word", "args": [6, 0], "retry": 0})
    workers.start(NAME, QUEUES, f"--require={tmp_path / 'app.rb'}")
    wait_for("the last one is done", lambda: workers.executions(6) == (1, 1))
    assert engine.task_ids("mail", PARKED, 10).ids == (task_id(3), task_id(5))
    assert sorted(engine.task_ids("mail", RETRYING, 10).ids) == [task_id(1), task_id(2)]
    assert workers.executions(4) == (1, 1)


def test_one_that_cannot_be_parked_is_retried_as_sidekiq_does(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path
) -> None:
    # Of another type, so that whoever would park into it is refused.
    client.set("backstep:sidekiq:parked:mail", "in the way")
    workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, task=UNKNOWN_TASK)
    workers.enqueue("mail", 2, 0)
    wait_for("the next one is done", lambda: workers.executions(2) == (1, 1))
    client.delete("backstep:sidekiq:parked:mail")
    assert engine.task_ids("mail", RETRYING, 10).ids == (task_id(1),)
    (log,) = tmp_path.glob("mail_*.log")
    assert log.read_text("utf-8").count("can't park") == 1


def test_one_that_is_parked_without_an_answer_is_parked_once(
    engine: Engine, workers: Workers, tmp_path: Path
) -> None:
    (tmp_path / "app.rb").write_text(APP_WITHOUT_ANSWERS.format(support=SUPPORT))
    # The step is done for the first one, and not done for the second one.
    for number in (1, 2):
        workers.enqueue("mail", number, task=UNKNOWN_TASK)
    workers.enqueue("mail", 3, 0)
    workers.start(NAME, QUEUES, f"--require={tmp_path / 'app.rb'}")
    wait_for("the next one is done", lambda: workers.executions(3) == (1, 1))
    assert engine.task_ids("mail", PARKED, 10).ids == (task_id(1),)
    wait_for("the other is parked, too", lambda: len(engine.task_ids("mail", PARKED, 10).ids) == 2)
    assert balance(engine, workers.ledger_url, QUEUES).balanced
    assert engine.task_ids("mail", RETRYING, 10).ids == engine.task_ids("mail", WAITING, 10).ids == ()


def test_it_can_be_switched_off(engine: Engine, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARK_UNKNOWN_TASKS", "no")
    workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, task=UNKNOWN_TASK)
    wait_for("it is to be tried again", lambda: engine.task_ids("mail", RETRYING, 10).ids == (task_id(1),))
