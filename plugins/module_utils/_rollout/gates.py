# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gates: which share of the tasks of one name workers may take. Pure.

What a gate doesn't let pass is parked by the worker that has taken it. A task passes by its id alone, so that all
workers agree, and what passed at 10 % passes at 20 % as well.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Optional

from .errors import BrokerRefused, GateRefused
from .names import utc

OPEN = 100.0
CLOSED = 0.0
CLOSE = "close"
KEEP = "keep"


@dataclass(frozen=True)
class Gate:
    """What holds for the tasks of one name."""

    task: str
    open: float
    """Per cent of the tasks that pass."""
    by: str
    """Who has set it last."""
    at: float
    """When (epoch seconds, by the broker's clock)."""
    reason: str = ""
    on_rollback: str = CLOSE
    """What a rollback does to it first: ``close`` or ``keep``."""
    retired: bool = False
    """The name is never to be used again; nothing passes."""

    @property
    def line(self) -> str:
        """As it stands in the book of gates."""
        told = asdict(self)
        del told["task"]
        return json.dumps(told, sort_keys=True)


def parse(book: Mapping[str, str]) -> dict[str, Gate]:
    """The gates of a book, by their tasks' names.

    :raises BrokerRefused: a line that no Backstep of this version has written.
    """
    found = {}
    for task, line in book.items():
        try:
            found[task] = Gate(task, **json.loads(line))
        except (ValueError, TypeError):
            raise BrokerRefused(
                f"The gate of {task} in the broker can't be read.",
                left="No gate was changed.",
                next_step="Use the version of Backstep that has written it.",
            ) from None
    return found


def passes(gate: Gate, task_id: str) -> bool:
    """Whether a worker may execute this task. The reporters in the workers decide in the same way."""
    return zlib.crc32(task_id.encode("utf-8", "surrogateescape")) % 10_000 < round(gate.open * 100)


def share_of(gate: Optional[Gate]) -> float:
    """Per cent of the tasks that pass; without a gate all do."""
    return OPEN if gate is None else gate.open


def require_usable(task: str, gate: Optional[Gate]) -> None:
    """:raises GateRefused: the name is retired."""
    if gate is not None and gate.retired:
        raise GateRefused(
            f"The name {task} was retired by {gate.by} at {utc(gate.at)}{f' ({gate.reason})' if gate.reason else ''}: "
            "who uses it again may meet old tasks, or old producers, that mean something else by it.",
            left="The gate stays closed, and no task was moved.",
            next_step="Give the new task another name.",
        )


def require_unretired(release: str, tasks: Collection[str]) -> None:
    """:param tasks: retired names that a release uses. :raises GateRefused: there are some."""
    if tasks:
        raise GateRefused(
            f"{release} has tasks whose names were retired: {', '.join(sorted(tasks))}. Old tasks, or producers, may "
            "mean something else by them.",
            left="Nothing that runs was touched.",
            next_step="Rename them in the app; or, if one was retired by mistake, take that back with task_gate "
            "(operation: reinstate).",
            tasks=sorted(tasks),
        )


def closed_by_rollback(gates: Mapping[str, Gate], by: str, at: float, reason: str) -> list[Gate]:
    """What a rollback makes of the gates before anything else: those that are to close and let something pass."""
    return [
        replace(gate, open=CLOSED, by=by, at=at, reason=reason)
        for gate in gates.values()
        if gate.on_rollback == CLOSE and gate.open > CLOSED
    ]
