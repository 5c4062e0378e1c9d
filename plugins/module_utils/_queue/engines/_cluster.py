# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which node of a Redis Cluster has a pool's keys now, asked of those nodes that its URL names."""

from __future__ import annotations

import time
from typing import Any, NamedTuple, Optional

try:
    import redis
    from redis.crc import key_slot
except ImportError:  # ``open_engine`` refuses to go on without it, and says what to install
    redis = None  # type: ignore[assignment]  # so that this file can be read without it, as sanity does

from ..._rollout.errors import BrokerUnreachable
from ..url import Clustered
from ._witnesses import Place, Witnesses


class _View(NamedTuple):
    """The cluster as one node knows it."""

    epoch: int
    """Of the latest change that it has heard of."""
    works: bool
    masters: tuple[Place, ...]
    owner: Optional[Place]
    """Who has the slot."""
    since_failure: Optional[float]
    """Seconds since the last word of a node that has failed and is still missed; ``None`` when none is."""


class Cluster:
    """The nodes of one cluster. Each is asked each time, as one that is cut off from the others still knows the old
    master: of their views the one that is based on the latest change counts."""

    def __init__(self, found: Clustered, url: str, timeout: float, options: dict[str, Any], key: str) -> None:
        """:param timeout: seconds that finding the node may take, all of them together.
        :param options: for each connection.
        :param key: any of the pool's; all of them have to be in its slot.
        """
        self._slot = key_slot(key.encode())
        share = timeout / (len(found.nodes) + 1)
        limits = {**options, "socket_timeout": share, "socket_connect_timeout": share}
        clients = {place: client_of(found.server, place, limits) for place in found.nodes}
        self._witnesses: Witnesses[_View] = Witnesses(clients, url)
        self._owner: Optional[Place] = None
        self._changed_at: Optional[float] = None
        self.reigns: Optional[float] = None
        """For how many seconds the node has had the slot, as far as can be told; None when no other is known of."""
        self.masters: tuple[Place, ...] = ()
        """All nodes that have slots, by the last answer."""

    def close(self) -> None:
        """Give all connections back."""
        self._witnesses.close()

    def master(self) -> Place:
        """Where the slot is.

        :raises BrokerUnreachable: no node answers, or those that do know of none that has the slot and works.
        """
        views, said = self._witnesses.ask(self._view)
        if not views:
            raise self._unknown(said)
        latest = max(views, key=lambda view: (view.epoch, view.works))
        if not latest.works or latest.owner is None:
            raise self._unknown("the cluster is down, or nobody has the slot of the pool's keys")
        now = time.monotonic()
        if self._owner is not None and latest.owner != self._owner:
            self._changed_at = now
        self._owner, self.masters = latest.owner, latest.masters
        known = [now - self._changed_at if self._changed_at is not None else None, latest.since_failure]
        self.reigns = min((seconds for seconds in known if seconds is not None), default=None)
        return latest.owner

    def _view(self, place: Place, client: redis.Redis) -> _View:
        pipeline = client.pipeline(transaction=False)
        for command in ("CLUSTER INFO", "CLUSTER NODES", "TIME"):
            pipeline.execute_command(command)
        info, nodes, clock = pipeline.execute()
        return _view(place, info, nodes, clock[0], self._slot)

    def _unknown(self, why: str) -> BrokerUnreachable:
        return BrokerUnreachable(
            f"The nodes of the cluster name none that has the pool's keys: {why}.",
            left="What the broker holds is unknown, and nothing is concluded from that.",
            next_step="Check with `redis-cli --cluster check` on a node's host, then run again.",
        )


def client_of(server: str, place: Place, options: dict[str, Any]) -> redis.Redis:
    """A client of one server, with all else that a URL says."""
    client = redis.Redis.from_url(server, **options)
    client.connection_pool.connection_kwargs.update(host=place[0], port=place[1])
    return client


def _view(asked: Place, info: dict[str, Any], nodes: dict[str, Any], clock: float, slot: int) -> _View:
    masters, owner, failed = [], None, []
    for address, node in nodes.items():
        flags = node["flags"].split(",")
        host, _colon, port = address.rpartition(":")
        # One that hasn't been told its own address is the one that was asked.
        place = (host or asked[0], int(port))
        if "fail" in flags:
            failed.append(clock - int(node["last_pong_rcvd"]) / 1000)
        elif "master" in flags and node["slots"]:
            masters.append(place)
            if any(int(span[0]) <= slot <= int(span[-1]) for span in node["slots"]):
                owner = place
    return _View(
        epoch=int(info["cluster_current_epoch"]),
        works=info["cluster_state"] == "ok",
        masters=tuple(masters),
        owner=owner,
        since_failure=max(0.0, min(failed)) if failed else None,
    )
