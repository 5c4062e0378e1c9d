# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read from a broker: each state against a known load, who executes what, and that no answer is an error."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    DEAD,
    EXECUTING,
    LISTED_STATES,
    PARKED,
    RETRYING,
    SCHEDULED,
    WAITING,
    Engine,
    Selection,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BrokerRefused, BrokerUnreachable

from tests.conformance.conftest import BENCHES, on_redis
from tests.support.bench import TASK, UNKNOWN_TASK, Bench
from tests.support.brokers import KINDS, Broker, Ports, server
from tests.support.servers import redis_server, wait_for

NAME = "mail/1.0-a/w1/1"


def counts(engine: Engine, queue: str) -> dict[str, int | None]:
    (found,) = engine.queue_states([queue])
    return {state: getattr(found, state) for state in LISTED_STATES}


def expected(engine: Engine, **load: int) -> dict[str, int | None]:
    """What has to be told of a load: null, and never 0, where the engine can't tell."""
    unknown = engine.capabilities.uncountable_states
    return {state: None if state in unknown else load.get(state, 0) for state in LISTED_STATES}


def test_each_engine_is_tested_with_its_own_workers() -> None:
    assert all(bench.engine == name for name, bench in BENCHES.items())


def test_an_empty_queue_has_zeros_and_no_age(engine: Engine) -> None:
    assert counts(engine, "nothing") == expected(engine)
    (found,) = engine.queue_states(["nothing"])
    assert (found.workers, found.oldest_waiting_seconds) == (0, None)


def test_each_state_is_counted_and_listed(engine: Engine, bench: Bench) -> None:
    name = bench.start(NAME, ["mail"])
    unknown = bench.enqueue("mail", 0, task=UNKNOWN_TASK)
    executing = bench.enqueue("mail", 1, 60)
    wait_for("it executes", lambda: [task.id for task in engine.executing(["mail"])] == [executing])
    waiting = [bench.enqueue("mail", number, 0) for number in (2, 3)]
    scheduled = [bench.enqueue("mail", 4, 0, delay=3600)] if bench.schedules else []
    kept = {DEAD: DEAD, "retried": RETRYING, PARKED: PARKED}.get(engine.capabilities.unknown_task)
    load = expected(engine, executing=1, waiting=2, scheduled=len(scheduled), **({kept: 1} if kept else {}))
    wait_for("everything is where it belongs", lambda: counts(engine, "mail") == load)
    listed = {state: sorted(engine.task_ids("mail", state, 10).ids) for state in LISTED_STATES}
    held = {EXECUTING: [executing], WAITING: waiting, SCHEDULED: scheduled, kept: [unknown]}
    assert listed == {state: held.get(state, []) for state in LISTED_STATES}
    assert [worker.name for worker in engine.workers()] == [name]


def test_each_task_is_told_by_its_name(engine: Engine, bench: Bench) -> None:
    began = time.time()
    bench.start(NAME, ["mail"])
    bench.enqueue("mail", 0, task=UNKNOWN_TASK)
    executing = bench.enqueue("mail", 1, 60)
    wait_for("it executes", lambda: [task.id for task in engine.executing(["mail"])] == [executing])
    for number in (2, 3):
        bench.enqueue("mail", number, 0)
    parked = [bench.enqueue("other", number, task=UNKNOWN_TASK) for number in (4, 5)]
    bench.enqueue("other", 6, 0)
    engine.park(["other"], Selection((WAITING,), ids=tuple(parked[:1])), "test", "")
    if bench.schedules:
        bench.enqueue("mail", 7, 0, delay=3600)
    kept = {DEAD: DEAD, "retried": RETRYING, PARKED: PARKED}.get(engine.capabilities.unknown_task)
    known, unknown = bench.named(TASK), bench.named(UNKNOWN_TASK)
    load = {
        ("mail", EXECUTING, known): 1, ("mail", WAITING, known): 2, ("other", WAITING, known): 1,
        ("other", WAITING, unknown): 1, ("other", PARKED, unknown): 1,
        **({("mail", SCHEDULED, known): 1} if bench.schedules else {}),
        **({("mail", kept, unknown): 1} if kept else {}),
    }  # fmt: skip

    def named() -> dict[tuple[str, str, str | None], int]:
        return {(some.queue, some.state, some.task): some.count for some in engine.named_tasks(["mail", "other"])}

    wait_for("everything is told by its name", lambda: named() == load)
    times = [some.oldest for some in engine.named_tasks(["mail", "other"]) if some.oldest is not None]
    # The producer for Dramatiq says that an hour has passed since.
    assert all(began - 7200 <= at <= time.time() + 1 for at in times)
    assert engine.named_tasks(["nothing"]) == []


