# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a task when its worker is told to stop, or killed: as the engine's capabilities say, and balanced."""

from __future__ import annotations

import signal

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    DEAD,
    PARKED,
    RETRYING,
    WAITING,
    Engine,
    Selection,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput

from tests.support.bench import TASK, UNKNOWN_TASK, Bench, task_id
from tests.support.brokers import Broker
from tests.support.ledger import balance
from tests.support.servers import wait_for, waiting

NAME = "mail/1.0-a/w1/1"
QUEUES = ["mail"]


def hold(engine: Engine, bench: Bench, number: int, seconds: float, name: str = NAME) -> str:
    """Have a new worker execute a task; the worker's name."""
    worker = bench.start(name, QUEUES)
    known = bench.enqueue("mail", number, seconds)
    wait_for("it executes", lambda: known in [task.id for task in engine.executing(QUEUES) if task.worker == worker])
    wait_for("it has been noted", lambda: bench.executions(number) == (1, 0))
    return worker


def test_a_worker_that_is_told_to_stop_finishes_its_task_and_gives_back_the_rest(engine: Engine, bench: Bench) -> None:
    worker = hold(engine, bench, 1, 1)
    others = [bench.enqueue("mail", number, 0) for number in (2, 3)]
    bench.signal(worker, signal.SIGTERM)
    assert bench.wait(worker) == 0
    assert bench.executions(1) == (1, 1)
    left = [known for known, number in zip(others, (2, 3), strict=True) if bench.executions(number) == (0, 0)]
    assert sorted(engine.task_ids("mail", WAITING, 10).ids) == left
    assert [seen.name for seen in engine.workers()] == []
    assert balance(engine, bench.ledger_url, QUEUES).balanced


def test_a_killed_worker_does_to_its_task_what_the_capabilities_say(engine: Engine, bench: Bench) -> None:
    worker = hold(engine, bench, 1, 60)
    bench.kill(worker)
    # One of them is at work on the first task, where that is repeated.
    successors = [bench.start(f"mail/1.0-a/w1/{index}", QUEUES) for index in (2, 3)]
    # Two, as one of them may be taken ahead by whoever repeats the first.
    others = (2, 3)
    for number in others:
        bench.enqueue("mail", number, 0)
    wait_for("another worker is at work", lambda: any(bench.executions(number) == (1, 1) for number in others))
    effect = engine.capabilities.kill_effect
    lost = {task_id(1)} if effect == "loses" else set()
    # What was taken ahead is listed once its worker has noted it, a moment after the broker has handed it over.
    wait_for("nothing else is lost", lambda: balance(engine, bench.ledger_url, QUEUES).lost == lost)
    assert bench.executions(1) == ((2, 0) if effect == "repeats" else (1, 0))
    assert set(successors) <= {seen.name for seen in engine.workers()}


def wait_taken_ahead(engine: Engine, bench: Bench) -> None:
    """Wait until a worker has what it takes ahead, and has noted it: until then it may be in its memory alone."""
    wait_for("the worker has it", lambda: bench.is_settled("mail"))
    wait_for("it is listed", lambda: not balance(engine, bench.ledger_url, QUEUES).lost)


@pytest.mark.parametrize("to", [WAITING, DEAD])
def test_what_a_killed_worker_held_comes_back_at_once(engine: Engine, bench: Bench, to: str) -> None:
    """Nothing but what the engine says is lost by a kill; and nothing comes back twice."""
    worker = hold(engine, bench, 1, 60)
    waiting = [bench.enqueue("mail", number, 0) for number in (2, 3)]
    wait_taken_ahead(engine, bench)
    bench.kill(worker)
    bench.start("mail/1.0-a/w1/2", ["other"])
    before = balance(engine, bench.ledger_url, QUEUES)
    told = engine.recover(QUEUES, [worker], to, dry_run=True)
    assert balance(engine, bench.ledger_url, QUEUES) == before
    assert engine.recover(QUEUES, [worker], to) == told
    assert engine.recover(QUEUES, [worker], to) == []
    lost = {task_id(1)} if engine.capabilities.kill_effect == "loses" else set()
    after = balance(engine, bench.ledger_url, QUEUES)
    assert after.lost == lost
    if task_id(1) not in lost:
        (task,) = [task for task in told if task.id == task_id(1)]
        # Out of reach all the same, where the engine has no place for dead tasks.
        state = PARKED if to in engine.capabilities.uncountable_states else to
        assert (task.task, task.queue, task.worker, task.to, task.started) == (
            bench.named(TASK), "mail", worker, state, True
        )  # fmt: skip
    assert set(waiting) <= set(engine.task_ids("mail", WAITING, 10).ids)
    assert worker not in [seen.name for seen in engine.workers()]
    assert [known for known in bench.order("mail") if known in waiting] == waiting
    if task_id(1) not in lost and to == WAITING:
        # What the broker gives back by itself has its old place.
        first = engine.capabilities.put_back == "first" or engine.capabilities.kill_effect == "repeats"
        assert bench.order("mail")[0 if first else -1] == task_id(1)


