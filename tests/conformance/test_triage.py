# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dead tasks: told by what they died of, put back at a pace, stopped when they fail again, and none of them twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._move_args import DEAD_OPTIONS, are_only_dead, move_dead
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    DEAD,
    PARKED,
    Engine,
    Moved,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import capabilities
from ansible_collections.backstep.workers.plugins.module_utils._queue.triage import kind_of, release_of
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput, ReplayStopped

from tests.conformance.conftest import BENCHES
from tests.support.bench import DYING_TASK, Bench, task_id
from tests.support.servers import wait_for

NAME = "mail/2.0-bad/w1/1"
PARAMS: dict[str, Any] = {
    "operation": "replay",
    "states": [DEAD],
    "ids": [],
    "tasks": [],
    "enqueued_after": None,
    "enqueued_before": None,
    "limit": None,
    "owner": "ana",
    "reason": "",
    **{name: known.get("default") for name, known in DEAD_OPTIONS.items()},
}
WITH_DEAD = sorted(name for name in BENCHES if DEAD not in capabilities(name).uncountable_states)
for_the_dead = pytest.mark.parametrize("kind", WITH_DEAD, indirect=True)


def move(engine: Engine, dry_run: bool = False, **params: Any) -> tuple[Moved, dict[str, Any]]:
    """What `task_move` does with dead tasks of these options."""
    return move_dead(engine, ["mail"], {**PARAMS, **params}, dry_run)


def let_die(engine: Engine, bench: Bench, count: int) -> str:
    """Have a worker kill the tasks 0 to ``count``; it goes on running."""
    for number in range(count):
        bench.enqueue("mail", number, task=DYING_TASK)
    worker = bench.start(NAME, ["mail"])
    wait_for("all are dead", lambda: len(engine.task_ids("mail", DEAD, 1000).ids) == count)
    return worker


@for_the_dead
def test_the_dead_are_told_by_what_they_died_of(engine: Engine, bench: Bench) -> None:
    began = time.time()
    let_die(engine, bench, 3)
    found = engine.dead_tasks(["mail", "other"])
    assert {task.id for task in found} == {task_id(number) for number in range(3)}
    assert {(task.queue, task.task) for task in found} == {("mail", bench.named(DYING_TASK))}
    assert all(task.died is not None and began - 2 < task.died < time.time() + 2 for task in found)
    kinds = {"rq": "LookupError", "bullmq": "RangeError", "sidekiq": "KeyError"}
    assert {kind_of(task.error) for task in found} == {kinds.get(bench.engine, "LookupError")}
    told = {release_of(task) for task in found}
    assert told == ({"2.0-bad"} if bench.engine in ("rq", "bullmq") else {None})
    expires = {None if task.expires is None else round((task.expires - time.time()) / 86400) for task in found}
    assert expires == {{"rq": 365, "sidekiq": 180, "bullmq": None}.get(bench.engine, 7)}


@for_the_dead
def test_only_those_that_are_meant_are_put_back(engine: Engine, bench: Bench) -> None:
    let_die(engine, bench, 4)
    bench.mend(range(4))
    last = max(task.died or 0 for task in engine.dead_tasks(["mail"]))
    assert move(engine, error="SomethingElse")[0].count == 0
    assert move(engine, died_after="2099-01-01T00:00:00Z")[0].count == 0
    assert move(engine, releases=["1.0-good"])[0].count == 0
    assert move(engine, tasks=["somebody.elses"])[0].count == 0
    before = sorted(engine.task_ids("mail", DEAD, 10).ids)
    moved, more = move(engine, dry_run=True, limit=3)
    assert (moved.count, more["dead"][0]["count"], len(more["dead"])) == (3, 3, 1)
    assert more["dead"][0]["last"] <= last
    assert sorted(engine.task_ids("mail", DEAD, 10).ids) == before
    parked, _more = move(engine, operation="park", ids=[task_id(0)])
    assert (parked.ids, parked.after) == ((task_id(0),), {PARKED: 1})
    moved, _more = move(engine, error="rror", limit=2)
    assert (moved.count, moved.before) == (2, {DEAD: 2})
    wait_for("these end well", lambda: bench.finished() == 2)
    assert (len(engine.task_ids("mail", DEAD, 10).ids), engine.task_ids("mail", PARKED, 10).ids) == (1, (task_id(0),))


