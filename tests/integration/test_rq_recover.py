# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What dead workers held comes back at once, as RQ itself would bring it back later."""

from __future__ import annotations

import signal

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from rq import Queue, Retry, Worker
from rq.job import Dependency, Job
from rq.registry import StartedJobRegistry

from tests.support.rq_bench import Workers
from tests.support.servers import wait_for, waiting

NAME = "mail/1.0-a/w1/1"


@pytest.fixture
def queue(client: redis.Redis) -> Queue:
    """A queue of RQ's own."""
    return Queue("mail", connection=client)


def abandon(engine: Engine, queue: Queue, workers: Workers, **options: object) -> str:
    """Have a worker be killed while it executes ``task-1``; its name."""
    name = workers.start(NAME, ["mail"])
    queue.enqueue("ledger_tasks.work", 1, 60, job_id="task-1", **options)
    wait_for("it executes", lambda: [task.worker for task in engine.executing(["mail"])] == [name])
    wait_for("it has been noted as started", lambda: queue.connection.hget("rq:job:task-1", "status") == b"started")
    workers.kill(name)
    return name


def test_a_killed_workers_task_sticks_until_it_is_recovered(
    engine: Engine, client: redis.Redis, queue: Queue, workers: Workers
) -> None:
    name = abandon(engine, queue, workers)
    assert engine.queue_states(["mail"])[0].executing == 1
    assert engine.recover(["mail"], [], "waiting") == []
    told = engine.recover(["mail"], [name], "waiting", dry_run=True)
    assert engine.queue_states(["mail"])[0].executing == 1
    (task,) = engine.recover(["mail"], [name], "waiting")
    assert [task] == told
    assert (task.id, task.task, task.queue, task.worker, task.to, task.started) == (
        "task-1", "ledger_tasks.work", "mail", name, "waiting", True
    )  # fmt: skip
    state = engine.queue_states(["mail"])[0]
    assert (state.waiting, state.executing, state.workers) == (1, 0, 0)
    assert not client.keys("rq:execution:*")
    assert not client.zcard("rq:executions:task-1")
    assert client.hget("rq:job:task-1", "status") == b"queued"
    assert engine.recover(["mail"], [name], "waiting") == []
    workers.start(NAME, ["mail"])
    wait_for("it executes again", lambda: engine.executing(["mail"]))


def fields_after(client: redis.Redis, recovered_by: str) -> dict[str, object]:
    job = {field: client.hget("rq:job:task-1", field) for field in ("status", "retries_left", "origin", "data")}
    places = {
        key: client.zcard(key) if kind == b"zset" else client.llen(key)
        for key in ("rq:failed:mail", "rq:scheduled:mail", "rq:wip:mail", "rq:queue:mail", "rq:deferred:mail")
        for kind in [client.type(key)]
        if kind != b"none"
    }
    results = [entry[1][b"type"] for entry in client.xrange("rq:results:task-1")]
    year = 360 * 86400 < client.ttl("rq:job:task-1") <= 365 * 86400
    dependents = client.lrange("rq:queue:mail", 0, -1)
    assert recovered_by
    return {**job, **places, "results": results, "year": year, "dependents": dependents}


@pytest.mark.parametrize(
    "retry", [None, Retry(max=2), Retry(max=2, interval=300)], ids=["no retry", "retry", "retry later"]
)
def test_dead_means_what_rqs_own_cleanup_means(
    engine: Engine, client: redis.Redis, queue: Queue, workers: Workers, retry: Retry | None
) -> None:
    """The same task, once cleaned up by RQ after its claim has run out, and once recovered by us at once."""
    outcomes = []
    for by in ("rq", "backstep"):
        client.flushdb()
        name = abandon(engine, queue, workers, retry=retry)
        parent = Job.fetch("task-1", connection=client)
        queue.enqueue("os.getpid", job_id="strict", depends_on=parent)
        queue.enqueue("os.getpid", job_id="lenient", depends_on=Dependency(jobs=[parent], allow_failure=True))
        if by == "rq":
            (claim,) = client.zrange("rq:wip:mail", 0, -1)
            client.zadd("rq:wip:mail", {claim: 1})
            StartedJobRegistry("mail", connection=client).cleanup()
        else:
            (task,) = engine.recover(["mail"], [name], "dead")
            expected = "dead" if retry is None else "scheduled" if retry.intervals != [0] else "waiting"
            assert task.to == expected
        outcomes.append(fields_after(client, by))
    assert outcomes[0] == outcomes[1]


