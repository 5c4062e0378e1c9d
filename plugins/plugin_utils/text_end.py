# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What people read of a rollout after each step, and at its end: who is where, why, and what to type next."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible_collections.backstep.workers.plugins.module_utils._rollout.record import failed_hooks
from ansible_collections.backstep.workers.plugins.module_utils._rollout.verdict import BAD, GOOD
from ansible_collections.backstep.workers.plugins.plugin_utils.text import (
    FEW,
    MANY,
    end_sentence,
    hosts_text,
    sharing,
    table,
)

_NARROWEST = 24
_INDENT = "  "
Command = Callable[..., str]
"""``command(playbook, **extra_vars)``: what to type, whole."""


def wrapped_table(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Rows as lines with aligned columns, the last of which goes on in the next line where it is too long.

    Where there is no room for it beside the others, it has lines of its own.

    :param rows: the first has the names of the columns.
    :param width: columns of the terminal.
    """
    lines = table([row[:-1] for row in rows], _INDENT)
    start = max(map(len, lines)) + 2
    below = 2 * len(_INDENT)
    longest = max((len(word) for row in rows for word in row[-1].split()), default=0)
    if width - start < max(_NARROWEST, min(longest, width - below)):
        found = [lines[0]]
        for line, row in zip(lines[1:], rows[1:]):
            found += [line, *(" " * below + part for part in _wrap(row[-1], width - below))]
        return found
    found = []
    for line, row in zip(lines, rows):
        first, *rest = _wrap(row[-1], width - start) or [""]
        found += [(line.ljust(start) + first).rstrip(), *(" " * start + part for part in rest)]
    return found


def end_lines(
    pool: str, plan: Mapping[str, Any], record: Mapping[str, Any], outcome: Mapping[str, Any], width: int = 79
) -> list[str]:
    """How the rollout ended, and a line for each host, or for all hosts of which the same is to be said."""
    back = [plan["back_to"][host] for host in [*plan["hosts"], *plan["unfinished"]]]
    lines = [end_sentence(pool, outcome["ended"], plan["release"], back)]
    rows = {host: _row(host, plan, record, outcome) for host in outcome["hosts"]}
    shown = _grouped(pool, rows) if len(rows) > MANY else [(host, *row) for host, row in rows.items()]
    lines += wrapped_table([("host", "before", "now", "verdict", "why"), *shown], width)
    return lines + [f"  ! {why}" for why in failed_hooks(record)]


def _row(
    host: str, plan: Mapping[str, Any], record: Mapping[str, Any], outcome: Mapping[str, Any]
) -> tuple[str, str, str, str]:
    entry = record["hosts"].get(host, {})
    touched = host in record["touched"]
    said = dict.fromkeys(filter(None, (entry.get("reason"), outcome["exceptions"].get(host))))
    why = "; ".join(said) or ("" if touched else "not touched")
    now = outcome["hosts"][host] or ("not known" if host in outcome["exceptions"] else "nothing")
    verdict = entry.get("verdict", "-") if touched else "-"
    return str(plan["before"].get(host) or "nothing"), now, verdict, why


def _grouped(pool: str, rows: Mapping[str, tuple[str, str, str, str]]) -> list[tuple[str, ...]]:
    """Hosts with the same row in one, and those of which something else is to be said first."""
    found: list[tuple[str, ...]] = []
    for row, hosts in sharing({host: (*row[:-1], _without_workers(pool, host, row[-1])) for host, row in rows.items()}):
        if len(hosts) > FEW:
            why = "; ".join(filter(None, [row[-1], hosts_text(hosts, FEW)]))
            found.append((f"{len(hosts)} hosts", *row[:-1], why))
        else:
            found += [(host, *rows[host]) for host in hosts]
    return found


def _without_workers(pool: str, host: str, why: str) -> str:
    """A reason that may be that of other hosts as well: worker names have the host's in them."""
    name = rf"{re.escape(pool)}/[^\s/]+/{re.escape(host)}/[\w/.-]*\w"
    return re.sub(rf"{name}(?:, {name})*", "workers", why)


def next_lines(
    plan: Mapping[str, Any], record: Mapping[str, Any], outcome: Mapping[str, Any], command: Command
) -> list[str]:
    """What to type next, each command on a line of its own that is never cut or wrapped."""
    if plan.get("drill"):
        # Said once it was judged.
        return []
    if record["held"]:
        return [f"next: {text}" for text in dict.fromkeys(error["next"] for error in record["held"].values())]
    version = str(plan["release"] or "").rpartition("-")[0]
    lost = [host for host, where in outcome["hosts"].items() if where is None and host in outcome["exceptions"]]
    steps: dict[str, list[tuple[str, str]]] = {
        "deployed": [("if it turns out to be bad", command("rollback"))],
        "rolled_back": [("to look at it", command("status"))],
        "stopped": [("mend what the table says, and do it again", command("deploy", pool_version=version))],
        "superseded": [("see who is at work", command("status"))],
        "mixed": [("look", command("status")), ("then take every host back", command("rollback"))],
    }
    if outcome["ended"] == "rolled_back" and plan["kind"] == "deploy":
        again = ("mend the release, and deploy it under a new version", command("deploy", pool_version="..."))
        steps["rolled_back"].insert(0, again)
    if lost:
        steps["mixed"].append(("or without what gives no answer", command("rollback", pool_skip=lost)))
    return typed_lines(steps[outcome["ended"]])


def typed_lines(steps: Sequence[tuple[str, str]]) -> list[str]:
    """What for, and what to type."""
    return [line for what, typed in steps for line in (f"next: {what}:", f"{_INDENT}{typed}")]


def wave_lines(
    number: int, waves: Sequence[Sequence[str]], hosts: Sequence[str], record: Mapping[str, Any]
) -> list[str]:
    """Where the rollout is, after a step on some hosts.

    :param number: the wave, from 1; 0 is what comes before the first.
    :param hosts: that have taken part in it; none when it was left out.
    """
    if not hosts or not waves:
        return []
    title = f"wave {number} of {len(waves)}" if number else "staging"
    after = "confirmation"
    if number < len(waves):
        after = f"wave {number + 1} of {len(waves)} ({hosts_text(waves[number])})"
    entries = {host: record["hosts"].get(host, {"verdict": GOOD, "reason": ""}) for host in hosts}
    wrong = [host for host, entry in entries.items() if entry["verdict"] != GOOD]
    if not wrong:
        return [f"--> {title}: good ({hosts_text(list(hosts))}); next: {after}"]
    worst = "BAD" if any(entries[host]["verdict"] == BAD for host in wrong) else "UNKNOWN"
    lines = [f"--> {title}: {worst} on {len(wrong)} of {len(hosts)} hosts"]
    lines += [f"    {host}: {entries[host]['reason']}" for host in wrong[:FEW]]
    rest = len(wrong) - FEW
    lines += [f"    and {rest} more; the table at the end has them all"] if rest > 0 else []
    touched = list(record["touched"])
    goes = f"every touched host goes back ({hosts_text(touched)})" if touched else "nothing is switched"
    return [*lines, f"    next: {goes}"]


def check_line(pool: str, plan: Mapping[str, Any]) -> str:
    """The end of a run in check mode."""
    return f"Check mode: nothing was changed. Pool {pool} would be on {plan['release']}."


def wrapped(lines: Sequence[str], width: int) -> list[str]:
    """Sentences that are too long for the terminal, as several lines."""
    found = []
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        long = len(line) > width
        found += _wrap(line, width, indent) if long else [line]
    return found


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    """No word is cut: it may be a path or a name to be copied."""
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
