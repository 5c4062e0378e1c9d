# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make engine-table`: writes what each engine can and can't do into docs/engines.md, out of the engines' own code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tools.common import CHECKOUT, COLLECTIONS, main, say

# So that `ansible_collections.backstep.workers` is this checkout, whatever else the machine has.
sys.path.insert(0, str(COLLECTIONS))

from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Capabilities
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import (
    ENGINES,
    capabilities,
    rights,
    worker_defaults,
)

DOCUMENT = CHECKOUT / "docs" / "engines.md"
BEGIN = "<!-- Made by `make engine-table` from the code. Not edited by hand. -->"
END = "<!-- The end of what is made. -->"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _seconds(value: float | None) -> str:
    if value is None:
        return "only by `task_move` with `recover`"
    return f"after {value:.0f} s by itself" if value else "at once by itself"


def _in_cell(code: str) -> str:
    """Code as it stands in a table, whose cells a bar ends."""
    return code.replace("|", "\\|")


_KILL = {"loses": "is lost", "repeats": "runs again", "sticks": "stays where it is until it is recovered"}
_UNKNOWN = {
    "dead": "dead, payload kept", "lost": "lost", "retried": "retried", "done": "counted as done",
    "parked": "parked, by Backstep's file in the worker",
}  # fmt: skip
_PUT_BACK = {"first": "goes first", "last": "goes last"}
_REACH = {"none": "no pause", "process": "a process", "queue": "a queue", "broker": "every queue of the database"}
# In the order of the fields of ``Capabilities``; a field without a row is an error.
_ROWS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "pause_scope": ("a pause reaches", _REACH.__getitem__),
    "pause_survives_worker_restart": ("a pause survives a worker's restart", _yes),
    "pause_survives_broker_restart": ("a pause is as durable as the tasks", _yes),
    "quiet_can_be_undone": ("a quieted worker can take tasks again without a restart", _yes),
    "uncountable_states": ("states that it can't count (null)", lambda states: ", ".join(states) or "none"),
    "counts_failures": ("failed tasks are counted", _yes),
    "kill_effect": ("a task whose worker is killed", _KILL.__getitem__),
    "stuck_seconds": ("what a killed worker had taken comes back", _seconds),
    "unknown_task": ("a task that the worker doesn't know becomes", _UNKNOWN.__getitem__),
    "put_back": ("a task that is replayed or recovered", _PUT_BACK.__getitem__),
    "reroutes": ("tasks can be moved to another queue", _yes),
}


def table() -> str:
    """The table, a column for each engine."""
    names = sorted(ENGINES)
    found = {name: vars(capabilities(name)) for name in names}
    assert _ROWS.keys() == Capabilities.__dataclass_fields__.keys()  # noqa: S101
    rows = [["", *(f"`{name}`" for name in names)], ["---"] * (len(names) + 1)]
    rows += [[title, *(tell(found[name][key]) for name in names)] for key, (title, tell) in _ROWS.items()]
    rows.append(["the default command", *(f"`{' '.join(worker_defaults(name).command)}`" for name in names)])
    rows.append(["the broker's URL is read from", *(f"`{worker_defaults(name).broker_variable}`" for name in names)])
    rows.append(["what Backstep's own user of the broker needs", *(f"`{_in_cell(rights(name))}`" for name in names)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def with_table(document: str) -> str:
    """The document with the table as it has to be."""
    before, rest = document.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


def work() -> None:
    """Write it."""
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    say(f"wrote {DOCUMENT.relative_to(CHECKOUT)}")


if __name__ == "__main__":
    main(work)
