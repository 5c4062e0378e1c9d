# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A person's `rq suspend`, and where a canary stands in an RQ queue."""

from __future__ import annotations

import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from rq import Queue
from rq.suspension import suspend

from tests.support.rq_bench import Workers
from tests.support.trials import PREFIX, trial


def test_a_canary_goes_before_what_waits(engine: Engine, client: redis.Redis) -> None:
    Queue("mail", connection=client).enqueue("os.getpid", job_id="task-1")
    (canary,) = engine.send_canary("mail", engine.default_canary, 1, 60)
    assert client.lrange("rq:queue:mail", 0, -1) == [canary.encode(), b"task-1"]
    assert engine.task_ids("mail", "waiting", 10).ids == ("task-1",)
    assert client.ttl(f"rq:job:{canary}") <= 60


def test_a_persons_pause_makes_it_unknown_at_once_and_no_canary_is_sent(
    engine: Engine, client: redis.Redis, workers: Workers
) -> None:
    name = workers.start(f"{PREFIX}/1", ["mail"])
    suspend(client)
    proof, verdict = trial(engine, name)
    assert (proof.paused, proof.sent, verdict) == ("a person", 0, "unknown")
    proof, verdict = trial(engine, name, f"{PREFIX}/2/1", seconds=0.5)
    assert (proof.sent, verdict) == (0, "unknown")


def test_workers_that_a_persons_pause_keeps_from_starting_are_unknown(
    engine: Engine, client: redis.Redis, workers: Workers
) -> None:
    """While it is suspended, RQ's own program ends with status 1 instead of waiting."""
    suspend(client)
    name = workers.start(f"{PREFIX}/1", ["mail"], wait=False)
    assert workers.wait(name) == 1
    assert trial(engine, name, seconds=1)[1] == "unknown"
