# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What only Dramatiq has: anonymous processes and their reporter, taking ahead, retries, dead letters, maintenance."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    ABANDONED,
    DEAD,
    EXECUTING,
    LISTED_STATES,
    RETRYING,
    SCHEDULED,
    WAITING,
    Engine,
    Selection,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.engines import _dramatiq_held
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from dramatiq.brokers.redis import RedisBroker

from tests.support.bench import REPORTERS, TASK, UNKNOWN_TASK
from tests.support.dramatiq_bench import Workers
from tests.support.servers import wait_for
from tests.support.trials import PREFIX, trial

NAME = "mail/1.0-a/w1/1"
QUEUES = ["mail"]
FAIL = "ledger_tasks.fail"
PARKED = Selection(states=("parked",))


@pytest.fixture
def engine(redis_url: str, client: redis.Redis) -> Iterator[Engine]:
    """The Dramatiq engine on the emptied server."""
    with open_engine("dramatiq", redis_url, 5.0) as opened:
        yield opened


@pytest.fixture
def workers(redis_url: str, client: redis.Redis, tmp_path: Path) -> Iterator[Workers]:
    """Starts Dramatiq workers, and kills at the end what still runs."""
    bench = Workers(redis_url, tmp_path)
    yield bench
    bench.stop_all()


def hold(engine: Engine, workers: Workers, *options: str) -> str:
    """Have a new worker execute task 1, and take task 2 ahead; its name."""
    name = workers.start(NAME, QUEUES, *options)
    workers.enqueue("mail", 1, 60)
    wait_for("it executes", lambda: [task.worker for task in engine.executing(QUEUES)] == [name])
    wait_for("it is noted", lambda: workers.executions(1) == (1, 0))
    workers.enqueue("mail", 2, 0)
    wait_for("the next is taken ahead", lambda: not workers.order("mail"))
    return name


def freeze(name: str) -> None:
    """SIGSTOP a worker and its processes."""
    main = int(name.rpartition("/")[2])
    children = Path(f"/proc/{main}/task/{main}/children").read_text(encoding="ascii").split()
    for pid in (main, *map(int, children)):
        os.kill(pid, signal.SIGSTOP)


def forget_reporters(client: redis.Redis) -> None:
    """Leave what a worker without a reporter would."""
    client.delete(*client.keys("backstep:dramatiq:*"))


def maintain(url: str, timeout: int) -> None:
    """Dramatiq's own maintenance, for processes that have been silent for so many milliseconds."""
    broker = RedisBroker(url=url, middleware=[], maintenance_chance=1_000_000, heartbeat_timeout=timeout)
    for queue in ("mail", "mail.DQ"):
        broker.do_qsize(queue)


def test_a_retry_is_no_scheduled_task(engine: Engine, workers: Workers) -> None:
    workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, task=FAIL)
    later = workers.enqueue("mail", 2, 0, delay=3600)

    def counts() -> tuple[int | None, ...]:
        state = engine.queue_states(QUEUES)[0]
        return state.retrying, state.scheduled, state.waiting, state.executing, state.dead

    wait_for("one is to be tried again", lambda: counts() == (1, 1, 0, 0, 0))
    assert engine.task_ids("mail", RETRYING, 10).ids == ("task-1",)
    assert engine.task_ids("mail", SCHEDULED, 10).ids == (later,)
    wait_for("it is counted", lambda: [(seen.finished, seen.failed) for seen in engine.workers()] == [(0, 1)])


def test_what_a_worker_holds_for_later_can_be_parked_once_it_has_stopped(engine: Engine, workers: Workers) -> None:
    name = workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, task=FAIL)
    workers.enqueue("mail", 2, 0, delay=3600)
    wait_for("it holds both", lambda: engine.queue_states(QUEUES)[0].retrying and not workers.order("mail.DQ"))
    assert engine.park(QUEUES, Selection(states=(RETRYING, SCHEDULED)), "ana", "").count == 0
    assert workers.stop(name) == 0
    assert engine.park(QUEUES, Selection(states=(RETRYING,)), "ana", "").ids == ("task-1",)
    assert engine.replay(QUEUES, PARKED).after == {RETRYING: 1}
    assert sorted(workers.order("mail.DQ")) == ["task-1", "task-2"]