def test_what_has_run_out_is_recovered_whoever_held_it(
    engine: Engine, client: redis.Redis, queue: Queue, workers: Workers
) -> None:
    abandon(engine, queue, workers)
    (claim,) = client.zrange("rq:wip:mail", 0, -1)
    client.zadd("rq:wip:mail", {claim: 1})
    client.set("rq:clean_registries:mail", 1, ex=60)
    assert engine.recover(["mail"], [], "waiting") == []  # RQ is about to do it itself
    client.delete("rq:clean_registries:mail")
    assert [task.id for task in engine.recover(["mail"], [], "waiting")] == ["task-1"]


def pop_and_die(client: redis.Redis, queue: Queue, workers: Workers) -> str:
    """Have a worker be killed between popping ``task-1`` and claiming it; its name."""
    name = workers.start(NAME, ["mail"])
    wait_for("it waits for a task", lambda: any(found["cmd"] == "blmove" for found in client.client_list()))
    workers.signal(name, signal.SIGSTOP)
    queue.enqueue("ledger_tasks.work", 1, 0, job_id="task-1")
    wait_for("it has been popped", lambda: client.llen("rq:queue:mail:intermediate") == 1)
    workers.kill(name)
    return name


def test_a_task_that_was_popped_and_not_claimed_comes_back(
    engine: Engine, client: redis.Redis, queue: Queue, workers: Workers
) -> None:
    """RQ's own maintenance would only mark it, and fail it a minute later, though it never ran."""
    name = pop_and_die(client, queue, workers)
    (task,) = engine.recover(["mail"], [name], "dead")
    assert (task.id, task.to, task.started) == ("task-1", "waiting", False)
    assert client.lrange("rq:queue:mail", 0, -1) == [b"task-1"]
    assert client.llen("rq:queue:mail:intermediate") == 0


def pop_and_stop(client: redis.Redis, queue: Queue, workers: Workers) -> str:
    """Have a worker be told to stop between popping ``task-1`` and claiming it; its name."""
    name = workers.start(NAME, ["mail"])
    wait_for("it waits for a task", lambda: any(found["cmd"] == "blmove" for found in client.client_list()))
    workers.signal(name, signal.SIGSTOP)
    queue.enqueue("ledger_tasks.work", 1, 0, job_id="task-1")
    wait_for("it has been popped", lambda: client.llen("rq:queue:mail:intermediate") == 1)
    workers.signal(name, signal.SIGTERM)
    workers.signal(name, signal.SIGCONT)
    assert workers.wait(name) == 0
    return name


def test_a_worker_that_is_stopped_while_it_pops_leaves_its_task_behind(
    engine: Engine, client: redis.Redis, queue: Queue, workers: Workers
) -> None:
    """Its exit status is 0 and RQ would fail the task much later; meanwhile others wait for tasks, and get it."""
    pop_and_stop(client, queue, workers)
    assert engine.queue_states(["mail"])[0].waiting == 1
    other = workers.start("mail/1.0-a/w1/2", ["mail"])
    wait_for("it waits for a task", lambda: any(found["cmd"] == "blmove" for found in client.client_list()))
    (task,) = engine.recover(["mail"], [], "dead", waiting(5))
    assert (task.id, task.worker, task.to, task.started) == ("task-1", None, "waiting", False)
    wait_for("the other has done it", lambda: [seen.finished for seen in engine.workers()] == [1])
    assert [seen.name for seen in engine.workers()] == [other]


