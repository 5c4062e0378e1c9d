# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollout does to the queues is kept or undone as a whole, also when the one who did it has died."""

from __future__ import annotations

import time
from dataclasses import replace

from ansible_collections.backstep.workers.plugins.module_utils._queue.books import ROUTES_BOOK
from ansible_collections.backstep.workers.plugins.module_utils._queue.effects import (
    Ended,
    end,
    note_gates,
    note_park,
    note_routes,
    noted,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import PARKED, WAITING, Engine, Selection
from ansible_collections.backstep.workers.plugins.module_utils._queue.gating import gates, set_gates
from ansible_collections.backstep.workers.plugins.module_utils._queue.routing import end_routes, routes
from ansible_collections.backstep.workers.plugins.module_utils._rollout.effects import KEPT, OPEN, UNDONE, Unit
from ansible_collections.backstep.workers.plugins.module_utils._rollout.gates import Gate
from ansible_collections.backstep.workers.plugins.module_utils._rollout.routes import route_of
from ansible_collections.backstep.workers.plugins.module_utils._waiting.deadline import Deadline

from tests.support.bench import TASK, UNKNOWN_TASK, Bench

BACK = Unit("mail", 12, leaves=("2-b",), leads_to=("1-a",))
NOT_BACK, WENT_BACK, BETWEEN = {"w1": "2-b", "w2": "2-b"}, {"w1": "1-a", "w2": "1-a"}, {"w1": "1-a", "w2": "2-b"}


def ended(engine: Engine, stands: dict[str, str], pool: str = "mail", dry_run: bool = False) -> list[tuple[str, str]]:
    found: list[Ended] = end(engine, ["mail"], pool, stands, Deadline(20).wait_until, dry_run)
    return [(one.effect.kind, one.fate) for one in found]


def go_back(engine: Engine, bench: Bench) -> list[str]:
    """What a rollback does to the queues: close a gate, then park what the old release doesn't know."""
    ids = bench.fill("mail", 6, lambda number: UNKNOWN_TASK if number % 2 else TASK)
    set_gates(engine, ["mail"], {"x": Gate("x", 30.0, "ana", time.time())}, Deadline(20).wait_until)
    wish: dict[str, Gate | None] = {"x": Gate("x", 0.0, "rollout 12", time.time())}
    note_gates(engine, BACK, wish)
    set_gates(engine, ["mail"], wish, Deadline(20).wait_until)
    selection = Selection(states=(WAITING,), tasks=(bench.named(UNKNOWN_TASK),))
    note_park(engine, BACK, ["mail"], selection)
    assert engine.park(["mail"], selection, "rollout 12", "").count == 3
    return ids


def test_all_is_undone_where_the_pool_has_not_left(engine: Engine, bench: Bench) -> None:
    ids = go_back(engine, bench)
    assert ended(engine, NOT_BACK, pool="other") == []
    assert ended(engine, BETWEEN) == [("park", OPEN), ("gate", OPEN)]
    assert ended(engine, NOT_BACK, dry_run=True) == [("park", UNDONE), ("gate", UNDONE)]
    assert (engine.queue_states(["mail"])[0].parked, gates(engine)["x"].open) == (3, 0.0)
    assert ended(engine, NOT_BACK) == [("park", UNDONE), ("gate", UNDONE)]
    assert sorted(bench.order("mail")) == ids
    assert gates(engine)["x"].open == 30.0
    assert (noted(engine), ended(engine, NOT_BACK)) == ([], [])


def test_all_is_kept_where_it_has(engine: Engine, bench: Bench) -> None:
    go_back(engine, bench)
    assert ended(engine, WENT_BACK) == [("park", KEPT), ("gate", KEPT)]
    assert len(engine.task_ids("mail", PARKED, 10).ids) == 3
    assert gates(engine)["x"].open == 0.0
    assert noted(engine) == []


def test_what_somebody_else_has_set_since_stays(engine: Engine, bench: Bench) -> None:
    go_back(engine, bench)
    set_gates(engine, ["mail"], {"x": Gate("x", 60.0, "ben", time.time())}, Deadline(20).wait_until)
    assert ended(engine, NOT_BACK) == [("park", UNDONE), ("gate", UNDONE)]
    assert gates(engine)["x"].open == 60.0


def test_what_was_noted_and_never_done_is_undone_without_harm(engine: Engine, bench: Bench) -> None:
    ids = bench.fill("mail", 3)
    note_park(engine, BACK, ["mail"], Selection(states=(WAITING,), tasks=("never",)))
    note_gates(engine, BACK, {"x": Gate("x", 0.0, "rollout 12", 1.0)})
    # The same again keeps its first inverse.
    set_gates(engine, ["mail"], {"x": Gate("x", 5.0, "ana", 2.0)}, Deadline(20).wait_until)
    note_gates(engine, BACK, {"x": Gate("x", 0.0, "rollout 12", 3.0)})
    assert len(noted(engine)) == 2
    assert ended(engine, NOT_BACK) == [("gate", UNDONE), ("park", UNDONE)]
    assert bench.order("mail") == ids
    assert gates(engine)["x"].open == 5.0


def test_a_route_that_was_taken_away_or_made_is_undone(engine: Engine) -> None:
    now = engine.check(write=False)["time"]
    route = route_of("mail", "2", 30.0, (), "ana", now, 600)
    engine.write_book(ROUTES_BOOK, {"mail": route.line})
    note_routes(engine, BACK, {"mail": None}, now, "2")
    end_routes(engine, ["mail"], now, lambda _seconds: None, version="2")
    assert routes(engine) == {}
    assert ended(engine, NOT_BACK) == [("route", UNDONE)]
    assert routes(engine) == {"mail": route}
    deploy, wider = Unit("mail", 13, leaves=("1-a",), leads_to=("2-b",)), replace(route, share=60.0)
    note_routes(engine, deploy, {"mail": wider}, now)
    engine.write_book(ROUTES_BOOK, {"mail": wider.line})
    assert ended(engine, WENT_BACK) == [("route", UNDONE)]
    assert routes(engine) == {"mail": route}
    # Where there was none, there is none, unless somebody else has made another since.
    for made_since, left in ((wider, {}), (route, {"mail": route})):
        engine.write_book(ROUTES_BOOK, {"mail": None})
        note_routes(engine, deploy, {"mail": wider}, now)
        engine.write_book(ROUTES_BOOK, {"mail": made_since.line})
        assert ended(engine, WENT_BACK) == [("route", UNDONE)]
        assert routes(engine) == left