def test_what_a_killed_worker_held_for_later_comes_back(engine: Engine, workers: Workers) -> None:
    name = workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, 0, delay=3600)
    wait_for("it holds it", lambda: not workers.order("mail.DQ"))
    assert engine.queue_states(QUEUES)[0].scheduled == 1
    workers.kill(name)
    (task,) = engine.recover(QUEUES, [name], DEAD)
    assert (task.id, task.task, task.to, task.started) == ("task-1", TASK, SCHEDULED, False)
    assert workers.order("mail.DQ") == ["task-1"]


def test_dead_letters_are_parked_and_replayed(
    engine: Engine, workers: Workers, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARK_UNKNOWN_TASKS", "no")
    name = workers.start(NAME, QUEUES)
    ids = [workers.enqueue("mail", number, task=UNKNOWN_TASK) for number in (1, 2, 3)]
    wait_for("all are dead", lambda: engine.queue_states(QUEUES)[0].dead == 3)
    workers.stop(name)
    messages = client.hgetall("dramatiq:mail.XQ.msgs")
    assert engine.park(QUEUES, Selection(states=(DEAD,), ids=(ids[1],)), "ana", "").before == {DEAD: 1}
    assert engine.replay(QUEUES, Selection(states=(DEAD,), limit=1)).ids == (ids[0],)
    assert engine.replay(QUEUES, PARKED).after == {WAITING: 1}
    assert workers.order("mail") == [ids[1], ids[0]]
    assert engine.task_ids("mail", DEAD, 10).ids == (ids[2],)
    assert {**client.hgetall("dramatiq:mail.msgs"), **client.hgetall("dramatiq:mail.XQ.msgs")} == messages
    workers.start(NAME, QUEUES)
    wait_for("all are dead again", lambda: engine.queue_states(QUEUES)[0].dead == 3)


def test_tasks_are_selected_by_when_they_were_enqueued(engine: Engine, workers: Workers, client: redis.Redis) -> None:
    ids = workers.fill("mail", 4)
    stored = [json.loads(message) for message in client.hvals("dramatiq:mail.msgs")]
    times = sorted(message["message_timestamp"] / 1000 for message in stored)
    chosen = Selection(states=(WAITING,), enqueued_after=times[0], enqueued_before=times[3])
    assert sorted(engine.park(QUEUES, chosen, "ana", "").ids) == ids[1:3]


def test_a_worker_past_its_deadline_gives_back_what_it_has_not_begun(engine: Engine, workers: Workers) -> None:
    """It exits with status 0 all the same, and a task that it was cut off in sticks, as anonymous as the process."""
    name = hold(engine, workers, "--worker-shutdown-timeout=500")
    assert workers.stop(name) == 0
    assert engine.workers() == []
    (held,) = engine.executing(QUEUES)
    assert (held.id, held.worker) == ("task-1", name)
    assert engine.recover(QUEUES, [], WAITING) == []
    (task,) = engine.recover(QUEUES, [name], WAITING)
    assert (task.id, task.worker, task.to, task.started) == ("task-1", name, WAITING, True)
    assert workers.order("mail") == ["task-1", "task-2"]


def test_a_worker_of_several_processes_is_one(engine: Engine, workers: Workers, client: redis.Redis) -> None:
    name = workers.start(NAME, QUEUES, "--processes=2", "--threads=2")
    wait_for("both processes are known", lambda: client.zcard("backstep:dramatiq:processes") == 2)
    ids = [workers.enqueue("mail", number, 60) for number in range(6)]
    wait_for("all threads execute", lambda: len(engine.executing(QUEUES)) == 4)
    assert {task.worker for task in engine.executing(QUEUES)} == {name}
    (seen,) = engine.workers()
    assert (seen.name, seen.state, seen.queues) == (name, "busy", ("mail",))
    assert engine.queue_states(QUEUES)[0].workers == 1
    begun = {task.id for task in engine.executing(QUEUES)}
    workers.kill(name)
    found = engine.recover(QUEUES, [name], WAITING)
    assert {task.id for task in found if task.started} == begun
    assert workers.order("mail") == ids
    assert not client.keys("backstep:dramatiq:*")


def test_without_a_reporter_nothing_is_claimed_to_be_known(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    name = hold(engine, workers)
    freeze(name)
    forget_reporters(client)
    state = engine.queue_states(QUEUES)[0]
    assert (state.executing, state.waiting, state.abandoned, state.workers) == (None, 0, 0, 0)
    assert engine.task_ids("mail", EXECUTING, 10).ids == ("task-1", "task-2")
    assert {(task.worker, task.started) for task in engine.executing(QUEUES)} == {(None, None)}
    assert engine.recover(QUEUES, [name], WAITING) == []


def test_who_is_silent_for_a_minute_is_taken_for_dead_as_dramatiq_does(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    name = hold(engine, workers)
    freeze(name)
    (broker,) = client.zrange("backstep:dramatiq:processes", 0, -1)
    process = b"backstep:dramatiq:process:" + broker
    client.hset(process, "beat", float(client.hget(process, "beat") or 0) - 61)
    assert engine.task_ids("mail", ABANDONED, 10).ids == ()  # its heartbeat is younger
    client.zincrby("dramatiq:__heartbeats__", -61_000, broker)
    assert engine.queue_states(QUEUES)[0].abandoned == 2
    assert engine.workers() == []
    found = engine.recover(QUEUES, [], WAITING)
    assert [(task.id, task.started) for task in found] == [("task-1", True), ("task-2", False)]
    assert (found[0].worker, found[0].to) == (name, WAITING)
    assert workers.order("mail") == ["task-1", "task-2"]


def meanwhile(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Have something happen between the look at what is held and its being taken back."""
    take_back = _dramatiq_held._take_back

    def later(*arguments: Any) -> Any:
        happens()
        return take_back(*arguments)

    monkeypatch.setattr(_dramatiq_held, "_take_back", later)


def test_nothing_comes_back_twice_beside_dramatiqs_own_maintenance(
    engine: Engine, workers: Workers, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = workers.start(NAME, QUEUES, "--threads=2")
    ids = [workers.enqueue("mail", number, 60) for number in range(6)]
    ids += [workers.enqueue("mail", number, 0, delay=3600) for number in range(6, 9)]
    wait_for("it holds what it takes", lambda: len(workers.order("mail")) == 2 and not workers.order("mail.DQ"))
    workers.kill(name)
    told = engine.recover(QUEUES, [name], WAITING, dry_run=True)
    meanwhile(monkeypatch, lambda: maintain(redis_url, 0))
    assert (len(told), engine.recover(QUEUES, [name], WAITING)) == (7, [])
    maintain(redis_url, 0)
    assert sorted([*workers.order("mail"), *workers.order("mail.DQ")]) == ids


def test_who_was_taken_for_dead_and_comes_back_keeps_its_tasks(
    engine: Engine, workers: Workers, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze(hold(engine, workers))
    forget_reporters(client)
    (holder,) = [key.split(b".")[1] for key in client.keys("dramatiq:__acks__.*")]
    client.zadd("dramatiq:__heartbeats__", {holder: 1})
    meanwhile(monkeypatch, lambda: client.zadd("dramatiq:__heartbeats__", {holder: 2}))
    assert engine.recover(QUEUES, [], WAITING) == []
    assert workers.order("mail") == []


def test_what_a_process_has_let_go_of_comes_back_without_its_name(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    name = hold(engine, workers)
    workers.kill(name)
    (process,) = client.keys("backstep:dramatiq:process:*")
    client.hset(process, "ended", 1)
    assert [(task.id, task.started) for task in engine.recover(QUEUES, [], WAITING)] == [("task-2", False)]
    assert [task.id for task in engine.executing(QUEUES)] == ["task-1"]


def test_a_canary_is_not_kept_by_a_busy_worker(engine: Engine, workers: Workers) -> None:
    """It takes the next task ahead, and has no thread for it. Another canary reaches the worker that is on trial."""
    workers.start("mail/1.0-a/w1/1", QUEUES)
    workers.enqueue("mail", 1, 60)
    wait_for("it executes", lambda: engine.executing(QUEUES))
    (held,) = engine.send_canary("mail", engine.default_canary, 1, 60)
    wait_for("it has taken the canary", lambda: not workers.order("mail"))
    assert engine.canaries([held])[0].state == "gone"
    engine.withdraw("mail", [held])
    name = workers.start(f"{PREFIX}/1", QUEUES)
    assert trial(engine, name)[1] == "good"


def test_a_canary_that_has_run_out_is_not_executed(engine: Engine, workers: Workers, client: redis.Redis) -> None:
    (known,) = engine.send_canary("mail", FAIL, 1, 1)
    wait_for("it has run out", lambda: not client.exists(f"backstep:dramatiq:canary:{known}"))
    workers.start(NAME, QUEUES)
    wait_for("it is gone", lambda: not client.hlen("dramatiq:mail.msgs"))
    assert engine.queue_states(QUEUES)[0].dead == 0
    wait_for("it is no failure", lambda: [seen.failed for seen in engine.workers()] == [0])


def test_a_note_that_is_lost_is_made_up_for(engine: Engine, workers: Workers, client: redis.Redis) -> None:
    name = hold(engine, workers)
    forget_reporters(client)
    wait_for("it is known again", lambda: [seen.name for seen in engine.workers()] == [name])
    wait_for("its task too", lambda: [task.worker for task in engine.executing(QUEUES)] == [name])
    assert engine.task_ids("mail", WAITING, 10).ids == ("task-2",)


def test_tasks_are_done_though_the_reporter_may_not_write(
    workers: Workers, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.execute_command("ACL", "SETUSER", "app", "reset", "on", ">s3cret", "~dramatiq*", "+@all")
    monkeypatch.setattr(workers, "url", workers.url.replace("redis://", "redis://app:s3cret@"))
    workers.start(NAME, QUEUES)
    for number in range(3):
        workers.enqueue("mail", number, 0)
    wait_for("all are done", lambda: workers.finished() == 3)
    log = (tmp_path / f"{NAME.replace('/', '_')}.log").read_text()
    assert (log.count("Backstep isn't told"), "s3cret" in log) == (1, False)


STRANGE = (
    '{"queue_name":"mail","actor_name":"app.send","args":["\\ud800","}]{[\\"\\\\",18446744073709551617,NaN,[],{}],'
    '"kwargs":{"message_id":"no","actor_name":"no","x":"\\\\"},'
    '"options":{"redis_message_id":"r","retries":"2","traceback":"a\\n\\"retries\\":1}",'
    '"pipe_target":{"message_id":"no","options":{"retries":1}}},'
    '"message_id":"str\\u00e4nge","message_timestamp":1700000000000}'
)


def test_a_payload_is_stepped_over_and_comes_back_as_it_was(engine: Engine, client: redis.Redis) -> None:
    """Whatever it looks like, and however its app's encoder has laid it out."""
    spaced = STRANGE.replace(',"', ' ,\n "').replace('":', '" : ').replace('"2"', "2").encode()
    raw = {b"r": STRANGE.encode(), b"s": spaced}
    client.hset("dramatiq:mail.msgs", mapping={b"r": raw[b"r"]})
    client.rpush("dramatiq:mail", "r")
    client.hset("dramatiq:mail.DQ.msgs", mapping={b"s": raw[b"s"]})
    client.rpush("dramatiq:mail.DQ", "s")
    assert engine.task_ids("mail", WAITING, 10).ids == ("stränge",)
    assert engine.task_ids("mail", RETRYING, 10).ids == ("stränge",)
    chosen = Selection(states=(WAITING, RETRYING), tasks=("app.send",), enqueued_before=1_700_000_001.0)
    assert engine.park(QUEUES, chosen, "ana", "").ids == ("stränge", "stränge")
    assert not client.keys("dramatiq:*")
    assert engine.replay(QUEUES, PARKED).count == 2
    assert {**client.hgetall("dramatiq:mail.msgs"), **client.hgetall("dramatiq:mail.DQ.msgs")} == raw


JUNK = (
    b"", b"{", b"{}", b"[1]", b'{"a"', b'{"a":', b'{"a":"', b'{"a":[', b'"x"', b"\xff\x80\x00", b'{"a":1}"b":2',
    b'{"message_id":1}',
)  # fmt: skip


@pytest.mark.parametrize("junk", JUNK)
def test_what_is_no_message_is_left_where_it_is(engine: Engine, client: redis.Redis, junk: bytes) -> None:
    client.hset("dramatiq:mail.msgs", "r", junk)
    client.rpush("dramatiq:mail", "r", "nowhere")
    client.hset("dramatiq:mail.DQ.msgs", "s", junk)
    client.rpush("dramatiq:mail.DQ", "s")
    for state in LISTED_STATES:
        assert engine.task_ids("mail", state, 10).ids == ()
    assert engine.park(QUEUES, Selection(states=(WAITING, SCHEDULED)), "ana", "").count == 0
    assert client.lrange("dramatiq:mail", 0, -1) == [b"r", b"nowhere"]
    assert client.hgetall("dramatiq:mail.msgs") == {b"r": junk}


def test_what_is_no_message_comes_back_from_a_dead_process_all_the_same(engine: Engine, client: redis.Redis) -> None:
    client.hset("dramatiq:mail.msgs", "r", b"\x80pickled")
    client.sadd("dramatiq:__acks__.somebody.mail", "r", "acknowledged")
    client.zadd("dramatiq:__heartbeats__", {"somebody": 1})
    (task,) = engine.recover(QUEUES, [], WAITING)
    assert (task.id, task.task, task.started) == ("r", None, True)
    assert client.lrange("dramatiq:mail", 0, -1) == [b"r"]


AN_APP = """
import types, dramatiq
from dramatiq.brokers.stub import StubBroker

def make(name):
    broker = StubBroker()
    broker.name = name
    return broker

def setup():
    dramatiq.set_broker(make("made"))

dramatiq.set_broker(make("global"))
other = make("other")
folder = types.SimpleNamespace(other=other)
"""
NAMED = {
    "an_app": "global", "an_app:other": "other", "an_app:folder.other": "other", "an_app more": "global more",
    "an_app:setup": "made",
}  # fmt: skip


def test_the_app_is_named_as_for_dramatiq_itself(tmp_path: Path) -> None:
    (tmp_path / "an_app.py").write_text(AN_APP)
    (tmp_path / "more.py").write_text("import dramatiq; dramatiq.get_broker().name += ' more'")
    code = (
        "import sys; from backstep_dramatiq import broker, load_app;"
        "print(broker.name, *(load_app(named).name for named in sys.argv[2:]), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *NAMED],
        capture_output=True,
        text=True,
        check=False,
        env={"APP": "an_app", "BACKSTEP_WORKER": f"{NAME}/1", "PYTHONPATH": f"{tmp_path}:{REPORTERS}"},
    )
    assert done.stdout.splitlines() == list(NAMED.values())
    assert "Backstep can't watch" in done.stderr
