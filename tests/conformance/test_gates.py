# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Backstep keeps in the broker, and gates: what they hold is parked whole, and comes back when they open."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.books import GATES_BOOK
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    PARKED,
    WAITING,
    Engine,
    Selection,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.gating import Gating, gates, set_gates
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import GateRefused
from ansible_collections.backstep.workers.plugins.module_utils._rollout.gates import Gate, passes
from ansible_collections.backstep.workers.plugins.module_utils._waiting.deadline import Deadline

from tests.conformance.conftest import BENCHES
from tests.support.bench import FAILING_TASK, TASK, Bench, task_id
from tests.support.ledger import balance
from tests.support.servers import wait_for

NAME = "mail/2.4.0-aaaa/w1/1"


def set_gate(engine: Engine, task: str, share: float | None, dry_run: bool = False) -> Gating:
    gate = None if share is None else Gate(task, share, "ana", time.time(), "trying it out")
    return set_gates(engine, ["mail"], {task: gate}, Deadline(30).wait_until, dry_run)


def states(engine: Engine, numbers: Sequence[int]) -> tuple[set[str], set[str]]:
    """Which of these tasks wait, and which are parked."""
    ids = {task_id(number) for number in numbers}
    waiting, parked = (set(engine.task_ids("mail", state, 1000).ids) & ids for state in (WAITING, PARKED))
    return waiting, parked


def test_a_book_keeps_the_last_word_on_each_line(engine: Engine) -> None:
    assert engine.read_book("some.book") == {}
    for number in range(60):
        engine.write_book("some.book", {"line": str(number), f"other {number % 7}": "ä\n", "gone": None})
    engine.write_book("some.book", {"other 3": None, "gone": "here"})
    assert engine.read_book("some.book") == {
        "line": "59", "gone": "here", **{f"other {number}": "ä\n" for number in (0, 1, 2, 4, 5, 6)}
    }  # fmt: skip
    engine.write_book("brief.book", {"line": "1"}, seconds=600)
    engine.write_book("brief.book", {"line": "2"}, seconds=600)
    assert engine.read_book("brief.book") == {"line": "2"}
    assert engine.read_book("an.other") == {}


def test_what_a_gate_holds_is_parked_and_comes_back_when_it_opens(engine: Engine, bench: Bench) -> None:
    held, free = bench.named(TASK), bench.named(FAILING_TASK)
    first = bench.start(NAME, ["mail"])
    assert set_gate(engine, held, 0.0).changed
    for number in range(6):
        bench.enqueue("mail", number, 0)
    wait_for("all are parked", lambda: engine.queue_states(["mail"])[0].parked == 6)
    assert engine.parked_by(["mail"]) == {f"gate {held}"}
    # A worker that is started later keeps to it as well, and others' tasks are not held.
    bench.stop(first)
    bench.start(NAME, ["mail"])
    bench.enqueue("mail", 6, 0)
    bench.enqueue("mail", 7, task=FAILING_TASK)
    wait_for("the other one is executed", lambda: bench.executions(7)[0] > 0)
    wait_for("the next one is parked", lambda: engine.queue_states(["mail"])[0].parked == 7)
    assert all(bench.executions(number) == (0, 0) for number in range(7))
    assert free not in gates(engine)
    told = set_gate(engine, held, None, dry_run=True)
    assert told.moved.count == 7
    assert held in gates(engine)
    assert set_gate(engine, held, None).moved.count == 7
    wait_for("all are done", lambda: all(bench.executions(number) == (1, 1) for number in range(7)))
    assert not set_gate(engine, held, None).changed
    assert engine.gated(["mail"], held) == {}
    # Celery keeps a failed task nowhere.
    assert balance(engine, bench.ledger_url, ["mail"]).lost <= {task_id(7)}


def test_a_share_passes_and_a_greater_one_lets_the_same_pass_and_more(engine: Engine, bench: Bench) -> None:
    numbers, held = range(30), bench.named(TASK)
    bench.start(NAME, ["mail"])
    passed = set[int]()
    for share in (40.0, 70.0):
        set_gate(engine, held, share)
        passing = {number for number in numbers if passes(Gate(held, share, "", 0), task_id(number))}
        assert passed < passing < set(numbers)
        for number in numbers if not passed else ():
            bench.enqueue("mail", number, 0)
        done = partial(lambda some: all(bench.executions(number) == (1, 1) for number in some), passing)
        wait_for(f"{share} % are done", done)
        rest = {task_id(number) for number in set(numbers) - passing}
        wait_for("the rest is parked", lambda rest=rest: states(engine, numbers) == (set(), rest))  # type: ignore[misc]
        passed = passing
    assert not any(bench.executions(number)[0] for number in set(numbers) - passed)


@pytest.mark.parametrize("kind", sorted(name for name, bench in BENCHES.items() if bench.schedules), indirect=True)
def test_what_is_due_later_is_held_when_it_is_due(engine: Engine, bench: Bench) -> None:
    held = bench.named(TASK)
    # With RQ a worker has to be asked for it.
    bench.start(NAME, ["mail"], *(["--with-scheduler"] if bench.engine == "rq" else []))
    set_gate(engine, held, 0.0)
    due = time.time() + 3
    bench.enqueue("mail", 1, 0, delay=3)
    wait_for("it is parked", lambda: engine.queue_states(["mail"])[0].parked == 1)
    assert time.time() >= (int(due) if bench.engine == "rq" else due)  # RQ keeps whole seconds
    assert set_gate(engine, held, None).moved.ids == (task_id(1),)
    wait_for("it is done", lambda: bench.executions(1) == (1, 1))


def test_what_a_person_has_parked_stays_when_a_gate_opens(engine: Engine, bench: Bench) -> None:
    held = bench.named(TASK)
    bench.enqueue("mail", 1, 0)
    engine.park(["mail"], Selection(states=(WAITING,)), "ana", "looks odd")
    set_gate(engine, held, 0.0)
    bench.start(NAME, ["mail"])
    bench.enqueue("mail", 2, 0)
    wait_for("it is parked", lambda: engine.queue_states(["mail"])[0].parked == 2)
    assert set_gate(engine, held, 100.0).moved.ids == (task_id(2),)
    wait_for("it is done", lambda: bench.executions(2) == (1, 1))
    assert states(engine, [1, 2]) == (set(), {task_id(1)})


def test_a_gate_that_a_worker_would_not_keep_is_refused(
    engine: Engine, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = bench.named(TASK)
    monkeypatch.setenv("KEEP_GATES", "no")
    name = bench.start(NAME, ["mail"])
    wait_for("it answers", engine.workers)
    with pytest.raises(GateRefused) as refused:
        set_gate(engine, held, 50.0)
    assert refused.value.details["workers"] == [name]
    assert engine.read_book(GATES_BOOK) == {}
    # What keeps nothing back needs nobody to keep to it.
    set_gate(engine, held, 100.0)
    bench.stop(name)
    set_gate(engine, held, 50.0)
    assert gates(engine)[held].open == 50.0
