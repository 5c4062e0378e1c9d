# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What only streams have: groups, entries of any bytes, counts that Redis gets wrong, and a convention for workers."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    DEAD,
    EXECUTING,
    PARKED,
    WAITING,
    Engine,
    Selection,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.engines import (
    _streams_moves,
    streams,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.engines import _streams_scripts as scripts
from ansible_collections.backstep.workers.plugins.module_utils._queue.engines._redis import RedisLink
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BrokerRefused

from tests.support.documents import shown_and_tested
from tests.support.servers import wait_for
from tests.support.streams_bench import Workers

QUEUES = ["mail"]
NAME = "mail/1.0-a/w1/1"
ONLY_WAITING, ONLY_PARKED = Selection(states=(WAITING,)), Selection(states=(PARKED,))


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


def take(client: redis.Redis, consumer: str, count: int = 1, group: str = "workers") -> None:
    client.xreadgroup(group, consumer, {"mail": ">"}, count=count)


def test_the_documented_worker_is_the_one_that_is_tested() -> None:
    """But for where its tasks come from."""
    shown, tested = shown_and_tested("redis", "streams_worker.py")
    assert shown == tested != ""


def test_fields_of_any_bytes_come_back_as_they_were(engine: Engine, client: redis.Redis) -> None:
    entries = [
        [b"id", b"7", b"data", bytes(range(256))],
        [b"", b"", b"1", b"1.0", b"twice", b"a", b"twice", b"b"],
        [b"n", b"-0", b"big", b"9" * 70_000, b"json", b'{"a": []}'],
    ]
    for fields in entries:
        client.execute_command("XADD", "mail", "*", *fields)
    known = engine.task_ids("mail", WAITING, 10).ids
    assert known[0] == "7"
    assert re.fullmatch(r"\d+-\d+", known[1])
    engine.park(QUEUES, ONLY_WAITING, "ana", "")
    assert (client.xlen("mail"), engine.task_ids("mail", PARKED, 10).ids) == (0, known)
    engine.replay(QUEUES, ONLY_PARKED)
    as_they_lie = "local e = redis.call('XRANGE', 'mail', '-', '+') return {e[1][2], e[2][2], e[3][2]}"
    assert client.eval(as_they_lie, 0) == entries


def _operations(client: redis.Redis, engine: Engine, dice: random.Random) -> dict[str, Callable[[], object]]:
    def unread() -> list[bytes]:
        (group,) = client.xinfo_groups("mail")
        return [entry for entry, _fields in client.xrange("mail", b"(" + group["last-delivered-id"])]

    def pending() -> list[bytes]:
        return [found["message_id"] for found in client.xpending_range("mail", "workers", "-", "+", 2)]

    def any_of(entries: list[bytes]) -> list[bytes]:
        return dice.sample(entries, min(len(entries), 1))

    return {
        "add": lambda: [client.xadd("mail", {"a": "b"}) for _number in range(3)],
        "take": lambda: take(client, dice.choice("ab"), 2),
        "acknowledge": lambda: [client.xack("mail", "workers", entry) for entry in pending()],
        "delete any": lambda: [client.xdel("mail", e) for e in any_of([e for e, _fields in client.xrange("mail")])],
        "delete unread": lambda: [client.xdel("mail", entry) for entry in any_of(unread())],
        "trim": lambda: client.xtrim("mail", maxlen=dice.randint(0, 8), approximate=False),
        "set": lambda: [client.xgroup_setid("mail", "workers", entry) for entry in any_of(unread())],
        "park": lambda: engine.park(QUEUES, Selection(states=(WAITING,), limit=2), "ana", ""),
        "replay": lambda: engine.replay(QUEUES, Selection(states=(PARKED,), limit=2)),
        "recover": lambda: engine.recover(QUEUES, ["a"], WAITING),
    }


@pytest.mark.parametrize("seed", range(12))
def test_what_waits_is_counted_right_whatever_was_deleted(
    engine: Engine, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Redis' own count is then null, or a number that is too high."""
    monkeypatch.setattr(streams, "BATCH", 2)
    client.xgroup_create("mail", "workers", "0", mkstream=True)
    dice = random.Random(seed)
    operations = _operations(client, engine, dice)
    done = []
    for name in dice.choices([*operations, "add", "add", "add", "take", "take"], k=60):
        operations[name]()
        done.append(name)
        (group,) = client.xinfo_groups("mail")
        waiting = client.xrange("mail", b"(" + group["last-delivered-id"])
        assert engine.queue_states(QUEUES)[0].waiting == len(waiting), done
        assert list(engine.task_ids("mail", WAITING, 99).ids) == [entry.decode() for entry, _fields in waiting]


def test_a_group_of_any_name_is_the_pools_as_long_as_it_is_the_only_one(engine: Engine, client: redis.Redis) -> None:
    for number in range(3):
        client.xadd("mail", {"id": f"task-{number}"})
    client.xgroup_create("mail", "letters", "0")
    take(client, "ana", group="letters")
    (state,) = engine.queue_states(QUEUES)
    assert (state.waiting, state.executing) == (2, 1)
    client.xgroup_create("mail", "audit", "0")
    (state,) = engine.queue_states(QUEUES)
    assert (state.waiting, state.executing) == (None, None)
    client.xgroup_create("mail", "workers", "0")
    (state,) = engine.queue_states(QUEUES)
    assert (state.waiting, state.executing) == (3, 0)


def test_a_stream_that_other_groups_read_is_left_alone(engine: Engine, client: redis.Redis) -> None:
    client.xadd("mail", {"id": "task-1"})
    client.xgroup_create("mail", "workers", "0")
    client.xgroup_create("mail", "audit", "0")
    take(client, "ana")
    before = client.dump("mail")
    for attempt in (
        lambda: engine.park(QUEUES, ONLY_WAITING, "ana", ""),
        lambda: engine.replay(QUEUES, ONLY_PARKED),
        lambda: engine.recover(QUEUES, ["ana"], WAITING),
        lambda: engine.send_canary("mail", engine.default_canary, 1, 60),
    ):
        with pytest.raises(BrokerRefused, match="Several consumer groups read mail"):
            attempt()
    assert client.dump("mail") == before


def test_what_is_recovered_as_dead_is_parked_and_can_be_replayed(engine: Engine, client: redis.Redis) -> None:
    client.xadd("mail", {"id": "task-1", "task": "app.send", "data": b"\0"})
    client.xgroup_create("mail", "workers", "0")
    take(client, "ana")
    (told,) = engine.recover(QUEUES, ["ana"], DEAD)
    assert (told.id, told.worker, told.to) == ("task-1", "ana", PARKED)
    assert engine.task_ids("mail", EXECUTING, 10).ids == ()
    assert engine.replay(QUEUES, ONLY_PARKED).ids == ("task-1",)
    assert [fields for _entry, fields in client.xrange("mail")] == [
        {b"id": b"task-1", b"task": b"app.send", b"data": b"\0"}
    ]


def test_a_task_that_was_trimmed_away_under_its_worker_hides_no_other(engine: Engine, client: redis.Redis) -> None:
    for number in (1, 2):
        client.xadd("mail", {"id": f"task-{number}"})
    client.xgroup_create("mail", "workers", "0")
    take(client, "ana", 2)
    client.xtrim("mail", maxlen=1, approximate=False)
    assert len(engine.executing(QUEUES)) == 2
    assert [task.id for task in engine.recover(QUEUES, ["ana"], WAITING)] == ["task-2"]
    assert engine.executing(QUEUES) == []


def test_a_dead_worker_keeps_what_it_holds_of_queues_that_are_not_recovered(
    engine: Engine, client: redis.Redis
) -> None:
    for queue in ("mail", "reports"):
        client.xadd(queue, {"id": f"{queue}-1"})
        client.xgroup_create(queue, "workers", "0")
        client.xreadgroup("workers", "ana", {queue: ">"})
    assert [task.id for task in engine.recover(QUEUES, ["ana"], WAITING)] == ["mail-1"]
    assert [(task.id, task.worker) for task in engine.executing(["reports"])] == [("reports-1", "ana")]
    assert [worker.queues for worker in engine.workers()] == [("reports",)]


def test_what_was_delivered_while_a_park_was_at_work_stays_with_its_worker(
    engine: Engine, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_streams_moves, "BATCH", 2)
    for number in range(6):
        client.xadd("mail", {"id": f"task-{number}"})
    client.xgroup_create("mail", "workers", "0")
    asked = RedisLink.run

    def run(link: RedisLink, script: str, *arguments: Any) -> Any:
        answer = asked(link, script, *arguments)
        if script == scripts.PARK:
            take(client, "ana")
        return answer

    monkeypatch.setattr(RedisLink, "run", run)
    assert engine.park(QUEUES, ONLY_WAITING, "ana", "").ids == ("task-0", "task-1", "task-3", "task-4")
    assert [task.id for task in engine.executing(QUEUES)] == ["task-2", "task-5"]


def test_a_workers_queues_are_told_in_its_own_order(engine: Engine, workers: Workers) -> None:
    name = workers.start(NAME, ["urgent", "mail"])
    assert [(worker.name, worker.queues) for worker in engine.workers()] == [(name, ("urgent", "mail"))]


def test_a_consumer_without_its_connection_counts_as_no_worker(
    engine: Engine, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be between two connections, or hold a task; else it is a ghost, and no longer listed."""
    client.xadd("mail", {"id": "task-1"})
    client.xgroup_create("mail", "workers", "0")
    client.xgroup_createconsumer("mail", "workers", "ana")
    assert [(worker.name, worker.connected) for worker in engine.workers()] == [("ana", False)]
    assert engine.queue_states(QUEUES)[0].workers == 0
    monkeypatch.setattr(streams, "_HEARD_SECONDS", 0.0)
    assert engine.workers() == []
    take(client, "ana")
    assert [(worker.name, worker.current_task) for worker in engine.workers()] == [("ana", "task-1")]
    client.client_setname("ana")
    assert engine.queue_states(QUEUES)[0].workers == 1


def test_a_withdrawn_canary_leaves_nothing_in_the_stream(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    (unread,) = engine.send_canary("mail", engine.default_canary, 1, 60)
    engine.withdraw("mail", [unread])
    assert client.xlen("mail") == 0
    name = workers.start(NAME, QUEUES)
    (done,) = engine.send_canary("mail", engine.default_canary, 1, 60)
    wait_for("it is done", lambda: engine.canaries([done])[0].state == "finished")
    assert engine.canaries([done])[0].worker == name
    assert engine.workers()[0].finished == 1
    engine.withdraw("mail", [done])
    assert (client.xlen("mail"), engine.workers()[0].finished, client.keys("*canary*")) == (0, 0, [])


def test_a_worker_that_counts_nothing_is_not_said_to_fail_nothing(engine: Engine, client: redis.Redis) -> None:
    client.xgroup_create("mail", "workers", "0", mkstream=True)
    client.xgroup_createconsumer("mail", "workers", "ana")
    assert [(worker.finished, worker.failed) for worker in engine.workers()] == [(0, None)]


def test_a_failed_task_is_counted(engine: Engine, workers: Workers) -> None:
    workers.start(NAME, QUEUES)
    workers.enqueue("mail", 1, task="ledger_tasks.fail")
    workers.enqueue("mail", 2, 0)
    wait_for("both are counted", lambda: [(w.finished, w.failed) for w in engine.workers()] == [(1, 1)])


def test_a_task_whose_delivery_was_lost_is_executed_by_the_same_worker(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    """The reply that carried it may have died with a connection."""
    name = workers.start(NAME, QUEUES)
    with client.pipeline(transaction=True) as together:
        together.xadd("mail", {"id": "task-1", "task": "ledger_tasks.work", "arguments": "[1, 0]"})
        together.xreadgroup("workers", name, {"mail": ">"})
        together.execute()
    assert engine.task_ids("mail", EXECUTING, 10).ids == ("task-1",)
    wait_for("it is done", lambda: workers.executions(1) == (1, 1))
    wait_for("it is acknowledged", lambda: engine.executing(QUEUES) == [])