def test_a_worker_with_another_task_is_cleared_of_it(
    engine: Engine, client: redis.Redis, queue: Queue, workers: Workers
) -> None:
    pop_and_stop(client, queue, workers)
    workers.start("mail/1.0-a/w1/2", ["mail"])
    queue.enqueue("ledger_tasks.work", 2, 60, job_id="task-2")
    wait_for("it executes", lambda: engine.executing(["mail"]))
    workers.start("mail/1.0-a/w1/3", ["other"])
    assert [task.id for task in engine.recover(["mail"], [], "waiting", waiting(5))] == ["task-1"]


def test_a_popped_task_is_left_while_a_living_worker_may_be_about_to_claim_it(
    engine: Engine, client: redis.Redis, queue: Queue, workers: Workers
) -> None:
    frozen = workers.start(NAME, ["mail"])
    workers.start("mail/1.0-a/w1/2", ["mail", "other"])  # pops from both without a trace: no suspect
    busy = workers.start("mail/1.0-a/w1/3", ["elsewhere"])
    Queue("elsewhere", connection=client).enqueue("ledger_tasks.work", 2, 60, job_id="task-2")
    wait_for("another executes", lambda: [task.worker for task in engine.executing(["elsewhere"])] == [busy])
    workers.signal(frozen, signal.SIGSTOP)
    queue.enqueue("ledger_tasks.work", 1, 0, job_id="task-1")
    wait_for("it has been popped", lambda: client.llen("rq:queue:mail:intermediate") == 1)
    assert engine.recover(["mail"], [], "waiting", waiting(1)) == []
    workers.signal(frozen, signal.SIGCONT)
    wait_for("it has been done once", lambda: {seen.name: seen.finished for seen in engine.workers()}[frozen] == 1)


def test_without_the_right_to_see_connections_a_popped_task_comes_back_on_a_second_look(
    client: redis.Redis, redis_url: str, queue: Queue, workers: Workers
) -> None:
    pop_and_stop(client, queue, workers)
    workers.start("mail/1.0-a/w1/2", ["mail"])
    client.acl_setuser("plain", enabled=True, passwords=["+x"], keys=["*"], commands=["+@all", "-client|list"])
    with open_engine("rq", redis_url.replace("//", "//plain:x@"), 5.0) as engine:
        assert engine.recover(["mail"], [], "waiting", waiting(1)) == []
        first_seen = "rq:queue:mail:intermediate:first_seen:task-1"
        assert client.exists(first_seen)
        client.set(first_seen, float(client.get(first_seen) or 0) - 61)
        assert [task.id for task in engine.recover(["mail"], [], "waiting")] == ["task-1"]
    wait_for("the living worker has done it", lambda: client.llen("rq:queue:mail:intermediate") == 0)


def test_a_dead_workers_name_is_still_taken_until_it_is_recovered(
    engine: Engine, client: redis.Redis, queue: Queue, workers: Workers
) -> None:
    """Why the names that Backstep gives end in a process id: RQ refuses the name of a worker that was killed."""
    name = abandon(engine, queue, workers)
    wait_for("its connection is gone", lambda: [worker.connected for worker in engine.workers()] == [False])
    with pytest.raises(ValueError, match="exists an active worker named"):
        Worker([queue], connection=client, name=name).register_birth()
    engine.recover(["mail"], [name], "waiting")
    Worker([queue], connection=client, name=name).register_birth()


def test_a_registration_that_has_ended_or_run_out_is_no_worker(
    engine: Engine, client: redis.Redis, workers: Workers
) -> None:
    name = workers.start(NAME, ["mail"])
    client.sadd("rq:workers", "rq:worker:run-out")
    assert [worker.name for worker in engine.workers()] == [name]
    client.hset(f"rq:worker:{name}", "death", "2026-11-21T03:00:00.000000Z")
    assert engine.workers() == []
