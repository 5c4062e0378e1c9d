# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Note what a rollout is about to do to the queues, and end it: keep it, or undo it as a whole."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

from .._rollout import effects as pure
from .._rollout.effects import Effect, Unit
from .._rollout.gates import Gate, parse
from .._rollout.routes import Route
from .._rollout.routes import parse as parse_routes
from .books import GATES_BOOK, ROUTES_BOOK
from .engine import PARKED, Engine, Selection, Wait
from .gating import set_gates
from .routing import end_routes, routes

EFFECTS_BOOK = "effects"


@dataclass(frozen=True)
class Ended:
    """What became of one effect."""

    effect: Effect
    fate: str
    """``kept``, ``undone``, or ``open``: the pool's hosts differ, or one is not known."""
    said: str = ""
    """What undoing it came to."""


def note(engine: Engine, unit: Optional[Unit], kind: str, what: str, inverse: Mapping[str, Any]) -> None:
    """Write down how to undo what is about to be done, unless it is part of no rollout."""
    if unit is None:
        return
    effect = Effect(unit, kind, what, dict(inverse), time.time())
    if effect.key not in engine.read_book(EFFECTS_BOOK):
        engine.write_book(EFFECTS_BOOK, {effect.key: effect.line})


def note_park(engine: Engine, unit: Optional[Unit], queues: Sequence[str], selection: Selection) -> None:
    """Write down how to put back what is about to be parked."""
    inverse = {"queues": list(queues), "tasks": list(selection.tasks), "ids": list(selection.ids)}
    note(engine, unit, pure.PARK, " ".join([*selection.tasks, *selection.ids]), inverse)


def note_gates(engine: Engine, unit: Optional[Unit], wish: Mapping[str, Optional[Gate]]) -> None:
    """Write down how gates were that are about to be set."""
    book = engine.read_book(GATES_BOOK) if unit else {}
    for task, gate in wish.items():
        before, after = book.get(task), gate.line if gate else None
        if before != after:
            note(engine, unit, pure.GATE, task, {"task": task, "before": before, "after": after})


def note_routes(
    engine: Engine, unit: Optional[Unit], wish: Mapping[str, Optional[Route]], now: float, version: Optional[str] = None
) -> None:
    """Write down which routes there are that are about to be made or taken away.

    :param version: of those that are taken away, only routes to this one.
    """
    there = routes(engine) if unit else {}
    for queue, route in wish.items():
        before = there.get(queue)
        lives = before is not None and before.until > now and version in (None, before.version)
        old, new = before.line if before and lives else None, route.line if route else None
        if old != new:
            note(engine, unit, pure.ROUTE, queue, {"queue": queue, "before": old, "after": new})


def noted(engine: Engine) -> list[Effect]:
    """All that is noted and hasn't ended, of all pools, the newest first."""
    return pure.parse(engine.read_book(EFFECTS_BOOK))


def end(
    engine: Engine,
    queues: Sequence[str],
    pool: str,
    stands: Mapping[str, Optional[str]],
    wait: Wait,
    dry_run: bool = False,
) -> list[Ended]:
    """End what a pool's rollouts have done to the queues, the newest first, by where the pool stands.

    An effect is forgotten when it has ended, so that a run that dies here is followed by one that goes on.

    :param stands: the release that each host is on; see ``_rollout.effects.fate``.
    :param wait: asks a predicate again and again until it holds or a deadline has passed.
    """
    ended = []
    for effect in noted(engine):
        if effect.unit.pool != pool:
            continue
        how = pure.fate(effect.unit, stands)
        said = ""
        if how == pure.UNDONE:
            said = _UNDO[effect.kind](engine, queues, effect.inverse, wait, dry_run)
        if how != pure.OPEN and not dry_run:
            engine.write_book(EFFECTS_BOOK, {effect.key: None})
        ended.append(Ended(effect, how, said))
    return ended


def _unpark(engine: Engine, _queues: Sequence[str], inverse: Mapping[str, Any], _wait: Wait, dry_run: bool) -> str:
    # By their names, as a replay does: the release that knows them runs, so whoever has parked some before meant this.
    selection = Selection(states=(PARKED,), tasks=tuple(inverse["tasks"]), ids=tuple(inverse["ids"]))
    return f"{engine.replay(inverse['queues'], selection, dry_run).count} task(s) put back"


def _reset_gate(engine: Engine, queues: Sequence[str], inverse: Mapping[str, Any], wait: Wait, dry_run: bool) -> str:
    task, before, after = inverse["task"], inverse["before"], inverse["after"]
    if engine.read_book(GATES_BOOK).get(task) != after:
        return f"the gate of {task} was set by somebody else since, and stays"
    gate = parse({task: before})[task] if before else None
    set_gates(engine, queues, {task: gate}, wait, dry_run)
    return f"the gate of {task} is as it was: {f'{gate.open:g} % pass' if gate else 'there is none'}"


def _end_pause(engine: Engine, _queues: Sequence[str], inverse: Mapping[str, Any], _wait: Wait, dry_run: bool) -> str:
    return "resumed" if engine.resume(inverse["owner"], dry_run).changed else "the pause had ended"


def _reset_route(engine: Engine, _queues: Sequence[str], inverse: Mapping[str, Any], _wait: Wait, dry_run: bool) -> str:
    queue, before, after = inverse["queue"], inverse["before"], inverse["after"]
    now = engine.check(write=False)["time"]
    there = routes(engine).get(queue)
    if (there.line if there and there.until > now else None) != after:
        return f"the route of {queue} was set by somebody else since, and stays"
    if before is None:
        made = parse_routes({queue: after})[queue]
        done = end_routes(engine, [queue], now, time.sleep, version=made.version, dry_run=dry_run)
        return f"the route of {queue} is gone, {done.moved.count} task(s) are back in it"
    old = parse_routes({queue: before})[queue]
    if old.until > now and not dry_run:
        engine.write_book(ROUTES_BOOK, {queue: before})
    return f"the route of {queue} to version {old.version} is as it was"


_Undo = Callable[[Engine, Sequence[str], Mapping[str, Any], Wait, bool], str]
_UNDO: dict[str, _Undo] = {pure.PARK: _unpark, pure.GATE: _reset_gate, pure.PAUSE: _end_pause, pure.ROUTE: _reset_route}
