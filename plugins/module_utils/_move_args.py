# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tasks to move, and the options for dead ones."""

from __future__ import annotations

import time
import uuid
from typing import Any

from ._broker_args import moment
from ._queue.engine import DEAD, PARKED, WAITING, Engine, Moved, Selection
from ._queue.triage import Pace, Replay, Wanted, expiring, groups, listed, park, select, told
from ._rollout.errors import BadInput
from ._waiting.deadline import until

DEAD_OPTIONS: dict[str, Any] = {
    "releases": {"type": "list", "elements": "str", "default": []},
    "error": {"type": "str", "default": ""},
    "died_after": {"type": "str"},
    "died_before": {"type": "str"},
    "run": {"type": "str"},
    "rate": {"type": "float"},
    "canary": {"type": "int", "default": 0},
    "canary_seconds": {"type": "float", "default": 300.0},
    "max_failed": {"type": "int", "default": 0},
}
_SOON_SECONDS = 24 * 3600


def selection_of(params: dict[str, Any], states: tuple[str, ...]) -> Selection:
    """The tasks that are meant.

    :param states: those to take where the user names none.
    :raises BadInput: a time that is none.
    """
    return Selection(
        states=tuple(params["states"] or states),
        ids=tuple(params["ids"]),
        tasks=tuple(params["tasks"]),
        enqueued_after=moment("enqueued_after", params["enqueued_after"]),
        enqueued_before=moment("enqueued_before", params["enqueued_before"]),
        limit=params["limit"],
    )


def are_only_dead(params: dict[str, Any]) -> bool:
    """Whether it is dead tasks alone that are to be moved.

    :raises BadInput: it isn't, and there are options that are for dead tasks only.
    """
    if params["states"] == [DEAD]:
        return True
    odd = sorted(name for name, known in DEAD_OPTIONS.items() if params[name] not in (None, known.get("default")))
    if odd:
        raise BadInput(
            f"{', '.join(odd)}: only dead tasks can be chosen, or put back, by that.",
            left="No task was moved.",
            next_step="Add states: [dead].",
        )
    return False


def move_dead(
    engine: Engine, queues: list[str], params: dict[str, Any], dry_run: bool
) -> tuple[Moved, dict[str, Any]]:
    """Put dead tasks back, or park them.

    :returns: what was moved, and more for the result: ``dead`` (what was chosen, by group), ``run`` and ``soon`` (what
        there is to warn of).
    :raises BadInput: a value that can't be meant, or an engine without a place for dead tasks.
    """
    if DEAD in engine.capabilities.uncountable_states:
        raise BadInput(f"{engine.name} has no place for dead tasks.", left="No task was moved.")
    wanted = Wanted(
        ids=frozenset(params["ids"]),
        tasks=frozenset(params["tasks"]),
        releases=frozenset(params["releases"]),
        error=params["error"],
        **{
            name: moment(name, params[name])
            for name in ("enqueued_after", "enqueued_before", "died_after", "died_before")
        },
    )
    found = select(engine.dead_tasks(queues), wanted)
    more: dict[str, Any] = {}
    if params["operation"] == "park":
        chosen = found[: params["limit"]]
        moved = told(chosen, PARKED) if dry_run else park(engine, queues, chosen, params["owner"], params["reason"])
    else:
        pace = Pace(params["rate"], params["canary"], params["canary_seconds"], params["max_failed"])
        name = params["run"] or f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"
        replay = Replay(engine, queues, name, pace, until)
        chosen = replay.open(found, params["limit"])
        moved = told(chosen, WAITING) if dry_run else replay.put_back(chosen)
        more = {"run": name}
    soon = expiring(found, time.time() + _SOON_SECONDS) if dry_run else ""
    return moved, {**more, "dead": groups(chosen), "listed": listed(chosen), "soon": [soon] if soon else []}
