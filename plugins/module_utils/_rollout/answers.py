# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a step has answered on each host, and whether that is an answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from .errors import HostUnfit

Answer = Mapping[str, Any]


def failure_of(answer: Optional[Answer], key: str) -> str:
    """Why a step did not give its answer, or "" when it did (``key`` is what a good answer has)."""
    if answer is None:
        return "gave no answer"
    if answer.get("unreachable"):
        return f"unreachable: {answer.get('msg', 'no answer')}"
    if key in answer and not answer.get("error"):
        return ""
    return str(answer.get("msg") or answer.get("module_stderr") or "failed without a message")


def require_answers(answers: Mapping[str, Optional[Answer]], key: str) -> None:
    """Refuse to begin unless every host has answered well.

    :raises HostUnfit: lists the hosts by what is wrong with them.
    """
    failures: dict[str, list[str]] = {}
    for host, answer in answers.items():
        why = failure_of(answer, key)
        if why:
            failures.setdefault(why, []).append(host)
    require_none(failures, len(answers))


def require_none(failures: Mapping[str, list[str]], total: int) -> None:
    if failures:
        lines = [f"{name_hosts(hosts, total)}: {why}" for why, hosts in failures.items()]
        names = sorted(host for hosts in failures.values() for host in hosts)
        raise HostUnfit("The rollout was not begun. " + " | ".join(lines), hosts=names)


def name_hosts(hosts: Sequence[str], total: int) -> str:
    if len(hosts) == total and total > 1:
        return f"all {total} hosts"
    return ", ".join(hosts[:8]) + (f" and {len(hosts) - 8} more" if len(hosts) > 8 else "")