@for_the_dead
def test_a_first_batch_that_ends_well_lets_the_others_follow(engine: Engine, bench: Bench) -> None:
    let_die(engine, bench, 12)
    bench.mend(range(12))
    moved, more = move(engine, canary=3, canary_seconds=60.0, rate=200.0)
    assert (moved.count, sum(group["count"] for group in more["dead"])) == (12, 12)
    wait_for("all end well", lambda: bench.finished() == 12)
    assert all(bench.executions(number)[1] == 1 for number in range(12))
    assert engine.task_ids("mail", DEAD, 10).ids == ()


@for_the_dead
def test_what_fails_again_is_parked_and_stops_the_run_which_can_be_gone_on_with(engine: Engine, bench: Bench) -> None:
    let_die(engine, bench, 6)
    with pytest.raises(ReplayStopped) as stopped:
        move(engine, canary=2, canary_seconds=60.0, run="after-2.0")
    failed = stopped.value.details["failed_again"]
    assert (len(failed), stopped.value.details["run"]) == (2, "after-2.0")
    assert "2 task(s) were put back, 4 are dead as before" in str(stopped.value)
    assert sorted(engine.task_ids("mail", PARKED, 10).ids) == sorted(failed)
    assert len(engine.task_ids("mail", DEAD, 10).ids) == 4
    bench.mend(range(6))
    moved, _more = move(engine, canary=2, canary_seconds=60.0, run="after-2.0")
    assert moved.count == 4
    wait_for("the others end well", lambda: bench.finished() == 4)


REPLAY = """
import json, sys
from ansible_collections.backstep.workers.plugins.module_utils._move_args import move_dead
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
with open_engine(sys.argv[1], sys.argv[2], 5.0) as engine:
    move_dead(engine, ["mail"], json.loads(sys.argv[3]), False)
"""


@pytest.mark.parametrize("kind", ["dramatiq_rabbitmq", "rq"], indirect=True)  # a broker of each kind
def test_a_run_that_is_killed_and_gone_on_with_puts_none_back_twice(engine: Engine, bench: Bench) -> None:
    """They die again each time, so that every one of them would be there to be put back once more."""
    let_die(engine, bench, 40)
    before = {number: bench.executions(number)[0] for number in range(40)}

    def again() -> int:
        return sum(bench.executions(number)[0] - before[number] for number in range(40))

    params = {**PARAMS, "run": "night", "max_failed": 1000, "rate": 10.0}
    command = [sys.executable, "-c", REPLAY, bench.engine, bench.url, json.dumps(params)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as running:
        wait_for("it has put some back", lambda: again() > 5)
        running.send_signal(signal.SIGKILL)
    assert 5 < again() < 40
    moved, _more = move(engine, run="night", max_failed=1000)
    assert 0 < moved.count < 40
    wait_for("all are dead once more", lambda: again() == 40 and len(engine.task_ids("mail", DEAD, 100).ids) == 40)
    assert all(bench.executions(number)[0] == before[number] + 1 for number in range(40))
    assert move(engine, run="night", max_failed=1000)[0].count == 0


def test_an_engine_without_dead_tasks_says_so(engine: Engine, bench: Bench) -> None:
    if bench.engine in WITH_DEAD:
        assert engine.dead_tasks(["mail"]) == []
        return
    with pytest.raises(BadInput, match="has no place for dead tasks"):
        move(engine)


def test_what_is_for_dead_tasks_is_refused_for_others() -> None:
    with pytest.raises(BadInput, match="error, rate: only dead tasks can be chosen"):
        are_only_dead({**PARAMS, "states": ["parked"], "error": "x", "rate": 2.0})
    assert not are_only_dead({**PARAMS, "states": ["parked"]})
