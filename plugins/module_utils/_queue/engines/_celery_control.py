# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask Celery's workers themselves, by the broadcasts of Celery's own ``inspect``.

What workers hold is nowhere else: a task that is acknowledged early is not in Redis while it executes. Redis tells how
many workers a question reaches, so that silence is noticed and no answer is waited for in vain. A worker that has been
told to stop listens no more, though it may still have a task.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..._rollout.errors import BrokerUnreachable
from ._celery_messages import SEPARATOR, encode
from ._redis import RedisLink, text

_REPLIES = "_kombu.binding.reply.celery.pidbox"
_LONGEST_BLOCK = 1.0
# The share of the time that the first of two tries has: a worker that stops just then never answers, and the second
# try doesn't reach it any more.
_FIRST_TRY = 1 / 3


@dataclass
class Replies:
    """What workers have answered."""

    by_question: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By question and node."""
    silent: int = 0
    """How many workers were reached and gave no answer."""

    def of(self, question: str) -> dict[str, Any]:
        """The answers to a question, by node."""
        return self.by_question.get(question, {})

    def requests(self, question: str) -> dict[str, list[dict[str, Any]]]:
        """The requests in the answers to ``active``, ``reserved`` or ``scheduled``, by node."""
        return {
            node: [entry.get("request", entry) for entry in answer]
            for node, answer in self.of(question).items()
            if isinstance(answer, list)
        }

    def held(self) -> set[str]:
        """The ids of all tasks that those who answered have taken."""
        kinds = ("active", "reserved", "scheduled")
        requests = (some for kind in kinds for some in self.requests(kind).values())
        return {str(request["id"]) for some in requests for request in some}

    def require_all(self, link: RedisLink) -> Replies:
        """Themselves, when everybody has answered.

        :raises BrokerUnreachable: a worker is silent.
        """
        if self.silent:
            raise BrokerUnreachable(
                f"{self.silent} Celery worker(s) on {link.shown} listen and gave no answer in {link.timeout:.0f} s.",
                left="What they do and hold is unknown, and nothing is concluded from that.",
                next_step="See whether they hang, or run with the solo pool, which answers only between tasks.",
            )
        return self


def ask(link: RedisLink, *questions: str, **arguments: Any) -> Replies:
    """Put questions to all workers; waits for all whom they reach, at most as long as the link waits for an answer.

    :param arguments: by question, those that it takes.
    :raises BrokerUnreachable: after a fail-over, while some may not listen yet.
    """
    link.require_clients()
    # Every worker listens by a pattern. Where nobody does, nothing is written: not on a replica, for example.
    if not link.ask("PUBSUB", "NUMPAT"):
        return Replies()
    found = _try(link, questions, arguments, link.timeout * _FIRST_TRY)
    return _try(link, questions, arguments, link.timeout) if found.silent else found


def _try(link: RedisLink, questions: Iterable[str], arguments: dict[str, Any], seconds: float) -> Replies:
    address = str(uuid.uuid4())
    queue = f"{address}.reply.celery.pidbox"
    entry = SEPARATOR.join((address, "", queue))
    found = Replies()
    try:
        publish = [_question(link.database, address, name, arguments.get(name, {}), seconds) for name in questions]
        reached = link.ask_all([("SADD", _REPLIES, entry), *publish])[1:]
        found.silent = max(reached)
        expected, deadline = sum(reached), time.monotonic() + seconds
        while expected > 0 and time.monotonic() < deadline:
            left = max(0.01, min(deadline - time.monotonic(), _LONGEST_BLOCK, link.timeout / 2))
            answer = link.ask("BRPOP", queue, left)
            if answer:
                expected -= 1
                _note(found, json.loads(answer[1]))
        found.silent = max(count - len(found.of(name)) for name, count in zip(questions, reached))
    finally:
        link.ask_all([("SREM", _REPLIES, entry), ("DEL", queue)])
    return found


def _question(database: int, address: str, name: str, arguments: Any, seconds: float) -> tuple[Any, ...]:
    body = {
        "method": name, "arguments": arguments, "destination": None, "pattern": None, "matcher": None, "ticket": name,
        "reply_to": {"exchange": "reply.celery.pidbox", "routing_key": address},
    }  # fmt: skip
    headers = {"clock": 0, "expires": time.time() + seconds}
    return "PUBLISH", f"/{database}.celery.pidbox", encode(body, headers, "celery.pidbox", "", str(uuid.uuid4()))


def _note(found: Replies, message: dict[str, Any]) -> None:
    body = json.loads(base64.b64decode(message["body"]))
    found.by_question.setdefault(text(message["headers"].get("ticket")), {}).update(body)