def test_what_executes_is_told_with_its_worker_and_its_start(engine: Engine, bench: Bench) -> None:
    names = [bench.start(f"mail/1.0-a/w1/{index}", ["mail"]) for index in (1, 2)]
    began = time.time()
    # One more than they execute: the first may have taken the second one ahead.
    ids = [bench.enqueue("mail", number, 60) for number in (1, 2, 3)]
    wait_for("both execute", lambda: len(engine.executing(["mail"])) == 2)
    # An engine may list a task as begun a moment before its worker says so of itself.
    wait_for("both workers say so", lambda: all(worker.current_task for worker in engine.workers()))
    found = engine.executing(["mail"])
    assert {task.worker for task in found} == set(names)
    assert len({task.id for task in found} & set(ids)) == 2
    assert {(task.task, task.queue) for task in found} == {(bench.named(TASK), "mail")}
    assert all(task.started and began - 1 <= task.started <= time.time() + 1 for task in found)
    assert engine.executing(["other"]) == []
    workers = {worker.name: worker for worker in engine.workers()}
    for name in names:
        parsed = workers[name].parsed
        assert parsed is not None
        assert (parsed.pool, parsed.release, parsed.host, parsed.pid) == ("mail", "1.0-a", "w1", workers[name].pid)
        assert (workers[name].queues, workers[name].state) == (("mail",), "busy")
        assert workers[name].current_task in ids


def test_a_list_that_is_cut_says_so(engine: Engine, bench: Bench) -> None:
    ids = [bench.enqueue("mail", number, 0) for number in range(3)]
    cut = engine.task_ids("mail", WAITING, 2)
    assert (cut.ids, cut.cut) == (tuple(ids[:2]), True)
    assert not engine.task_ids("mail", WAITING, 3).cut


def test_queues_are_known_by_their_tasks_and_by_their_workers(engine: Engine, bench: Bench) -> None:
    bench.start(NAME, ["idle"])
    bench.enqueue("busy", 1, 0)
    assert engine.known_queues() == ["busy", "idle"]
    assert [state.workers for state in engine.queue_states(["busy", "idle"])] == [0, 1]


def test_reading_changes_nothing(engine: Engine, bench: Bench, broker: Broker) -> None:
    for number in range(3):
        bench.enqueue("mail", number, 0)
    before = broker.contents()
    engine.check(write=True)
    engine.queue_states(["mail"])
    for state in LISTED_STATES:
        engine.task_ids("mail", state, 10)
    engine.named_tasks(["mail"])
    engine.workers()
    engine.executing(["mail"])
    engine.pause_state()
    engine.known_queues()
    assert broker.contents() == before


def test_a_broker_that_is_not_there_is_an_error_with_a_masked_url(kind: type[Bench]) -> None:
    with open_engine(kind.engine, KINDS[kind.broker].nowhere("s3cret"), 1.0) as engine:
        asked = (lambda: engine.check(False), lambda: engine.queue_states(["mail"]), engine.workers)
        for ask in (*asked, lambda: engine.executing(["mail"]), engine.known_queues):
            with pytest.raises(BrokerUnreachable) as failure:
                ask()
            assert f"{KINDS[kind.broker].scheme} at 127.0.0.1" in str(failure.value)
            assert "s3cret" not in str(failure.value.result())


