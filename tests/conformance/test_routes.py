# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes: a lease in the broker to a queue that somebody listens to, and what lies there comes back whole."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    DEAD,
    RETRYING,
    SCHEDULED,
    WAITING,
    Engine,
    Selection,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.routing import (
    end_routes,
    measure,
    routes,
    set_routes,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput, RouteRefused
from ansible_collections.backstep.workers.plugins.module_utils._rollout.routes import Route, route_of

from tests.conformance.test_moving import after_the_kill, kill_in_the_middle
from tests.support.bench import FAILING_TASK, TASK, Bench, Call, task_id
from tests.support.brokers import Broker
from tests.support.servers import wait_for

TAGGED = "mail.for-2.0"
LATER = task_id(1300)
NAME = "mail/2.0-bbbb/w1/1"


def route(by: str = "ana", share: float = 25.0, at: float | None = None, version: str = "2.0") -> Route:
    return route_of("mail", version, share, [], by, time.time() if at is None else at, 60)


def test_a_route_is_a_lease_to_a_queue_that_somebody_listens_to(engine: Engine, bench: Bench) -> None:
    with pytest.raises(RouteRefused) as refused:
        set_routes(engine, [route()], time.time())
    assert refused.value.details["queues"] == [TAGGED]
    bench.start(NAME, [TAGGED, "mail"])
    assert set_routes(engine, [route()], time.time(), dry_run=True).changed
    assert routes(engine) == {}
    meant = route()
    assert set_routes(engine, [meant], time.time()).changed
    assert routes(engine) == {"mail": meant}
    assert not set_routes(engine, [route()], time.time()).changed
    assert [action["action"] for action in set_routes(engine, [route()], time.time()).actions] == ["extend"]
    with pytest.raises(RouteRefused):
        set_routes(engine, [route("bo")], time.time())
    with pytest.raises(RouteRefused):
        end_routes(engine, ["mail"], time.time(), time.sleep, owner="bo")
    assert set_routes(engine, [route("bo", 10.0)], time.time() + 61).changed
    assert not end_routes(engine, ["mail", TAGGED], time.time(), time.sleep, version="3.0").changed
    ended = end_routes(engine, ["mail"], time.time(), time.sleep)
    assert [action["action"] for action in ended.actions] == ["end_route"]
    assert routes(engine) == {}
    assert not end_routes(engine, ["mail"], time.time(), time.sleep, version="2.0").changed


def test_who_begins_tasks_is_counted(engine: Engine, bench: Bench) -> None:
    bench.start(NAME, [TAGGED, "mail"])

    def work(_seconds: float) -> None:
        for number in range(20):
            bench.enqueue("mail", number, 0)
        wait_for("all are done", lambda: bench.finished() == 20)
        wait_for("all are counted", lambda: sum(worker.finished for worker in engine.workers()) == 20)

    told = measure(engine, ["mail"], "2.0", work, 1.0)
    assert told == {"releases": {"2.0-bbbb": 20}, "share": 100.0}


def now_waiting(bench: Bench, queue: str) -> list[str]:
    """The ids of a queue's tasks in their order, but for the one that is due later."""
    return [known for known in bench.order(queue) if known != LATER]


def test_what_is_rerouted_is_whole_and_in_order(engine: Engine, bench: Bench, broker: Broker) -> None:
    if not engine.capabilities.reroutes:
        return
    bench.fill("mail", 3)
    bench.send_many(TAGGED, {task_id(number): Call(TASK, (number, 0), 0, False) for number in range(3, 1300)})
    later = int(bench.schedules)
    if later:
        bench.enqueue(TAGGED, 1300, 0, delay=3600)
    told = engine.reroute(TAGGED, "mail", dry_run=True)
    assert told.count == 1297 + later
    assert now_waiting(bench, TAGGED) == [task_id(number) for number in range(3, 1300)]
    before = broker.contents()
    moved = engine.reroute(TAGGED, "mail")
    assert (moved.count, moved.by_queue, moved.before) == (told.count, {TAGGED: told.count}, told.before)
    assert moved.after == moved.before == {WAITING: 1297, **({SCHEDULED: 1} if later else {})}
    old, new = list(range(3)), list(range(3, 1300))
    wanted = [*new, *old] if engine.capabilities.put_back == "first" else [*old, *new]
    assert now_waiting(bench, "mail") == [task_id(number) for number in wanted]
    assert bench.order(TAGGED) == []
    assert (set(engine.task_ids("mail", SCHEDULED, 10).ids) == {LATER}) == bench.schedules
    # Nothing says any more that it is of the other queue; where its names are kept is no task's place.
    names = (b"rq:queues", b"queues", b"_kombu.binding", b"backstep")
    found = {key: value for key, value in broker.contents().items() if not key.startswith(names)}
    assert TAGGED not in repr(found)
    assert engine.reroute(TAGGED, "mail").count == 0
    # Back again by the same way, each task is what it was, to the last byte.
    engine.park(["mail"], Selection(states=(WAITING,), ids=tuple(task_id(number) for number in old)), "ana", "")
    engine.reroute("mail", TAGGED)
    engine.replay(["mail"], Selection(states=("parked",)))
    assert broker.contents() == before


def test_what_is_rerouted_is_executed_once_by_the_other_queues_workers(engine: Engine, bench: Bench) -> None:
    if not engine.capabilities.reroutes:
        return
    bench.start("mail/1.0-aaaa/w1/1", ["mail"], *(["--with-scheduler"] if bench.engine == "rq" else []))
    for number in range(5):
        bench.enqueue(TAGGED, number, 0)
    delayed = [bench.enqueue(TAGGED, 5, 0, delay=3)] if bench.schedules else []
    assert engine.reroute(TAGGED, "mail").count == 5 + len(delayed)
    count = 5 + len(delayed)
    wait_for("all are done", lambda: all(bench.executions(number) == (1, 1) for number in range(count)))


def test_what_has_failed_is_rerouted_as_what_it_is(engine: Engine, bench: Bench) -> None:
    if not engine.capabilities.reroutes or DEAD in engine.capabilities.uncountable_states:
        return
    name = bench.start(NAME, [TAGGED, "mail"])
    bench.enqueue(TAGGED, 1, task=FAILING_TASK)

    def failed(queue: str) -> list[tuple[str, ...]]:
        return [engine.task_ids(queue, state, 10).ids for state in (RETRYING, DEAD)]

    wait_for("it has failed", lambda: failed(TAGGED) != [(), ()])
    before = failed(TAGGED)
    bench.stop(name)
    assert engine.reroute(TAGGED, "mail").ids == (task_id(1),)
    assert (failed(TAGGED), failed("mail")) == ([(), ()], before)


def test_a_killed_reroute_leaves_each_task_in_one_place(engine: Engine, bench: Bench) -> None:
    if not engine.capabilities.reroutes:
        return
    bench.enqueue("other", 3000, 0)
    everyone = Counter([*bench.fill("mail", 3000), task_id(3000)])

    def places() -> Counter[str]:
        return Counter(known for queue in ("mail", "other") for known in engine.task_ids(queue, WAITING, 10_000).ids)

    kill_in_the_middle(bench, "reroute", lambda: (engine.queue_states(["other"])[0].waiting or 0) > 100)
    assert 0 < len(bench.order("mail")) < 3000
    left = after_the_kill(bench, places, everyone)
    # RabbitMQ can't move in one step: until somebody finishes that, a batch is in both.
    assert left == everyone if bench.broker == "redis" else left.keys() == everyone.keys()
    engine.reroute("mail", "other")
    order = [known for known in bench.order("other") if known != task_id(3000)]
    assert (bench.order("mail"), order) == ([], list(everyone)[:-1])
    assert places() == everyone


def test_an_engine_that_cannot_says_what_to_do(engine: Engine, bench: Bench) -> None:
    if engine.capabilities.reroutes:
        return
    assert engine.reroute(TAGGED, "mail").count == 0
    bench.enqueue(TAGGED, 1, 0)
    with pytest.raises(BadInput, match="Let the workers that listen to it finish them"):
        engine.reroute(TAGGED, "mail")
    assert bench.order(TAGGED) == [task_id(1)]
