# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of tasks that died in a rollout that went back."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.backstep.workers.plugins.module_utils._rollout.answers import failure_of
from ansible_collections.backstep.workers.plugins.module_utils._rollout.names import utc

_NAMED_AT_MOST = 10
_SOON_SECONDS = 30 * 24 * 3600


def chosen_lines(dead: Mapping[str, Any]) -> list[str]:
    """Which dead tasks are about to be put back.

    :param dead: the answer of the module ``task_move``.
    """
    if not dead["dead"]:
        return ["No dead task is meant, or this run has put all of them back."]
    total = sum(group["count"] for group in dead["dead"])
    return [
        f"{total} dead task(s): {_shown(dead['dead'])}",
        *_dropped(dead["dead"]),
        f"  this run is called {dead['run']}; if it is cut short, the same with run: {dead['run']} goes on with it",
    ]


def dead_lines(dead: Mapping[str, Any]) -> list[str]:
    """What died, and what was done about it.

    :param dead: ``died``, ``held`` and ``rescheduled``: the answers of the module ``task_move``; ``since``, the time
        after which they died.
    """
    died = dead.get("died")
    if not died or died.get("skipped"):
        return []
    why = failure_of(died, "dead")
    if why:
        return [f"  ! nobody has looked for tasks that died in this rollout: {why}"]
    if not died["dead"]:
        return []
    total = sum(group["count"] for group in died["dead"])
    lines = [f"  {total} task(s) died in this rollout: {_shown(died['dead'])}"]
    lines += [*_done(dead.get("held"), "parked", "hold"), *_done(dead.get("rescheduled"), "put back", "reschedule")]
    lines += _dropped(died["dead"])
    lines.append(
        "  next: ansible-playbook backstep.workers.replay -e "
        f"'{{pool_replay: {{states: [dead], died_after: \"{dead['since']}\"}}}}' puts back those that are dead still"
    )
    return lines


def _dropped(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    soon = time.time() + _SOON_SECONDS
    times = [group["expires"] for group in groups if group["expires"] is not None and group["expires"] < soon]
    return [f"  their engine drops dead tasks: the first of these on {utc(min(times))}"] if times else []


def _shown(groups: Sequence[Mapping[str, Any]]) -> str:
    shown = [
        f"{group['task'] or 'without a name'} ({group['count']} in {group['queue']}"
        f"{', ' + group['error'] if group['error'] else ''}{', in ' + group['release'] if group['release'] else ''})"
        for group in groups[:_NAMED_AT_MOST]
    ]
    more = len(groups) - len(shown)
    return "; ".join(shown) + (f"; and {more} more kinds" if more else "")


def _done(answer: Any, what: str, rule: str) -> list[str]:
    if not answer or answer.get("skipped"):
        return []
    why = failure_of(answer, "moved")
    if why:
        return [f"  ! what the rule '{rule}' is for could not be {what}, or not all: {why}"]
    return [f"  {answer['moved']['count']} of them were {what} (rule '{rule}')"]