def test_a_living_workers_task_stays_with_it(engine: Engine, bench: Bench) -> None:
    hold(engine, bench, 1, 60)
    ahead = [bench.enqueue("mail", number, 0) for number in (2, 3)]
    wait_taken_ahead(engine, bench)
    assert engine.recover(QUEUES, ["mail/0.9-b/w1/1/1"], WAITING) == []
    assert [task.id for task in engine.executing(QUEUES)] == [task_id(1)]
    assert sorted(engine.task_ids("mail", WAITING, 10).ids) == ahead


def test_a_ghost_is_no_worker_of_the_queue_once_it_is_recovered(engine: Engine, bench: Bench) -> None:
    worker = hold(engine, bench, 1, 60)
    bench.kill(worker)
    engine.recover(QUEUES, [worker], DEAD)
    assert (engine.workers(), engine.queue_states(QUEUES)[0].workers) == ([], 0)


def test_an_unknown_task_becomes_what_the_capabilities_say(engine: Engine, bench: Bench) -> None:
    unknown = bench.enqueue("mail", 1, task=UNKNOWN_TASK)
    bench.enqueue("mail", 2, 0)
    bench.start(NAME, QUEUES)
    wait_for("the worker has come past it", lambda: bench.executions(2) == (1, 1))
    found = balance(engine, bench.ledger_url, QUEUES)
    assert found.lost == ({unknown} if engine.capabilities.unknown_task == "lost" else frozenset())
    kept = {DEAD: DEAD, "retried": RETRYING, PARKED: PARKED}.get(engine.capabilities.unknown_task)
    if kept:
        assert engine.task_ids("mail", kept, 10).ids == (unknown,)


def test_only_known_ends_are_accepted(engine: Engine) -> None:
    with pytest.raises(BadInput):
        engine.recover(QUEUES, [], "parked")


def test_a_task_that_is_nowhere_is_lost(engine: Engine, bench: Bench, broker: Broker) -> None:
    """The oracle itself: a test that can't find a loss proves nothing."""
    bench.enqueue("mail", 1, 0)
    broker.empty()
    found = balance(engine, bench.ledger_url, QUEUES)
    assert (found.lost, found.balanced) == ({task_id(1)}, False)


def test_a_pool_through_a_stop_a_park_and_a_replay_balances(engine: Engine, bench: Bench) -> None:
    for number in range(10):
        bench.enqueue("mail", number, 0.3)
    worker = bench.start(NAME, QUEUES)
    wait_for("it has begun", lambda: bench.finished() > 1)
    assert bench.stop(worker) == 0
    engine.park(QUEUES, Selection(states=(WAITING,), ids=(task_id(8), task_id(9))), "ana", "")
    found = balance(engine, bench.ledger_url, QUEUES)
    assert (found.balanced, found.duplicated) == (True, frozenset())
    assert len(found.finished) + len(found.listed) == 10
    engine.replay(QUEUES, Selection(states=("parked",)))
    # As a rollout does: some engine's worker may have taken a task when it was told to stop, and let go of it.
    engine.recover(QUEUES, [worker], WAITING, waiting(5))
    bench.start("mail/1.0-a/w1/2", QUEUES)
    wait_for("all are done", lambda: bench.finished() == 10)
    assert balance(engine, bench.ledger_url, QUEUES).counts()["finished"] == 10
