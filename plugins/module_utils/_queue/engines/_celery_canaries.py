# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Canary tasks of Celery: sent, found again, and taken back with their traces.

Celery notes nowhere that a task has ended, unless its app keeps results. So a canary publishes its own end, through an
exchange and to a list of its own, which both run out by themselves.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Optional

from ..engine import CANARY_PREFIX, CanaryOutcome
from . import _celery_scripts as scripts
from ._celery_control import Replies, ask
from ._celery_messages import CANARY_EXCHANGE, CanaryReply, binding, canary, queue_of, read_canary_reply, worker_of
from ._redis import RedisLink

_BINDINGS = f"_kombu.binding.{CANARY_EXCHANGE}"
# How many of the tasks that are next a canary is looked for among: it was put in front of them.
_NEAR = 1000


def _end_of(known_as: str) -> str:
    """The list of a canary: its message from the beginning, in front of that how it has ended."""
    return f"{scripts.OURS}canary:{known_as}"


def canaries_of(worker: str) -> str:
    """The key that says how many canaries of a worker its own counts contain, by ``finished`` and ``failed``."""
    return f"{scripts.OURS}canaries:{worker}"


def send(link: RedisLink, queue: str, task: str, count: int, seconds: int) -> list[str]:
    """As ``Engine.send_canary``."""
    ids = [f"{CANARY_PREFIX}{uuid.uuid4().hex}" for _number in range(count)]
    now = float(link.ask("TIME")[0])
    commands: list[tuple[Any, ...]] = []
    for known_as in ids:
        end = _end_of(known_as)
        message = canary(known_as, task, queue, end, now, seconds)
        commands += [("RPUSH", end, message), ("EXPIRE", end, seconds), ("SADD", _BINDINGS, binding(end))]
        commands.append(("RPUSH", queue, message))
    link.ask_all([*commands, ("EXPIRE", _BINDINGS, seconds)])
    return ids


def outcomes(link: RedisLink, ids: Sequence[str]) -> list[CanaryOutcome]:
    """As ``Engine.canaries``. Looks in the order in which a task moves on, so that none is seen nowhere."""
    if not ids:
        return []
    waiting = _waiting(link, ids)
    replies = ask(link, "stats", "active", "reserved")
    active, reserved = _ids(replies, "active"), _ids(replies, "reserved")
    ends = link.ask_all([("LRANGE", _end_of(known_as), 0, -2) for known_as in ids])
    found = []
    for known_as, end in zip(ids, ends):
        if end:
            reply = read_canary_reply(end[0])
            outcome = CanaryOutcome(known_as, "failed" if reply.failed else "finished", _executor(replies, reply))
        elif known_as in active:
            outcome = CanaryOutcome(known_as, "executing", None)
        else:
            here = known_as in waiting or known_as in reserved
            outcome = CanaryOutcome(known_as, "waiting" if here else "gone", None)
        found.append(outcome)
    return found


def _waiting(link: RedisLink, ids: Sequence[str]) -> set[str]:
    messages = link.ask_all([("LINDEX", _end_of(known_as), -1) for known_as in ids])
    sent = [(known_as, message) for known_as, message in zip(ids, messages) if message]
    places = link.ask_all(
        [("LPOS", queue_of(message), message, "RANK", -1, "MAXLEN", _NEAR) for _known_as, message in sent]
    )
    return {known_as for (known_as, _message), place in zip(sent, places) if place is not None}


def _ids(replies: Replies, question: str) -> set[str]:
    return {str(request["id"]) for some in replies.requests(question).values() for request in some}


def _executor(replies: Replies, reply: CanaryReply) -> Optional[str]:
    """The worker whose process has executed a canary; None when that process could be several workers'."""
    found = []
    for node, stats in replies.of("stats").items():
        processes = (stats.get("pool") or {}).get("processes") or ()
        if reply.pid == stats.get("pid") or reply.pid in processes:
            found.append(worker_of(node))
    there = [name for name, _parsed, host in found if host == reply.hostname]
    names = there or [name for name, _parsed, _host in found]
    return names[0] if len(names) == 1 else None


def withdraw(link: RedisLink, queue: str, ids: Sequence[str]) -> None:
    """As ``Engine.withdraw``."""
    for outcome in outcomes(link, ids):
        end = _end_of(outcome.id)
        ended = outcome.worker and outcome.state in ("finished", "failed")
        counts = canaries_of(outcome.worker) if outcome.worker and ended else ""
        link.run(scripts.WITHDRAW, queue, end, _BINDINGS, binding(end), counts, outcome.state)
