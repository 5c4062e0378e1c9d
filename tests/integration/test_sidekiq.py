# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What only Sidekiq has: sets that all queues share, its own shutdown, other versions, and a reporter inside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    ABANDONED,
    DEAD,
    RETRYING,
    SCHEDULED,
    WAITING,
    Engine,
    Selection,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine

from tests.support.bench import REPORTERS, SUPPORT
from tests.support.servers import wait_for
from tests.support.sidekiq_bench import Workers

NAME = "mail/1.0-a/w1/1"
QUEUES = ["mail"]
# What Lua's JSON would spoil, and what looks like a field and is none.
ARGUMENTS = '1,60,{"a":[],"b":12345678901234567890},[{}],"\\"jid\\":\\"x\\"}","\\u00e4\\\\",1795227819.2245169'


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


def payload(known_as: str, queue: str = "mail", arguments: str = "1,60", **fields: object) -> str:
    """A task as a producer writes it."""
    given = {"class": "LedgerTasks::Work", "queue": queue, "jid": known_as, "created_at": 1795227819.25, **fields}
    return f'{{"retry":true,"args":[{arguments}],' + json.dumps(given)[1:]


def hold(engine: Engine, workers: Workers, *options: str, queues: list[str] | None = None) -> str:
    """Have a new worker execute task 1; its name."""
    name = workers.start(NAME, queues or QUEUES, *options)
    workers.enqueue("mail", 1, 60)
    wait_for("it executes", lambda: [found.worker for found in engine.executing(QUEUES)] == [name])
    wait_for("it is noted", lambda: workers.executions(1) == (1, 0))
    return name


def held(client: redis.Redis, name: str, *raws: str) -> None:
    """Write what a worker leaves that is killed while it executes these."""
    client.zadd("backstep:sidekiq:workers", {name: 1})
    for number, raw in enumerate(raws):
        client.hset(f"backstep:sidekiq:held:{name}", str(number), f"179522781{number}.5\0mail\0{raw}")


def variables_of_a_worker(url: str) -> dict[str, str]:
    """What has a Ruby program load the reporter."""
    return {"RUBYOPT": f"-r{REPORTERS / 'backstep_sidekiq.rb'}", "REDIS_URL": url}


def test_what_sidekiq_gives_back_itself_is_not_given_back_again(engine: Engine, workers: Workers) -> None:
    name = hold(engine, workers, "--timeout=1")
    workers.signal(name, signal.SIGTERM)
    assert workers.wait(name) == 0
    assert workers.order("mail") == ["task-1"]
    assert engine.recover(QUEUES, [name], WAITING) == []
    assert workers.order("mail") == ["task-1"]


def test_what_was_recovered_is_not_given_back_by_sidekiq_again(engine: Engine, workers: Workers) -> None:
    """A worker that was taken for dead, and is not."""
    name = hold(engine, workers, "--timeout=1")
    assert [task.id for task in engine.recover(QUEUES, [name], DEAD)] == ["task-1"]
    workers.signal(name, signal.SIGTERM)
    assert workers.wait(name) == 0
    assert (workers.order("mail"), engine.task_ids("mail", DEAD, 10).ids) == ([], ("task-1",))


@pytest.mark.parametrize("queues", [["mail"], ["other", "mail"]])
def test_what_an_idle_worker_takes_is_held_from_the_first_moment(
    engine: Engine, workers: Workers, queues: list[str]
) -> None:
    name = hold(engine, workers, queues=queues)
    (found,) = engine.queue_states(QUEUES)
    assert (found.waiting, found.executing, found.workers) == (0, 1, 1)
    workers.kill(name)
    assert [task.id for task in engine.recover(QUEUES, [name], WAITING)] == ["task-1"]


