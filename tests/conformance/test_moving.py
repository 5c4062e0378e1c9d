# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Park and replay: everything about a task is kept, and nothing is lost or doubled when the mover dies half way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    PARKED,
    SCHEDULED,
    WAITING,
    Engine,
    Selection,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput

from tests.conformance.conftest import BENCHES
from tests.support.bench import TASK, UNKNOWN_TASK, Bench, task_id
from tests.support.brokers import Broker
from tests.support.servers import wait_for

NAME = "mail/1.0-a/w1/1"
ALL = Selection(states=("waiting", "scheduled", "retrying"))
ONLY_WAITING = Selection(states=("waiting",))
ONLY_PARKED = Selection(states=("parked",))
scheduling = pytest.mark.parametrize(
    "kind", sorted(name for name, bench in BENCHES.items() if bench.schedules), indirect=True
)


def put_back(engine: Engine, order: list[str], count: int) -> list[str]:
    """Those of a queue's tasks, the next one first, among which the last ``count`` that were put back have to be."""
    return order[:count] if engine.capabilities.put_back == "first" else order[-count:]


def test_what_is_parked_comes_back_byte_for_byte_in_its_old_order(
    engine: Engine, bench: Bench, broker: Broker
) -> None:
    bench.fill("mail", 1200)
    bench.enqueue("mail", 1200, 0, urgent=True)
    later = int(bench.schedules)
    if later:
        bench.enqueue("mail", 1201, 0, delay=3600)
    before, old_order = broker.contents(), bench.order("mail")
    parked = engine.park(["mail"], ALL, "ana", "rollback")
    assert (parked.count, parked.before, parked.after) == (
        1201 + later, {"waiting": 1201, **({"scheduled": 1} if later else {})}, {"parked": 1201 + later}
    )  # fmt: skip
    assert (len(parked.ids), parked.cut, bench.order("mail")) == (1000, True, [])
    state = engine.queue_states(["mail"])[0]
    assert (state.waiting, state.scheduled or 0, state.parked) == (0, 0, 1201 + later)
    replayed = engine.replay(["mail"], ONLY_PARKED)
    assert replayed.count == 1201 + later
    assert bench.order("mail") == old_order
    assert broker.contents() == before


def test_no_worker_reaches_what_is_parked(engine: Engine, bench: Bench) -> None:
    for number in range(5):
        bench.enqueue("mail", number, 0)
    engine.park(["mail"], ONLY_WAITING, "ana", "")
    bench.start(NAME, ["mail"])
    bench.enqueue("mail", 5, 0)
    wait_for("the other one is done", lambda: bench.executions(5) == (1, 1))
    assert engine.queue_states(["mail"])[0].parked == 5
    engine.replay(["mail"], ONLY_PARKED)
    wait_for("all are done", lambda: all(bench.executions(number) == (1, 1) for number in range(6)))


@scheduling
def test_a_delay_is_kept_to(engine: Engine, bench: Bench) -> None:
    bench.enqueue("mail", 1, 0, delay=3600)
    engine.park(["mail"], Selection(states=("scheduled",)), "ana", "")
    engine.replay(["mail"], ONLY_PARKED)
    bench.start(NAME, ["mail"])
    bench.enqueue("mail", 2, 0)
    wait_for("the other one is done", lambda: bench.executions(2) == (1, 1))
    assert engine.queue_states(["mail"])[0].scheduled == 1
    assert bench.executions(1) == (0, 0)


def test_only_what_is_selected_moves_and_the_rest_keeps_its_order(engine: Engine, bench: Bench) -> None:
    bench.fill("mail", 1500, lambda number: UNKNOWN_TASK if number % 3 == 0 else TASK)
    parked = engine.park(["mail"], Selection(states=("waiting",), tasks=(bench.named(UNKNOWN_TASK),)), "ana", "")
    assert parked.count == 500
    assert bench.order("mail") == [task_id(number) for number in range(1500) if number % 3]
    engine.replay(["mail"], ONLY_PARKED)
    assert put_back(engine, bench.order("mail"), 500) == [task_id(number) for number in range(0, 1500, 3)]


