# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What people read at the end of a drill: how it went, how long it took, and what became of the tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from ansible_collections.backstep.workers.plugins.module_utils._rollout.drill_plans import LISTED

from .text import table
from .text_end import Command, typed_lines, wrapped, wrapped_table

_WHAT = {
    "detect": "from the first switch until a verdict that isn't good",
    "decide": "from then until the first host began to go back",
    "restore": "from then until the good release ran again on the last host",
}
_GAP = "at most: no host had workers of a good release that took tasks"


def drill_lines(pool: str, found: Mapping[str, Any], check_mode: bool, width: int = 79) -> list[str]:
    """How a drill ended.

    :param found: as ``drill_plans.judge`` gives it.
    :param width: columns of the terminal.
    """
    if check_mode:
        return [f"Check mode: nothing was changed. Pool {pool} would be back on {found['of']}."]
    passed = found["passed"]
    head = f"The drill ({found['kind']}) of pool {pool} {'passed' if passed else 'DID NOT PASS'}"
    lines = [f"{head}: every host is back on {found['of']}." if passed else f"{head}."]
    lines += [f"  ! {problem}" for problem in found["problems"]]
    rows = [(f"to {name}", _seconds(found["times"][name]), what) for name, what in _WHAT.items()]
    rows.append(("gap", _seconds(found["gaps"]["pool"]), _GAP))
    lines += wrapped_table([("time", "took", "by the hosts' journals"), *rows], width)
    lines += _gap_lines(found["gaps"]["hosts"])
    if found["skew"]:
        clocks = ", ".join(f"{host} by {off:+.0f} s" for host, off in found["skew"].items())
        lines.append(f"  ! the hosts' clocks differ, so these times are not exact: {clocks}")
    return wrapped([*lines, *_ledger_lines(found["ledger"], found["proven"])], width)


def drill_next_lines(found: Mapping[str, Any], command: Command) -> list[str]:
    """What to type next."""
    steps = [("to look at it", command("status"))]
    steps += [] if found["passed"] else [("if a host needs it, take every host back", command("rollback"))]
    return typed_lines(steps)


def _gap_lines(hosts: Mapping[str, Optional[float]]) -> list[str]:
    spans = [f"{host} {_seconds(seconds)}" for host, seconds in hosts.items() if seconds != 0.0]
    shown = ", ".join(spans[:8]) + (f" and {len(spans) - 8} more" if len(spans) > 8 else "")
    untouched = sum(seconds == 0.0 for seconds in hosts.values())
    return [
        f"    by host: {shown or 'none'}" + (f"; {untouched} host(s) were never switched" if untouched else ""),
        "    from the begin of the switch until the good release ran again; its workers",
        "    finished the tasks that they had then, and took no more",
    ]


def _ledger_lines(ledger: Mapping[str, Any], proven: bool) -> list[str]:
    """Counts before and after, and what they can't tell."""
    rows = [("queue", *LISTED)]
    for name, states in ledger["queues"].items():
        cells = ("?" if state not in states else "{} -> {}".format(*states[state]) for state in LISTED)
        rows.append((name, *cells))
    lines = ["  ledger, tasks before -> after:", *table(rows, "    ")] if ledger["queues"] else []
    for state in ("dead", "parked"):
        told = [states[state] for states in ledger["queues"].values() if state in states]
        more = sum(max(0, after - before) for before, after in told)
        lines += [f"  ! {more} more task(s) are {state} than before: listed, not lost; see status"] if more else []
    if proven:
        lines.append("    every worker has finished a task before the drill and after it")
    lines.append("    what was enqueued meanwhile no broker tells: whether all of it was finished the app has to say")
    if ledger["untold"]:
        lines.append(f"    this engine can't tell how many are {', '.join(ledger['untold'])}")
    return lines


def _seconds(value: Optional[float]) -> str:
    return "not known" if value is None else f"{value:.1f} s"
