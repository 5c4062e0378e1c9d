# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The option ``scheduler``, as people write it and as it is sealed."""

from __future__ import annotations

from typing import Any

from ._rollout.errors import BadInput

SCHEDULER_OPTIONS: dict[str, Any] = {"scheduler": {"type": "dict", "default": {}}}

_PERIOD_SECONDS = 60.0
_KEYS = ("command", "host", "period")
_EXAMPLE = "pool_scheduler: {command: [venv/bin/rq, cron, schedule.py], host: w1, period: 60}"


def scheduler_of(given: dict[str, Any]) -> dict[str, Any]:
    """The scheduler with ``command`` (words), ``host`` and ``period`` (seconds); empty when the release has none.

    :raises BadInput: no command that is a list of words, no host, a period that is no time.
    """
    if not given:
        return {}
    unknown = sorted(set(given) - set(_KEYS))
    if unknown:
        raise _bad(f"'{unknown[0]}' is not known; known are {', '.join(_KEYS)}")
    command = given.get("command")
    if not isinstance(command, list) or not command or any(isinstance(word, (list, dict)) for word in command):
        raise _bad(f"command is {command!r}; it has to be a list of words, and no shell sees it")
    if not isinstance(given.get("host"), str) or not given["host"]:
        raise _bad("host has to name the one host that runs it")
    try:
        period = float(given.get("period", _PERIOD_SECONDS))
    except (TypeError, ValueError):
        period = 0.0
    if not period > 0 or period == float("inf"):
        raise _bad(f"period is {given['period']!r}; it is a number of seconds, more than 0")
    return {"command": [str(word) for word in command], "host": given["host"], "period": period}


def _bad(why: str) -> BadInput:
    return BadInput(f"pool_scheduler: {why}.", left="Nothing was changed.", next_step=f"For example: {_EXAMPLE}")
