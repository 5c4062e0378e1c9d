# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which Redis is the master now, asked of the sentinels that watch over it."""

from __future__ import annotations

from typing import Any, Optional

try:
    import redis
    from redis.connection import parse_url
except ImportError:  # ``open_engine`` refuses to go on without it, and says what to install
    redis = None  # type: ignore[assignment]  # so that this file can be read without it, as sanity does

from ..._rollout.errors import BrokerUnreachable
from ..url import Watched
from ._witnesses import Place, Witnesses, shown


class Sentinels:
    """The sentinels of one Redis. Each is asked each time, as one that is cut off from the others still names the old
    master: of their answers the one that is based on the latest fail-over counts."""

    def __init__(self, found: Watched, url: str, timeout: float, options: dict[str, Any]) -> None:
        """:param timeout: seconds that finding the master may take, all sentinels together.
        :param options: for each connection.
        """
        self._name = found.name
        share = timeout / (len(found.sentinels) + 1)
        # Whose certificates are good is the same for both, and TLS is for all or none.
        given = {name: value for name, value in parse_url(found.server).items() if name.startswith("ssl")}
        own = {"username": found.username, "password": found.password, "ssl": found.server.startswith("rediss:")}
        limits = {"socket_timeout": share, "socket_connect_timeout": share}
        clients = {
            place: redis.Redis(host=place[0], port=place[1], **{**given, **own, **options, **limits})
            for place in found.sentinels
        }
        self._witnesses: Witnesses[dict[str, Any]] = Witnesses(clients, url)
        self.reigns: Optional[float] = None
        """For how many seconds the master has been that, by the last answers; None when no other has been before."""

    def close(self) -> None:
        """Give all connections back."""
        self._witnesses.close()

    def master(self) -> Place:
        """Where the master is.

        :raises BrokerUnreachable: no sentinel answers, or those that do know of no master that works.
        """
        states, said = self._witnesses.ask(lambda _place, client: dict(client.sentinel_master(self._name)))
        if not states:
            raise self._unknown(said)
        latest = max(int(state["config-epoch"]) for state in states)
        states = [state for state in states if int(state["config-epoch"]) == latest]
        # A sentinel that was started anew counts from then on.
        self.reigns = max(int(state["role-reported-time"]) for state in states) / 1000 if latest else None
        for state in states:
            if _works(state):
                return str(state["ip"]), int(state["port"])
        places = ", ".join(sorted({shown((state["ip"], state["port"])) for state in states}))
        raise self._unknown(f"the last one was {places}, which is down, and no other has taken its place yet")

    def _unknown(self, why: str) -> BrokerUnreachable:
        return BrokerUnreachable(
            f"The sentinels name no master of '{self._name}': {why}.",
            left="What the broker holds is unknown, and nothing is concluded from that.",
            next_step="Check with `redis-cli -p 26379 SENTINEL MASTERS` on a sentinel's host, then run again.",
        )


def _works(state: dict[str, Any]) -> bool:
    down = state["is_sdown"] or state["is_odown"]
    return bool(state["is_master"] and not down and state["role-reported"] == "master")
