# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The option ``hooks``, as people write it and as it is sealed."""

from __future__ import annotations

from typing import Any

from ._rollout.errors import BadInput
from ._rollout.hook_steps import STEPS
from ._rollout.hooks import EVERY_HOST, ONE_HOST

HOOK_OPTIONS: dict[str, Any] = {
    "hooks": {"type": "dict", "default": {}},
    "once": {"type": "bool", "default": False},
}

_SECONDS = 60.0
_KEYS = ("command", "timeout", "where", "chdir")
_EXAMPLE = "pool_hooks: {before_switch: [[venv/bin/python, check.py], {command: [./smoke], timeout: 10}]}"


def hooks_of(given: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The hooks by step, each with ``command`` (words), ``timeout``, ``where`` and ``chdir``; no step without any.

    :raises BadInput: an unknown step, a command that is no list of words, a time-out that is no time.
    """
    for step in given:
        if step not in STEPS:
            raise _bad(f"'{step}' is no step; choose from {', '.join(STEPS)}")
    found = {}
    for step in STEPS:
        commands = given.get(step) or []
        if not isinstance(commands, list):
            raise _bad(f"{step} has to be a list of commands")
        found[step] = [_hook(step, command) for command in commands]
    return {step: hooks for step, hooks in found.items() if hooks}


def _hook(step: str, given: Any) -> dict[str, Any]:
    options = given if isinstance(given, dict) else {"command": given}
    unknown = sorted(set(options) - set(_KEYS))
    if unknown:
        raise _bad(f"{step} has a command with '{unknown[0]}'; known are {', '.join(_KEYS)}")
    command = options.get("command")
    if not isinstance(command, list) or not command or any(isinstance(word, (list, dict)) for word in command):
        raise _bad(f"{step} has {command!r}, which is no command: each one is a list of words, and no shell sees it")
    where = options.get("where", EVERY_HOST)
    if where not in (EVERY_HOST, ONE_HOST):
        raise _bad(f"{step} has where: {where!r}; choose {EVERY_HOST} or {ONE_HOST}")
    return {
        "command": [str(word) for word in command],
        "timeout": _timeout(step, options.get("timeout", _SECONDS)),
        "where": where,
        "chdir": str(options.get("chdir") or ""),
    }


def _timeout(step: str, given: Any) -> float:
    try:
        seconds = float(given)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < 86400:
        raise _bad(f"{step} has timeout: {given!r}; it is a number of seconds, more than 0 and less than a day")
    return seconds


def _bad(why: str) -> BadInput:
    return BadInput(f"pool_hooks: {why}.", left="Nothing was changed.", next_step=f"For example: {_EXAMPLE}")