def test_an_unknown_task_waits_for_a_worker_that_knows_it(engine: Engine, bench: Bench) -> None:
    """What a rollback is about: the release that comes back doesn't know the newer one's tasks."""
    unknown = bench.enqueue("mail", 1, task=UNKNOWN_TASK)
    bench.enqueue("mail", 2, 0)
    parked = engine.park(["mail"], Selection(states=("waiting",), tasks=(bench.named(UNKNOWN_TASK),)), "ana", "")
    assert parked.ids == (unknown,)
    bench.start(NAME, ["mail"])
    wait_for("the other one is done", lambda: bench.executions(2) == (1, 1))
    assert engine.task_ids("mail", PARKED, 10).ids == (unknown,)


def test_tasks_are_selected_by_id(engine: Engine, bench: Bench) -> None:
    ids = bench.fill("mail", 6)
    selected = Selection(states=("waiting",), ids=(ids[4], "nobody"))
    assert engine.park(["mail"], selected, "ana", "", dry_run=True).ids == (ids[4],)
    assert engine.park(["mail"], selected, "ana", "").ids == (ids[4],)
    assert bench.order("mail") == [*ids[:4], ids[5]]


@scheduling
def test_states_are_selected_apart(engine: Engine, bench: Bench) -> None:
    bench.enqueue("mail", 1, 0)
    bench.enqueue("mail", 2, 0, delay=3600)
    assert engine.park(["mail"], Selection(states=("scheduled",)), "ana", "").ids == (task_id(2),)
    assert (engine.task_ids("mail", WAITING, 10).ids, engine.task_ids("mail", SCHEDULED, 10).ids) == (
        (task_id(1),), ()
    )  # fmt: skip
    assert engine.replay(["mail"], Selection(states=("parked",), ids=(task_id(2),))).count == 1


def test_a_limited_replay_takes_the_oldest(engine: Engine, bench: Bench) -> None:
    ids = bench.fill("mail", 1500)
    engine.park(["mail"], ONLY_WAITING, "ana", "")
    assert engine.replay(["mail"], Selection(states=("parked",), limit=1100)).count == 1100
    assert bench.order("mail") == ids[:1100]
    assert engine.replay(["mail"], ONLY_PARKED).count == 400


def test_a_later_park_comes_back_behind_an_earlier_one(engine: Engine, bench: Bench) -> None:
    ids = bench.fill("mail", 3)
    engine.park(["mail"], ONLY_WAITING, "ana", "")
    ids += [bench.enqueue("mail", number, 0) for number in (3, 4, 5)]
    engine.park(["mail"], ONLY_WAITING, "ana", "")
    engine.replay(["mail"], ONLY_PARKED)
    assert bench.order("mail") == ids


def test_a_dry_run_tells_the_same_and_writes_nothing(engine: Engine, bench: Bench, broker: Broker) -> None:
    bench.fill("mail", 1500)
    before = broker.contents()
    told = engine.park(["mail"], ONLY_WAITING, "ana", "", dry_run=True)
    assert broker.contents() == before
    assert engine.park(["mail"], ONLY_WAITING, "ana", "") == told
    parked = broker.contents()
    told = engine.replay(["mail"], ONLY_PARKED, dry_run=True)
    assert broker.contents() == parked
    assert engine.replay(["mail"], ONLY_PARKED) == told
    assert engine.replay(["mail"], ONLY_PARKED).count == 0


def test_canaries_are_never_parked(engine: Engine) -> None:
    engine.send_canary("mail", engine.default_canary, 1, 60)
    assert engine.park(["mail"], ONLY_WAITING, "ana", "").count == 0
    assert engine.task_ids("mail", WAITING, 10).ids == ()


@pytest.mark.parametrize(
    "selection", [Selection(states=()), Selection(states=("parked",)), Selection(states=("waiting",), limit=0)]
)
def test_a_selection_that_makes_no_sense_is_refused(engine: Engine, selection: Selection) -> None:
    with pytest.raises(BadInput):
        engine.park(["mail"], selection, "ana", "")


def test_parking_without_an_owner_is_refused(engine: Engine) -> None:
    with pytest.raises(BadInput):
        engine.park(["mail"], ONLY_WAITING, "", "")


