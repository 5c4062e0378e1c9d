# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Canaries, and how workers are proven by them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.proving import Proof, Trial
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.verdict import BrokerEvidence, Limits, judge
from rq import Queue
from rq.suspension import suspend

from tests.support.rq_bench import Workers, free_port, wait_for, waiting

RELEASE = "2.0-bbbbbbbb"
PREFIX = f"mail/{RELEASE}/w1"


def process(name: str) -> dict[str, Any]:
    return {
        "index": int(name.split("/")[3]), "worker": name, "pid": int(name.split("/")[4]), "state": "running",
        "uptime": 5.0, "restarts": 0, "reports": RELEASE,
    }  # fmt: skip


def trial(engine: Engine, *names: str, canary: str = "", seconds: float = 15.0) -> tuple[Proof, str]:
    """Put the workers on trial; the proof and the verdict."""
    processes = [process(name) for name in names]
    subject = Trial("mail", RELEASE, "w1", (("mail",),), processes, canary or engine.default_canary, seconds)
    proof = Proof(engine, subject)
    seen: BrokerEvidence = proof.run(waiting(seconds))
    host = {"outcome": "ok", "bake": 5.0, "problems": [], "processes": processes}
    return proof, judge(host, seen, Limits(release=RELEASE, queues=(("mail",),))).verdict


def test_canaries_prove_idle_workers_and_leave_nothing(
    engine: Engine, client: redis.Redis, workers: Workers
) -> None:
    names = [workers.start(f"{PREFIX}/{index}", ["mail"]) for index in (1, 2, 3)]
    began = time.monotonic()
    proof, verdict = trial(engine, *names)
    assert verdict == "good"
    assert proof.sent >= 3
    assert time.monotonic() - began < 10
    assert [(worker.finished, worker.failed) for worker in engine.workers()] == [(0, 0)] * 3
    assert not client.keys("*backstep-canary*")
    assert [client.zcard(f"rq:{registry}:mail") for registry in ("finished", "failed")] == [0, 0]
    assert client.llen("rq:queue:mail") == 0


def test_a_worker_with_traffic_gets_no_canary(engine: Engine, client: redis.Redis, workers: Workers) -> None:
    name = workers.start(f"{PREFIX}/1", ["mail"])
    Queue("mail", connection=client).enqueue("os.getpid")
    wait_for("it is done", lambda: engine.workers()[0].finished == 1)
    proof, verdict = trial(engine, name)
    assert (verdict, proof.sent) == ("good", 0)


def test_canaries_reach_a_new_worker_among_many_old_ones(engine: Engine, workers: Workers) -> None:
    for index in (1, 2, 3):
        workers.start(f"mail/1.0-a/w1/{index}", ["mail"])
    name = workers.start(f"{PREFIX}/1", ["mail"])
    assert trial(engine, name)[1] == "good"


def test_a_canary_that_another_trial_takes_back_is_proof(engine: Engine, workers: Workers) -> None:
    name = workers.start(f"{PREFIX}/1", ["mail"])
    theirs = engine.send_canary("mail", engine.default_canary, 1, 60)
    wait_for("their canary is done", lambda: engine.workers()[0].finished == 1)
    subject = Trial("mail", RELEASE, "w1", (("mail",),), [process(name)], engine.default_canary, 15.0)

    def wait(predicate: Callable[[], bool]) -> bool:
        decided = predicate()
        engine.withdraw("mail", theirs)
        return decided

    seen = Proof(engine, subject).run(wait)
    assert [(worker.finished, worker.proven) for worker in seen.workers] == [(0, True)]


def test_a_canary_goes_before_what_waits(engine: Engine, client: redis.Redis) -> None:
    Queue("mail", connection=client).enqueue("os.getpid", job_id="task-1")
    (canary,) = engine.send_canary("mail", engine.default_canary, 1, 60)
    assert client.lrange("rq:queue:mail", 0, -1) == [canary.encode(), b"task-1"]
    assert engine.task_ids("mail", "waiting", 10).ids == ("task-1",)
    assert client.ttl(f"rq:job:{canary}") <= 60


def test_the_wrong_queue_is_bad_at_once(engine: Engine, workers: Workers) -> None:
    name = workers.start(f"{PREFIX}/1", ["mial"])
    began = time.monotonic()
    assert trial(engine, name, seconds=20)[1] == "bad"
    assert time.monotonic() - began < 5


def test_a_canary_that_fails_is_bad(engine: Engine, client: redis.Redis, workers: Workers) -> None:
    name = workers.start(f"{PREFIX}/1", ["mail"])
    began = time.monotonic()
    assert trial(engine, name, canary="app.that.is.not.there")[1] == "bad"
    assert time.monotonic() - began < 10
    assert client.zcard("rq:failed:mail") == 0
    assert engine.workers()[0].failed == 0


def test_a_process_that_never_registers_is_bad_by_the_deadline(engine: Engine, workers: Workers) -> None:
    name = workers.start(f"{PREFIX}/1", ["mail"])
    assert trial(engine, name, f"{PREFIX}/2/1", seconds=2)[1] == "bad"


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


def test_a_worker_that_still_executes_its_first_task_is_unknown(
    engine: Engine, client: redis.Redis, workers: Workers
) -> None:
    name = workers.start(f"{PREFIX}/1", ["mail"])
    Queue("mail", connection=client).enqueue("ledger_tasks.work", 1, 30)
    wait_for("it executes", lambda: engine.workers()[0].current_task)
    proof, verdict = trial(engine, name, seconds=1)
    assert (verdict, proof.sent) == ("unknown", 0)


def test_a_crashed_process_that_is_still_registered_proves_nothing(engine: Engine, workers: Workers) -> None:
    crashed = workers.start(f"{PREFIX}/1", ["mial"])
    workers.kill(crashed)
    name = workers.start(f"{PREFIX}/1", ["mail"])
    assert crashed in [worker.name for worker in engine.workers()]
    assert trial(engine, name)[1] == "good"


def test_a_broker_that_is_not_there_is_unknown() -> None:
    with open_engine("rq", f"redis://127.0.0.1:{free_port()}/0", 0.5) as engine:
        proof, verdict = trial(engine, f"{PREFIX}/1/1", seconds=0.5)
        assert (verdict, "gave no usable answer" in proof.error) == ("unknown", True)
