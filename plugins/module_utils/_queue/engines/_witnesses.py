# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers that can tell which Redis to ask: all of them are asked each time, as one alone may be behind the times."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Callable, Generic, TypeVar

try:
    import redis
except ImportError:  # ``open_engine`` refuses to go on without it, and says what to install
    redis = None  # type: ignore[assignment]  # so that this file can be read without it, as sanity does

from ..._rollout.masking import scrub

# So long a witness that gave no answer isn't asked again while another one does: it is often the master's neighbour,
# and dead with it.
_REST_SECONDS = 10.0

Place = tuple[str, int]
Answer = TypeVar("Answer")


class Witnesses(Generic[Answer]):
    """Some servers, each with a client of its own."""

    def __init__(self, clients: Mapping[Place, redis.Redis], url: str) -> None:
        """:param url: whose passwords are shown in no message."""
        self._clients = clients
        self._url = url
        self._rests_until: dict[Place, float] = {}

    def close(self) -> None:
        """Give all connections back."""
        for client in self._clients.values():
            client.connection_pool.disconnect()

    def ask(self, question: Callable[[Place, Any], Answer]) -> tuple[list[Answer], str]:
        """The answers of those that give one, and what the others said instead."""
        now = time.monotonic()
        awake = [place for place in self._clients if self._rests_until.get(place, now) <= now]
        said: dict[Place, str] = {}
        answers = self._ask(awake, question, said)
        if not answers:
            answers = self._ask([place for place in self._clients if place not in awake], question, said)
        return answers, "; ".join(f"{shown(place)} said: {words}" for place, words in said.items())

    def _ask(
        self, places: list[Place], question: Callable[[Place, Any], Answer], said: dict[Place, str]
    ) -> list[Answer]:
        answers = []
        for place in places:
            try:
                answers.append(question(place, self._clients[place]))
            except (redis.RedisError, OSError, ValueError, KeyError) as error:
                said[place] = scrub(str(error), self._url) or type(error).__name__
                self._rests_until[place] = time.monotonic() + _REST_SECONDS
        return answers


def shown(place: Place) -> str:
    """A server as messages name it."""
    return f"{place[0]}:{place[1]}"