# Behind whoever has to see how far it is: it would be through before a busy machine lets anybody look.
MOVER = """
import os
import sys
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Selection
from ansible_collections.backstep.workers.plugins.module_utils._queue.engines import _amqp_moves, _redis_moves
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
_redis_moves.BATCH, _amqp_moves.BATCH = 3, 10
with open_engine(sys.argv[1], sys.argv[2], 5.0) as engine:
    print("ready", flush=True)
    sys.stdin.readline()
    os.nice(10)
    if sys.argv[3] == "park":
        engine.park(["mail"], Selection(states=("waiting", "scheduled")), "ana", "")
    elif sys.argv[3] == "reroute":
        engine.reroute("mail", "other")
    else:
        engine.replay(["mail"], Selection(states=("parked",)))
"""


def kill_in_the_middle(bench: Bench, verb: str, far_enough: Callable[[], bool]) -> None:
    """Start a move and SIGKILL its process between two of its batches."""
    mover = subprocess.Popen(
        [sys.executable, "-c", MOVER, bench.engine, bench.url, verb],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert mover.stdin is not None
    assert mover.stdout is not None
    try:
        assert mover.stdout.readline() == b"ready\n"
        mover.stdin.write(b"go\n")
        mover.stdin.flush()
        deadline = time.monotonic() + 20
        while not far_enough():  # without a rest: the fastest needs a tenth of a second for all
            assert time.monotonic() < deadline
    finally:
        mover.send_signal(signal.SIGKILL)
        mover.communicate(timeout=10)


def after_the_kill(bench: Bench, places: Callable[[], Counter[str]], everyone: Counter[str]) -> Counter[str]:
    """In how many places each task is, once the broker has noticed that the mover is gone.

    RabbitMQ gives back what a connection held when it has seen that it is closed, a moment after the process has ended.
    Nothing held anything on Redis.
    """

    def found() -> Counter[str]:
        seen = places()
        return seen if seen.keys() == everyone.keys() else Counter()

    return places() if bench.broker == "redis" else wait_for("what the mover held is back", found)


def test_a_mover_that_is_killed_loses_nothing_and_a_second_run_finishes(engine: Engine, bench: Bench) -> None:
    ids = bench.fill("mail", 3_000)
    due = [bench.enqueue("mail", 3_000, 0, delay=3600)] if bench.schedules else []
    everyone = Counter([*ids, *due])

    def parked() -> int:
        return engine.queue_states(["mail"])[0].parked or 0

    def places() -> Counter[str]:
        """In how many places each task is."""
        states = (WAITING, SCHEDULED, PARKED)
        return Counter(known for state in states for known in engine.task_ids("mail", state, 10_000).ids)

    kill_in_the_middle(bench, "park", lambda: parked() > 100)
    assert 0 < parked() < len(everyone)
    assert after_the_kill(bench, places, everyone) == everyone
    engine.park(["mail"], ALL, "ana", "")
    assert (parked(), bench.order("mail")) == (len(everyone), [])
    assert places() == everyone

    kill_in_the_middle(bench, "replay", lambda: parked() < len(everyone) - 100)
    assert 0 < parked() < len(everyone)
    assert after_the_kill(bench, places, everyone) == everyone
    engine.replay(["mail"], ONLY_PARKED)
    assert [known for known in bench.order("mail") if known not in due] == ids
    assert (engine.task_ids("mail", SCHEDULED, 10).ids, parked()) == (tuple(due), 0)
    assert places() == everyone


def test_a_move_next_to_busy_workers_and_producers_loses_nothing(engine: Engine, bench: Bench) -> None:
    for number in range(80):
        bench.enqueue("mail", number, 0.02)
    bench.start(NAME, ["mail"])
    wait_for("it has begun", lambda: bench.finished() > 0)
    parked = engine.park(["mail"], ONLY_WAITING, "ana", "")
    wait_for("the rest is done", lambda: bench.finished() == 80 - parked.count)
    assert parked.count > 0
    engine.replay(["mail"], ONLY_PARKED)
    wait_for("everything is done", lambda: bench.finished() == 80, 60)
    assert all(bench.executions(number) == (1, 1) for number in range(80))
