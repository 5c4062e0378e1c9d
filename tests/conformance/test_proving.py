# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Canaries, and how workers are proven by them."""

from __future__ import annotations

from collections.abc import Callable

from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import PARKED, Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.proving import Proof, Trial
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine

from tests.support.bench import FAILING_TASK, UNKNOWN_TASK, Bench
from tests.support.brokers import KINDS, Broker
from tests.support.servers import wait_for
from tests.support.trials import PREFIX, RELEASE, process, trial

# For what must be decided before the time is up: longer than any test may take.
ENDLESS = 3600.0


def test_canaries_prove_idle_workers_and_leave_nothing(
    engine: Engine, broker: Broker, bench: Bench
) -> None:
    names = [bench.start(f"{PREFIX}/{index}", ["mail"]) for index in (1, 2, 3)]
    proof, verdict = trial(engine, *names, seconds=ENDLESS)
    assert verdict == "good"
    assert proof.sent >= 3
    assert [(worker.finished, worker.failed or 0) for worker in engine.workers()] == [(0, 0)] * 3
    assert not [place for place in broker.contents() if b"backstep-canary" in place]
    assert bench.order("mail") == []


def test_a_worker_with_traffic_gets_no_canary(engine: Engine, broker: Broker, bench: Bench) -> None:
    name = bench.start(f"{PREFIX}/1", ["mail"])
    bench.enqueue("mail", 1, 0)
    wait_for("it is done", lambda: engine.workers()[0].finished == 1)
    proof, verdict = trial(engine, name)
    assert (verdict, proof.sent) == ("good", 0)


def test_a_worker_that_parks_what_it_does_not_know_is_bad_but_on_a_way_back(engine: Engine, bench: Bench) -> None:
    name = bench.start(f"{PREFIX}/1", ["mail"])
    if engine.capabilities.unknown_task != PARKED:
        return
    bench.enqueue("mail", 1, task=UNKNOWN_TASK)
    wait_for("it is parked", lambda: engine.queue_states(["mail"])[0].parked == 1)
    assert engine.parked_by(["mail", "other"]) == {name}
    assert trial(engine, name)[1] == "good"
    assert trial(engine, name, must_know=True)[1] == "bad"
    # Another process of the same release has not.
    other = bench.start(f"{PREFIX}/2", ["mail"])
    assert trial(engine, other, must_know=True)[1] == "good"


def test_canaries_reach_a_new_worker_among_many_old_ones(engine: Engine, bench: Bench) -> None:
    for index in (1, 2, 3):
        bench.start(f"mail/1.0-a/w1/{index}", ["mail"])
    name = bench.start(f"{PREFIX}/1", ["mail"])
    assert trial(engine, name)[1] == "good"


def test_a_canary_that_another_trial_takes_back_is_proof(engine: Engine, bench: Bench) -> None:
    name = bench.start(f"{PREFIX}/1", ["mail"])
    theirs = engine.send_canary("mail", engine.default_canary, 1, 60)
    wait_for("their canary is done", lambda: engine.canaries(theirs)[0].state == "finished")
    subject = Trial("mail", RELEASE, "w1", (("mail",),), [process(name)], engine.default_canary, 15.0)

    def wait(predicate: Callable[[], bool]) -> bool:
        predicate()
        engine.withdraw("mail", theirs)
        return wait_for("it is decided", predicate)

    seen = Proof(engine, subject).run(wait)
    assert [(worker.finished, worker.proven) for worker in seen.workers] == [(0, True)]


def test_the_wrong_queue_is_bad_at_once(engine: Engine, bench: Bench) -> None:
    name = bench.start(f"{PREFIX}/1", ["mial"])
    assert trial(engine, name, seconds=ENDLESS)[1] == "bad"


def test_a_canary_that_fails_is_bad(engine: Engine, broker: Broker, bench: Bench) -> None:
    name = bench.start(f"{PREFIX}/1", ["mail"])
    assert trial(engine, name, canary=bench.named(FAILING_TASK), seconds=ENDLESS)[1] == "bad"
    assert engine.queue_states(["mail"])[0].dead in (0, None)
    assert engine.workers()[0].failed in (0, None)


def test_a_process_that_never_registers_is_bad_by_the_deadline(engine: Engine, bench: Bench) -> None:
    name = bench.start(f"{PREFIX}/1", ["mail"])
    assert trial(engine, name, f"{PREFIX}/2/1", seconds=2)[1] == "bad"


def test_a_worker_that_still_executes_its_first_task_is_unknown(
    engine: Engine, broker: Broker, bench: Bench
) -> None:
    name = bench.start(f"{PREFIX}/1", ["mail"])
    bench.enqueue("mail", 1, 30)
    wait_for("it executes", lambda: engine.workers()[0].current_task)
    proof, verdict = trial(engine, name, seconds=1)
    assert (verdict, proof.sent) == ("unknown", 0)


def test_a_crashed_process_that_is_still_registered_proves_nothing(engine: Engine, bench: Bench) -> None:
    crashed = bench.start(f"{PREFIX}/1", ["mial"])
    bench.kill(crashed)
    name = bench.start(f"{PREFIX}/1", ["mail"])
    assert trial(engine, name)[1] == "good"


def test_a_broker_that_is_not_there_is_unknown(kind: type[Bench]) -> None:
    with open_engine(kind.engine, KINDS[kind.broker].nowhere("pw"), 0.5) as engine:
        proof, verdict = trial(engine, f"{PREFIX}/1/1", seconds=0.5)
        assert (verdict, "gave no usable answer" in proof.error) == ("unknown", True)
