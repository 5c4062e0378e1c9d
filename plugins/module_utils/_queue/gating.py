# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Set gates in the broker, see that every worker keeps to them, and put back what may pass now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional

from .._rollout.errors import GateRefused
from .._rollout.gates import Gate, parse, passes, share_of
from .books import ALWAYS_FRESH, GATES_BOOK, digest
from .engine import PARKED, Engine, Moved, Selection, Wait, WorkerSeen
from .engines._moves import Tally

_CHUNK = 5000


@dataclass(frozen=True)
class Gating:
    """What was, or would be, done."""

    before: Mapping[str, Gate]
    after: Mapping[str, Gate]
    moved: Moved = field(default_factory=lambda: Tally(None).result())
    """What was put back, as it passes now."""

    @property
    def changed(self) -> bool:
        """Whether a gate or a task was."""
        return self.before != self.after or self.moved.count > 0


def gates(engine: Engine) -> dict[str, Gate]:
    """All gates, by their tasks' names."""
    return parse(engine.read_book(GATES_BOOK))


def set_gates(
    engine: Engine, queues: Sequence[str], wish: Mapping[str, Optional[Gate]], wait: Wait, dry_run: bool = False
) -> Gating:
    """Write these gates, and don't return before all living workers keep to them and what passes is put back.

    What a worker has taken already, also ahead, it still executes. Killed at any moment, the same call finishes it.

    :param queues: where the tasks are, and whose workers have to keep to the gates.
    :param wish: by their tasks' names; ``None`` for no gate any more.
    :param wait: asks a predicate again and again until it holds or a deadline has passed.
    :raises GateRefused: some workers keep no gates (nothing was changed), or haven't seen these in time.
    """
    before = gates(engine)
    after = {**before, **{task: gate for task, gate in wish.items() if gate is not None}}
    after = {task: gate for task, gate in after.items() if wish.get(task, gate) is not None}
    if any(share_of(after.get(task)) < share_of(before.get(task)) for task in wish):
        _require_keepers(engine.workers(), queues)
    changed = {task: gate for task, gate in wish.items() if before.get(task) != gate}
    if changed and not dry_run:
        engine.write_book(GATES_BOOK, {task: gate.line if gate else None for task, gate in changed.items()})
    if not dry_run:
        _await_keepers(engine, queues, wait)
    tally = Tally(None)
    for task in wish:
        _release(engine, queues, task, after.get(task), tally, dry_run)
    return Gating(before, after, tally.result())


def _require_keepers(workers: Iterable[WorkerSeen], queues: Sequence[str]) -> None:
    careless = sorted(worker.name for worker in _of(workers, queues) if worker.gates is None)
    if careless:
        raise GateRefused(
            f"{len(careless)} worker(s) keep no gates: {', '.join(careless[:5])}.",
            left="No gate was changed; they would have executed what it holds.",
            next_step="Deploy a release with this version of Backstep, or have the app's own program keep them as "
            "docs/engines.md says; or park what waits with task_move (operation: park, tasks: [...]).",
            workers=careless,
        )


def _await_keepers(engine: Engine, queues: Sequence[str], wait: Wait) -> None:
    late: list[str] = []

    def have_all_seen_it() -> bool:
        wanted = (ALWAYS_FRESH, digest(engine.read_book(GATES_BOOK)), None)
        late[:] = sorted(worker.name for worker in _of(engine.workers(), queues) if worker.gates not in wanted)
        return not late

    if not wait(have_all_seen_it):
        raise GateRefused(
            f"{len(late)} worker(s) have not said yet that they keep to the new gates: {', '.join(late[:5])}.",
            left="The gates are set; these workers may still execute what they hold.",
            next_step="Run again; it waits for them once more.",
            workers=late,
        )


def _of(workers: Iterable[WorkerSeen], queues: Sequence[str]) -> list[WorkerSeen]:
    return [worker for worker in workers if set(worker.queues) & set(queues)]


def _release(
    engine: Engine, queues: Sequence[str], task: str, gate: Optional[Gate], tally: Tally, dry_run: bool
) -> None:
    """Put back what was parked for this gate and passes now."""
    if not share_of(gate):
        return
    marks = {
        known: mark for known, mark in engine.gated(queues, task).items() if gate is None or passes(gate, known)
    }
    ids = list(marks)
    for start in range(0, len(ids), _CHUNK):
        some = ids[start : start + _CHUNK]
        tally.join(engine.replay(queues, Selection(states=(PARKED,), ids=tuple(some)), dry_run))
        if not dry_run:
            engine.forget_gated(task, {known: marks[known] for known in some})
