# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pause is a lease; a person's pause stays; what RQ's pause can't do is said."""

from __future__ import annotations

import time

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.pausing import settle
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import (
    DrainTimeout,
    PauseRefused,
)
from rq import Queue
from rq.suspension import resume, suspend

from tests.support.rq_bench import Workers
from tests.support.servers import wait_for, waiting

NAME = "mail/1.0-a/w1/1"


def test_a_persons_pause_before_the_lease_stays(engine: Engine, client: redis.Redis) -> None:
    suspend(client)
    state = engine.pause(["mail"], "ana", 30, "queue").state
    assert (state.paused, state.by_person, state.owner) == (True, True, "ana")
    assert client.ttl("rq:suspended") == -1
    engine.resume("ana")
    state = engine.pause_state()
    assert (state.paused, state.by_person, state.owner) == (True, True, None)


def test_a_persons_pause_during_the_lease_stays(engine: Engine, client: redis.Redis) -> None:
    engine.pause(["mail"], "ana", 30, "queue")
    suspend(client)
    engine.resume("ana")
    assert engine.pause_state().by_person


def test_a_pause_that_a_person_has_ended_is_made_again(engine: Engine, client: redis.Redis) -> None:
    engine.pause(["mail"], "ana", 30, "queue")
    resume(client)
    assert not engine.pause_state().paused
    assert engine.pause(["mail"], "ana", 30, "queue").changed
    assert engine.pause_state().paused


def test_a_pause_that_reaches_other_queues_is_refused_and_names_them(
    engine: Engine, client: redis.Redis, workers: Workers
) -> None:
    Queue("reports", connection=client).enqueue("os.getpid")
    workers.start("other/1.0-a/w1/1", ["images"])
    with pytest.raises(PauseRefused, match="images, reports") as refused:
        engine.pause(["mail"], "ana", 30, "queue")
    assert refused.value.details["queues"] == ["images", "reports"]
    assert not engine.pause_state().paused
    assert engine.pause(["mail"], "ana", 30, "broker").state.paused


def test_an_idle_worker_is_named_since_it_takes_one_more(
    engine: Engine, client: redis.Redis, workers: Workers
) -> None:
    name = workers.start(NAME, ["mail"])
    assert engine.pause(["mail"], "ana", 60, "queue").one_more == (name,)
    for number in range(3):
        Queue("mail", connection=client).enqueue("ledger_tasks.work", number, 0)
    wait_for("it has seen the pause", lambda: engine.workers()[0].state == "suspended")
    assert engine.workers()[0].finished == 1
    assert engine.queue_states(["mail"])[0].waiting == 2
    assert engine.pause(["mail"], "ana", 60, "queue").one_more == ()


def test_settling_spends_canaries_instead_of_tasks(engine: Engine, client: redis.Redis, workers: Workers) -> None:
    for index in (1, 2):
        workers.start(f"mail/1.0-a/w1/{index}", ["mail"])
    engine.pause(["mail"], "ana", 60, "queue")
    settle(engine, waiting(20), 20)
    for number in range(3):
        Queue("mail", connection=client).enqueue("ledger_tasks.work", number, 0)
    assert [(worker.state, worker.finished) for worker in engine.workers()] == [("suspended", 0), ("suspended", 0)]
    assert engine.queue_states(["mail"])[0].waiting == 3
    assert not client.keys("rq:job:backstep-canary-*")
    time_left = engine.pause_state().expires_in
    assert time_left is not None
    assert time_left > 0


def test_settling_that_takes_too_long_fails_and_names_the_worker(
    engine: Engine, client: redis.Redis, workers: Workers
) -> None:
    name = workers.start(NAME, ["mail"])
    Queue("mail", connection=client).enqueue("ledger_tasks.work", 1, 60)
    wait_for("it executes", lambda: engine.workers()[0].state == "busy")
    engine.pause(["mail"], "ana", 60, "queue")
    began = time.monotonic()
    with pytest.raises(DrainTimeout, match=name):
        settle(engine, waiting(1), 1)
    assert time.monotonic() - began < 5
    assert engine.pause_state().paused
