# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pause is a lease that is read back, extended, ended and runs out; an engine without one refuses."""

from __future__ import annotations

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.pausing import settle
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import capabilities
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput, PauseRefused

from tests.conformance.conftest import BENCHES
from tests.support.bench import Bench
from tests.support.brokers import Broker
from tests.support.servers import wait_for, waiting

PAUSES = {name: capabilities(name).pause_scope != "none" for name in BENCHES}
able = pytest.mark.parametrize("kind", [name for name, pauses in PAUSES.items() if pauses], indirect=True)
unable = pytest.mark.parametrize("kind", [name for name, pauses in PAUSES.items() if not pauses], indirect=True)


@unable
def test_an_engine_without_a_pause_refuses_and_says_what_to_do(engine: Engine, broker: Broker) -> None:
    for attempt in (lambda: engine.pause(["mail"], "ana", 30, "broker"), lambda: engine.resume("ana")):
        with pytest.raises(PauseRefused) as refused:
            attempt()
        assert refused.value.next_step
    assert not engine.pause_state().paused
    assert not broker.contents()


@able
def test_a_pause_is_a_lease_that_its_owner_extends_and_ends(engine: Engine, client: redis.Redis) -> None:
    done = engine.pause(["mail"], "ana", 30, "queue")
    assert (done.changed, done.state.paused, done.state.by_person, done.state.owner) == (True, True, False, "ana")
    again = engine.pause(["mail"], "ana", 300, "queue")
    assert not again.changed
    assert again.state.expires_in is not None
    assert 290 < again.state.expires_in <= 300
    ended = engine.resume("ana")
    assert (ended.changed, ended.state.paused, ended.state.owner) == (True, False, None)
    assert not engine.resume("ana").changed
    assert not client.keys("*")


@able
def test_a_dry_run_decides_the_same_and_writes_nothing(engine: Engine, client: redis.Redis) -> None:
    assert engine.pause(["mail"], "ana", 30, "queue", dry_run=True).changed
    assert not client.keys("*")
    engine.pause(["mail"], "ana", 30, "queue")
    assert not engine.pause(["mail"], "ana", 300, "queue", dry_run=True).changed
    expires = engine.pause_state().expires_in
    assert expires is not None
    assert expires <= 30
    assert engine.resume("ana", dry_run=True).changed
    assert engine.pause_state().paused


@able
def test_a_pause_does_not_outlive_its_owner(engine: Engine) -> None:
    engine.pause(["mail"], "ana", 1, "queue")
    wait_for("the lease has run out", lambda: not engine.pause_state().paused, 5)
    assert engine.pause_state().owner is None


@able
def test_another_owners_lease_is_refused_by_name(engine: Engine) -> None:
    engine.pause(["mail"], "ana", 30, "queue")
    for attempt in (lambda: engine.pause(["mail"], "bo", 30, "queue"), lambda: engine.resume("bo")):
        with pytest.raises(PauseRefused, match="ana holds the pause since") as refused:
            attempt()
        assert refused.value.details["owner"] == "ana"
        assert 0 < refused.value.details["expires_in"] <= 30
    assert engine.pause_state().owner == "ana"


@able
def test_settled_workers_take_nothing_until_the_queues_are_resumed(engine: Engine, bench: Bench) -> None:
    for index in (1, 2):
        bench.start(f"mail/1.0-a/w1/{index}", ["mail"])
    engine.pause(["mail"], "ana", 60, "queue")
    settle(engine, waiting(20), 20)
    for number in range(3):
        bench.enqueue("mail", number, 0)
    assert [(worker.state, worker.finished) for worker in engine.workers()] == [("suspended", 0), ("suspended", 0)]
    assert engine.queue_states(["mail"])[0].waiting == 3
    engine.resume("ana")
    wait_for("they work again", lambda: all(bench.executions(number) == (1, 1) for number in range(3)))


@able
@pytest.mark.parametrize(("owner", "seconds"), [("", 30), ("ana", 0)])
def test_a_pause_without_owner_or_expiry_is_refused(engine: Engine, owner: str, seconds: int) -> None:
    with pytest.raises(BadInput):
        engine.pause(["mail"], owner, seconds, "queue")
    assert not engine.pause_state().paused