@on_redis
def test_a_broker_that_hangs_is_an_error_within_the_time_out(kind: type[Bench], tmp_path: Path) -> None:
    with redis_server(tmp_path) as url, open_engine(kind.engine, url, 0.5) as engine:
        with redis.Redis.from_url(url) as client:
            client.client_pause(2_000)
        for ask in (lambda: engine.queue_states(["mail"]), engine.workers):
            with pytest.raises(BrokerUnreachable):
                ask()


def test_a_broker_that_restarts_is_an_error_meanwhile_and_goes_on_after(
    kind: type[Bench], ledger_url: str, tmp_path: Path
) -> None:
    """Some engines' workers end when their broker goes away; their supervisor then starts others."""
    ports = Ports(kind.broker)
    with ExitStack() as parts:
        with server(kind.broker, tmp_path, ports) as url:
            bench = kind(url, tmp_path, ledger_url=ledger_url)
            parts.callback(bench.stop_all)
            engine = parts.enter_context(open_engine(kind.engine, url, 1.0))
            names = [bench.start(NAME, ["mail"])]
            bench.enqueue("mail", 1, 0)
            wait_for("it is done", lambda: bench.executions(1) == (1, 1))
            bench.enqueue("other", 2, 0)
        for ask in (lambda: engine.queue_states(["mail"]), engine.workers, lambda: engine.executing(["mail"])):
            with pytest.raises(BrokerUnreachable):
                ask()
        parts.enter_context(server(kind.broker, tmp_path, ports))
        assert (counts(engine, "mail"), counts(engine, "other")) == (expected(engine), expected(engine, waiting=1))
        bench.enqueue("mail", 3, 0)

        def is_done() -> bool:
            if bench.has_ended(names[-1]):
                names.append(bench.start(NAME, ["mail"]))
            return bench.executions(3) == (1, 1)

        wait_for("a worker is back", is_done, 60)
        wait_for("it is seen", lambda: names[-1] in [worker.name for worker in engine.workers()])


@on_redis
def test_missing_rights_are_named(bench: Bench, client: redis.Redis) -> None:
    rules = ("~*", "&*", "+@connection", "+info", "+time")
    client.execute_command("ACL", "SETUSER", "narrow", "reset", "on", ">pw", *rules)
    with open_engine(bench.engine, bench.url.replace("redis://", "redis://narrow:pw@"), 5.0) as engine:
        with pytest.raises(BrokerRefused) as failure:
            engine.check(write=False)
        # Each engine's own reading goes through a script or a command that is not granted.
        assert {"+llen", "+eval"} & set(failure.value.details["missing"])
        with pytest.raises(BrokerRefused):
            engine.queue_states(["mail"])


@on_redis
def test_wrong_credentials_are_refused_and_not_shown(bench: Bench, client: redis.Redis) -> None:
    client.execute_command("ACL", "SETUSER", "narrow", "reset", "on", ">pw", "~*", "+@all")
    with open_engine(bench.engine, bench.url.replace("redis://", "redis://narrow:wr0ng@"), 5.0) as engine:
        with pytest.raises(BrokerRefused) as failure:
            engine.check(write=False)
        assert "wr0ng" not in str(failure.value)


@on_redis
def test_a_replica_is_refused_for_moves_and_readable(bench: Bench, tmp_path: Path) -> None:
    port = bench.url.rsplit(":", 1)[1].split("/")[0]
    bench.enqueue("mail", 1, 0)
    replica = redis_server(tmp_path, "--replicaof", "127.0.0.1", port)
    with replica as url, open_engine(bench.engine, url, 5.0) as engine:
        wait_for("it replicates", lambda: engine.queue_states(["mail"])[0].waiting == 1)
        assert engine.check(False)["role"] == "slave"
        with pytest.raises(BrokerRefused):
            engine.check(write=True)
