# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What only BullMQ has: priorities, a person's pause, locks, retries with a backoff. With both of its versions."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    ABANDONED,
    DEAD,
    LISTED_STATES,
    PARKED,
    RETRYING,
    SCHEDULED,
    WAITING,
    Engine,
    Selection,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BrokerRefused

from tests.support.bench import SUPPORT, TASK, task_id
from tests.support.bullmq_bench import Workers
from tests.support.servers import wait_for
from tools.engine_table import DOCUMENT

QUEUES = ["mail"]
NAME = "mail/1.0-a/w1/1"
EVERYTHING = Selection(states=("waiting", "scheduled", "retrying", "dead"))
ONLY_PARKED = Selection(states=(PARKED,))


class OlderWorkers(Workers):
    """BullMQ 5."""

    library = "bullmq5"


@pytest.fixture
def engine(redis_url: str, client: redis.Redis) -> Iterator[Engine]:
    """The engine on the emptied server."""
    with open_engine("bullmq", redis_url, 5.0) as opened:
        yield opened


@pytest.fixture(params=[OlderWorkers, Workers], ids=["5", "6"])
def workers(request: pytest.FixtureRequest, redis_url: str, client: redis.Redis, tmp_path: Path) -> Iterator[Workers]:
    """Starts workers of each version, and kills at the end what still runs."""
    bench = request.param(redis_url, tmp_path)
    yield bench
    bench.stop_all()


def send(workers: Workers, number: int, seconds: float = 0, task: str = TASK, **options: object) -> str:
    known = task_id(number)
    workers.ask("mail", jobs=[{"name": task, "data": [number, seconds], "opts": {"jobId": known, **options}}])
    return known


def hold(engine: Engine, workers: Workers, number: int, **options: object) -> str:
    """Have a new worker execute a task; its name."""
    name = workers.start(NAME, QUEUES)
    known = send(workers, number, 60, **options)
    wait_for("it executes", lambda: [(task.id, task.worker) for task in engine.executing(QUEUES)] == [(known, name)])
    return name


def places(engine: Engine) -> dict[str, tuple[str, ...]]:
    """The ids in each state that has some."""
    found = {state: engine.task_ids("mail", state, 99).ids for state in LISTED_STATES}
    return {state: ids for state, ids in found.items() if ids}