def test_what_cannot_be_noted_is_not_executed_and_not_lost(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    name = workers.start(NAME, QUEUES)
    client.set(f"backstep:sidekiq:held:{name}", "no hash")
    workers.enqueue("mail", 1, 0)
    wait_for("it is taken", lambda: workers.order("mail") == [])
    workers.enqueue("mail", 2, 0)
    assert workers.order("mail") == ["task-2"]
    client.delete(f"backstep:sidekiq:held:{name}")
    wait_for("both are done", lambda: [workers.executions(number) for number in (1, 2)] == [(1, 1), (1, 1)])


def test_what_was_taken_and_not_begun_is_waiting_until_its_worker_is_gone(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    name = "mail/1.0-a/w1/1/7"
    client.zadd("backstep:sidekiq:workers", {name: 1})
    client.hset(f"backstep:sidekiq:worker:{name}", mapping={"birth": 1, "queues": "mail"})
    client.lpush(f"backstep:sidekiq:taken:mail:{name}", payload("a"))
    assert engine.queue_states(QUEUES)[0].waiting == 1
    assert (engine.task_ids("mail", WAITING, 10).ids, engine.executing(QUEUES)) == (("a",), [])
    client.delete(f"backstep:sidekiq:worker:{name}")
    assert (engine.queue_states(QUEUES)[0].waiting, engine.queue_states(QUEUES)[0].abandoned) == (0, 1)
    (task,) = engine.recover(QUEUES, [], DEAD)
    assert (task.id, task.to, task.started, task.worker) == ("a", "waiting", False, None)
    assert workers.order("mail") == ["a"]
    assert not client.keys("backstep:*")


def test_what_a_worker_held_that_reports_no_more_is_abandoned_and_comes_back_in_its_old_order(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    held(client, "mail/1.0-a/w1/1/7", payload("a"), payload("b"), payload("c", queue="other"))
    client.lpush("queue:mail", payload("d"))
    assert engine.task_ids("mail", ABANDONED, 10).ids == ("a", "b", "c")
    assert [task.id for task in engine.recover(QUEUES, [], WAITING)] == ["a", "b", "c"]
    assert workers.order("mail") == ["a", "b", "c", "d"]
    assert engine.recover(QUEUES, [], WAITING) == []


@pytest.mark.parametrize("place", ["retry", "dead"])
def test_what_was_passed_on_to_be_retried_is_only_let_go_of(engine: Engine, client: redis.Redis, place: str) -> None:
    """Killed between Sidekiq's note of a failure and the end of its execution."""
    held(client, "mail/1.0-a/w1/1/7", payload("a"))
    client.zadd(place, {payload("a", error_class="RuntimeError"): time.time() + 15})
    assert engine.recover(QUEUES, [], WAITING) == []
    assert (client.llen("queue:mail"), client.zcard(place)) == (0, 1)
    assert not client.keys("backstep:*")


def test_a_recovered_task_is_retried_as_if_it_had_failed(engine: Engine, client: redis.Redis) -> None:
    first = payload("a", arguments=ARGUMENTS)
    again = payload("b", created_at=1795227819250, retry_count=2, error_message="old", failed_at=7)
    once = payload("c", retry=False)
    held(client, "mail/1.0-a/w1/1/7", first, again, once.replace('"retry":true,', ""))
    told = engine.recover(QUEUES, [], DEAD, dry_run=True)
    assert [(task.id, task.to) for task in told] == [("a", "scheduled"), ("b", "scheduled"), ("c", "dead")]
    assert client.zcard("retry") == 0
    began = time.time()
    assert engine.recover(QUEUES, [], DEAD) == told
    ended = time.time()
    (one, due), (other, later) = client.zrange("retry", 0, -1, withscores=True)
    assert f'"args":[{ARGUMENTS}]'.encode() in one
    assert json.loads(one)["args"] == json.loads(first)["args"]
    assert all(raw.count(b'"error_message":') == raw.count(b'"retry_count":') == 1 for raw in (one, other))
    assert (json.loads(one)["retry_count"], json.loads(other)["retry_count"]) == (0, 3)
    assert int(began) <= json.loads(one)["failed_at"] <= ended
    assert int(began * 1000) <= json.loads(other)["retried_at"] <= ended * 1000
    assert (json.loads(other)["failed_at"], json.loads(other)["error_message"]) == (7, "its worker is gone")
    assert all(int(began) <= at <= ended for at in (due - 15, later - 15 - 3**4))
    assert engine.task_ids("mail", DEAD, 10).ids == ("c",)
    assert engine.task_ids("mail", RETRYING, 10).ids == ("a", "b")


def test_shared_sets_are_counted_and_moved_by_queue(engine: Engine, client: redis.Redis) -> None:
    for place in ("schedule", "retry", "dead"):
        for queue in ("mail", "other"):
            client.zadd(place, {payload(f"{place}-{queue}", queue, ARGUMENTS): 4_000_000_000.123456})
    before = {place: client.dump(place) for place in ("schedule", "retry")}
    (found,) = engine.queue_states(QUEUES)
    assert (found.scheduled, found.retrying, found.dead) == (1, 1, 1)
    everything = Selection(states=(SCHEDULED, RETRYING, DEAD))
    parked = engine.park(QUEUES, everything, "ana", "")
    assert sorted(parked.ids) == ["dead-mail", "retry-mail", "schedule-mail"]
    assert [client.zcard(place) for place in ("schedule", "retry", "dead")] == [1, 1, 1]
    replayed = engine.replay(QUEUES, Selection(states=("parked",)))
    assert replayed.after == {"scheduled": 1, "retrying": 1, "waiting": 1}
    assert {place: client.dump(place) for place in before} == before
    assert engine.replay(["other"], Selection(states=(DEAD,))).ids == ("dead-other",)
    assert client.lrange("queue:other", 0, -1) == [payload("dead-other", "other", ARGUMENTS).encode()]


def test_a_task_of_active_job_has_the_name_of_its_job(engine: Engine, client: redis.Redis) -> None:
    wrapper = "ActiveJob::QueueAdapters::SidekiqAdapter::JobWrapper"
    client.lpush("queue:mail", payload("a", **{"class": wrapper, "wrapped": "LetterJob"}), payload("b"))
    assert engine.park(QUEUES, Selection(states=(WAITING,), tasks=("LetterJob",)), "ana", "").ids == ("a",)


def test_tasks_are_selected_by_when_they_were_enqueued_in_either_unit(engine: Engine, client: redis.Redis) -> None:
    client.lpush("queue:mail", payload("old", enqueued_at=1_795_000_000_500))
    client.lpush("queue:mail", payload("new", enqueued_at=1_796_000_000.5))
    selected = Selection(states=(WAITING,), enqueued_after=1_795_500_000)
    assert engine.park(QUEUES, selected, "ana", "").ids == ("new",)
    age = engine.queue_states(QUEUES)[0].oldest_waiting_seconds
    assert age is not None
    assert abs(time.time() - 1_795_000_000.5 - age) < 60


@pytest.mark.parametrize(("version", "key"), [("6.4.1", "workers"), ("7.3.10", "work"), ("8.1.7", "work")])
def test_processes_without_a_reporter_are_read_as_they_tell_themselves(
    engine: Engine, client: redis.Redis, version: str, key: str
) -> None:
    identity = "w9:123:abcdef"
    info = {"hostname": "w9", "pid": 123, "queues": ["mail"], "started_at": 1795227819.5, "version": version}
    client.sadd("processes", identity, "w9:5:gone")
    client.hset(identity, mapping={"info": json.dumps(info), "busy": 1, "beat": 1795227829.5, "quiet": "false"})
    told = {"queue": "mail", "payload": payload("a", arguments=ARGUMENTS), "run_at": 1795227820}
    client.hset(f"{identity}:{key}", "tid", json.dumps(told))
    (worker,) = engine.workers()
    assert (worker.name, worker.parsed, worker.pid, worker.state) == (identity, None, 123, "busy")
    (task,) = engine.executing(QUEUES)
    assert (task.id, task.task, task.worker, task.started) == ("a", "LedgerTasks::Work", identity, 1795227820)
    (found,) = engine.queue_states(QUEUES)
    assert (found.executing, found.workers) == (1, 1)
    client.hset(identity, "quiet", "true")
    assert engine.queue_states(QUEUES)[0].workers == 0


def test_a_quieted_worker_listens_no_more(engine: Engine, workers: Workers) -> None:
    name = workers.start(NAME, QUEUES)
    workers.signal(name, signal.SIGTSTP)
    wait_for("it says so", lambda: [worker.state for worker in engine.workers()] == ["suspended"])
    assert engine.queue_states(QUEUES)[0].workers == 0


def test_a_canary_that_has_run_out_is_not_executed(
    engine: Engine, workers: Workers, client: redis.Redis, tmp_path: Path
) -> None:
    for canary in engine.send_canary("mail", "LedgerTasks::Fail", 2, 60):
        client.delete(f"backstep:sidekiq:canary:{canary}")
    workers.enqueue("mail", 1, 0)
    workers.start(NAME, QUEUES)
    wait_for("the task is done", lambda: engine.workers()[0].finished == 1)
    (log,) = tmp_path.glob("*.log")
    assert "class=LedgerTasks::Work" in log.read_text("utf-8")
    assert "class=LedgerTasks::Fail" not in log.read_text("utf-8")


def test_failed_tasks_are_counted_also_those_of_an_unknown_class(
    engine: Engine, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARK_UNKNOWN_TASKS", "no")
    workers.enqueue("mail", 1, task="ledger_tasks.fail")
    workers.enqueue("mail", 2, task="app.tasks.unknown")
    workers.enqueue("mail", 3, 0)
    workers.start(NAME, QUEUES)
    wait_for("all are done", lambda: [(seen.finished, seen.failed) for seen in engine.workers()] == [(1, 2)])


def test_other_ruby_programs_are_left_alone(redis_url: str, client: redis.Redis) -> None:
    """A worker's tasks start programs that inherit its environment."""
    variables = {**variables_of_a_worker(redis_url), "BACKSTEP_WORKER": f"{NAME}/1"}
    program = "require 'sidekiq/cli'; print [BackstepCanary].size rescue print $!.class"
    done = subprocess.run(
        ["ruby", "-e", program], env={**os.environ, **variables}, check=True, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("NameError", "")
    assert not client.keys("*")


def test_a_sidekiq_that_backstep_has_not_started_is_left_alone(
    engine: Engine, redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    variables = {**variables_of_a_worker(redis_url), "BACKSTEP_WORKER": ""}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["sidekiq", f"--require={SUPPORT / 'sidekiq_app.rb'}", "--queue=mail"],
            env={**os.environ, **variables}, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_for("it is there", lambda: [worker.pid for worker in engine.workers()] == [process.pid])
        assert not client.keys("backstep:*")
    finally:
        process.kill()
        process.wait(10)
