# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of tasks that have died in a rollout that went back: by rules for their names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Optional

from .errors import BadInput

RESCHEDULE, HOLD, FAIL = "reschedule", "hold", "fail"


def by_rule(
    names: Iterable[Optional[str]], rules: Sequence[Mapping[str, Any]], unknown: Collection[str]
) -> dict[str, list[str]]:
    """Task names by what the first rule that fits them says.

    :param rules: with ``tasks`` (patterns of names; none for all) and ``then``.
    :param unknown: the names that the release doesn't know to which the pool went back. To put such tasks back would
        have them die once more, so they are held.
    :returns: ``reschedule``, ``hold`` and ``fail``: sorted names. What no rule is for, and what tells no name, fails,
        which means that it stays where it is.
    """
    sorted_out: dict[str, list[str]] = {RESCHEDULE: [], HOLD: [], FAIL: []}
    for name in sorted({name for name in names if name is not None}):
        then = next((rule["then"] for rule in rules if _fits(name, rule.get("tasks") or ["*"])), FAIL)
        sorted_out[HOLD if then == RESCHEDULE and name in unknown else then].append(name)
    return sorted_out


def require_dead(rules: Sequence[Mapping[str, Any]], queues: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse rules for an engine that has no place for dead tasks.

    :param queues: what each queue holds, by state; None for what can't be told.
    :raises BadInput: no queue can tell its dead tasks.
    """
    if rules and queues and all(counts.get("dead") is None for counts in queues.values()):
        raise BadInput(
            "pool_dead_rules has rules, but this engine keeps no dead tasks that could be put back.",
            left="Nothing was changed.",
            next_step="Leave pool_dead_rules empty.",
        )


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