def test_the_documented_worker_is_the_one_that_is_tested() -> None:
    """But for what its tasks do."""
    blocks = re.findall(r"^```js\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (shown,) = [block for block in blocks if "\nconst name" in block]
    tested = (SUPPORT / "bullmq_worker.cjs").read_text(encoding="utf-8")
    assert shown.partition("\nconst name")[2] == tested.partition("\nconst name")[2] != ""


def test_priorities_keep_their_places(engine: Engine, workers: Workers) -> None:
    for number, priority in enumerate((7, 0, 3, 7, 0)):
        send(workers, number, priority=priority)
    before = workers.order("mail")
    assert before == [task_id(number) for number in (1, 4, 2, 0, 3)]
    assert list(engine.task_ids("mail", WAITING, 9).ids) == before
    engine.park(QUEUES, EVERYTHING, "ana", "")
    assert workers.order("mail") == []
    assert engine.replay(QUEUES, Selection(states=(PARKED,), limit=3)).count == 3
    engine.replay(QUEUES, ONLY_PARKED)
    assert workers.order("mail") == before


@pytest.mark.parametrize("priority", [0, 5])
def test_what_is_recovered_runs_first_again_however_often_its_worker_dies(
    engine: Engine, workers: Workers, client: redis.Redis, priority: int
) -> None:
    """BullMQ itself fails a task whose worker died twice."""
    others = []
    for index in (1, 2, 3):
        name = workers.start(f"mail/1.0-a/w1/{index}", QUEUES)
        if index == 1:
            send(workers, 1, 60, priority=priority)
        wait_for("it executes", lambda name=name: [task.worker for task in engine.executing(QUEUES)] == [name])
        if index == 1:
            others = [send(workers, number, priority=priority) for number in (2, 3)]
        workers.kill(name)
        (told,) = engine.recover(QUEUES, [name], WAITING)
        assert (told.id, told.to) == (task_id(1), WAITING)
        assert workers.order("mail") == [task_id(1), *others]
        assert (client.zscore("bull:mail:prioritized", task_id(1)) is not None) == (priority > 0)
    assert not client.hexists(f"bull:mail:{task_id(1)}", "stc")
    assert not client.exists("bull:mail:stalled", f"bull:mail:{task_id(1)}:lock")


def test_recovered_as_dead_it_has_the_retries_that_it_has_left(engine: Engine, workers: Workers) -> None:
    backoff = {"type": "exponential", "delay": 600_000}
    for number, options, state, left in (
        (1, {}, DEAD, DEAD),
        (2, {"attempts": 2}, WAITING, WAITING),
        (3, {"attempts": 2, "backoff": backoff}, SCHEDULED, RETRYING),
    ):
        name = hold(engine, workers, number, **options)
        workers.kill(name)
        (told,) = engine.recover(QUEUES, [name], DEAD)
        assert (told.id, told.to) == (task_id(number), state)
        assert places(engine) == {left: (task_id(number),)}
        workers.ask("mail", call="obliterate")


def test_a_retry_that_is_due_later_is_counted_apart(engine: Engine, workers: Workers) -> None:
    workers.start(NAME, QUEUES)
    send(workers, 1, task="ledger_tasks.fail", attempts=2, backoff=600_000)
    send(workers, 2, delay=600_000)
    wait_for("it has failed once", lambda: engine.queue_states(QUEUES)[0].retrying == 1)
    assert places(engine) == {SCHEDULED: (task_id(2),), RETRYING: (task_id(1),)}
    assert engine.park(QUEUES, Selection(states=(RETRYING,)), "ana", "").ids == (task_id(1),)
    assert engine.replay(QUEUES, ONLY_PARKED).after == {RETRYING: 1}


def test_what_a_worker_has_failed_is_counted_where_finished_tasks_are_kept(
    engine: Engine, workers: Workers
) -> None:
    def counted() -> tuple[int, int | None]:
        (worker,) = engine.workers()
        return worker.finished, worker.failed

    send(workers, 1, task="ledger_tasks.fail")
    send(workers, 2, 0)
    workers.start(NAME, QUEUES)
    wait_for("they have ended", lambda: counted() == (1, 0))  # the one that failed was before the window
    send(workers, 3, task="ledger_tasks.fail")
    send(workers, 4, task="ledger_tasks.fail", attempts=2, backoff=600_000)
    wait_for("they have failed", lambda: counted() == (1, 2))
    send(workers, 5, task="ledger_tasks.fail", removeOnComplete=True)
    (canary,) = engine.send_canary("mail", "ledger_tasks.fail", 1, 60)
    wait_for("it has failed too", lambda: engine.canaries([canary])[0].state == "failed")
    assert counted() == (1, 2)
    workers.ask("mail", call="obliterate")
    assert counted() == (0, None)


def test_a_delayed_task_that_was_parked_runs_when_it_is_due(engine: Engine, workers: Workers) -> None:
    send(workers, 1, delay=1500)
    engine.park(QUEUES, EVERYTHING, "ana", "")
    workers.start(NAME, QUEUES)
    began = time.monotonic()
    engine.replay(QUEUES, ONLY_PARKED)
    wait_for("it is done", lambda: workers.executions(1) == (1, 1))
    assert time.monotonic() - began < 10


def test_workers_are_woken_by_what_is_put_back_unless_a_person_has_paused_the_queue(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    """A worker that waits would find it by itself, but seconds later; a delayed one too."""
    marker = "bull:mail:marker"
    due = (time.time() + 600) * 1000
    for options, expected in (({}, {b"0": 0}), ({"priority": 3}, {b"0": 0}), ({"delay": 600_000}, {b"1": due})):
        known = send(workers, 1, **options)
        engine.park(QUEUES, EVERYTHING, "ana", "")
        client.delete(marker)
        assert engine.replay(QUEUES, ONLY_PARKED).ids == (known,)
        marks = dict(client.zrange(marker, 0, -1, withscores=True))
        assert marks == pytest.approx(expected, abs=60_000)
        engine.park(QUEUES, EVERYTHING, "ana", "")
        workers.ask("mail", call="pause")
        engine.replay(QUEUES, ONLY_PARKED)
        assert not client.exists(marker)
        workers.ask("mail", call="obliterate")


def test_a_dead_task_that_is_replayed_runs_again(engine: Engine, workers: Workers, client: redis.Redis) -> None:
    worker = workers.start(NAME, QUEUES)
    for number in (1, 2):
        send(workers, number, task="app.tasks.unknown")
    wait_for("they have failed", lambda: engine.queue_states(QUEUES)[0].dead == 2)
    workers.stop(worker)
    assert engine.replay(QUEUES, Selection(states=(DEAD,), ids=(task_id(2),))).ids == (task_id(2),)
    client.hset(f"bull:mail:{task_id(2)}", "name", TASK)
    assert not client.hexists(f"bull:mail:{task_id(2)}", "failedReason")
    workers.start(NAME, QUEUES)
    wait_for("it is done", lambda: workers.executions(2) == (1, 1))
    assert places(engine) == {DEAD: (task_id(1),)}


def test_nothing_is_lost_of_a_queue_that_a_person_has_paused_and_resumes(engine: Engine, workers: Workers) -> None:
    ids = [send(workers, number) for number in range(4)]
    workers.ask("mail", call="pause")
    ids += [send(workers, number) for number in (4, 5)]
    workers.start(NAME, QUEUES)
    assert sorted(engine.task_ids("mail", WAITING, 9).ids) == ids
    assert engine.queue_states(QUEUES)[0].waiting == 6
    assert engine.pause_state().by_person
    assert engine.park(QUEUES, Selection(states=(WAITING,), ids=tuple(ids[:3])), "ana", "").count == 3
    engine.replay(QUEUES, ONLY_PARKED)
    with pytest.raises(BrokerRefused, match="A person has paused the queue mail"):
        engine.send_canary("mail", engine.default_canary, 1, 60)
    assert sorted(engine.task_ids("mail", WAITING, 9).ids) == ids
    assert workers.finished() == 0
    workers.ask("mail", call="resume")
    wait_for("all are done", lambda: workers.finished() == 6)
    assert not engine.pause_state().paused


def test_what_lost_its_lock_is_abandoned_and_taken_back_without_a_name(
    engine: Engine, workers: Workers, client: redis.Redis
) -> None:
    name = hold(engine, workers, 1)
    assert engine.recover(QUEUES, [], WAITING) == []
    workers.kill(name)
    client.delete(f"bull:mail:{task_id(1)}:lock")  # as it runs out 30 seconds later
    assert places(engine) == {ABANDONED: (task_id(1),)}
    state = engine.queue_states(QUEUES)[0]
    assert (state.executing, state.abandoned, state.workers) == (0, 1, 0)
    client.sadd("bull:mail:stalled", task_id(1))  # as another worker notes it first
    (told,) = engine.recover(QUEUES, [], WAITING)
    assert (told.id, told.worker) == (task_id(1), name)
    assert not client.exists("bull:mail:stalled")


def test_a_withdrawn_canary_leaves_nothing_in_the_queue(engine: Engine, workers: Workers, client: redis.Redis) -> None:
    (waiting,) = engine.send_canary("mail", engine.default_canary, 1, 60)
    engine.withdraw("mail", [waiting])
    name = workers.start(NAME, QUEUES)
    for task, state in ((engine.default_canary, "finished"), ("ledger_tasks.fail", "failed")):
        (sent,) = engine.send_canary("mail", task, 1, 60)
        wait_for("it has ended", lambda sent=sent: engine.canaries([sent])[0].worker == name)
        wait_for(state, lambda sent=sent, state=state: engine.canaries([sent])[0].state == state)
        engine.withdraw("mail", [sent])
    assert not client.exists(*(f"bull:mail:{place}" for place in ("wait", "active", "completed", "failed")))
    assert client.keys("*canary*") == []


def test_a_workers_queues_are_told_in_its_own_order(engine: Engine, workers: Workers, redis_url: str) -> None:
    name = workers.start(NAME, ["urgent", "mail"])
    assert [(worker.name, worker.queues) for worker in engine.workers()] == [(name, ("urgent", "mail"))]
    with open_engine("bullmq", redis_url.replace("/0", "/1"), 5.0) as elsewhere:
        assert elsewhere.workers() == []


def test_what_was_parked_and_then_deleted_is_told(engine: Engine, workers: Workers, client: redis.Redis) -> None:
    ids = [send(workers, number) for number in (1, 2)]
    engine.park(QUEUES, EVERYTHING, "ana", "")
    client.delete(f"bull:mail:{ids[0]}")
    moved = engine.replay(QUEUES, ONLY_PARKED)
    assert (moved.ids, moved.vanished) == ((ids[1],), (ids[0],))
    assert client.keys("backstep:*parked*") in ([], [b"backstep:bullmq:parked:mail:order"])
