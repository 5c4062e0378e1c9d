# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""RabbitMQ's management API, as far as AMQP doesn't tell the same: names of queues, and what server this is."""

from __future__ import annotations

import base64
import json
import time
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import ProxyHandler, Request, build_opener

from ..._rollout.errors import BackstepError, BrokerRefused
from ._amqp_url import Place

if TYPE_CHECKING:
    from ._amqp import AmqpLink


class Management:
    """The API of one broker, about one virtual host."""

    def __init__(self, place: Place, timeout: float, link: AmqpLink) -> None:
        self._place = place
        self._timeout = timeout
        self._link = link
        secret = f"{place.user}:{place.password}".encode()
        self._headers = {"Authorization": f"Basic {base64.b64encode(secret).decode()}"}
        # A proxy for the web has no business between here and a broker.
        self._opener = build_opener(ProxyHandler({}))

    def queues(self) -> dict[str, bool]:
        """Every queue by its name, and whether it is one connection's own, and so goes with it."""
        found = self._get(f"queues/{quote(self._place.vhost, safe='')}?columns=name,exclusive")
        return {str(queue["name"]): bool(queue.get("exclusive")) for queue in found}

    def quorum_queues(self) -> set[str]:
        """Those that count each look at a task as a delivery of it, and from RabbitMQ 4.0 on drop it at the 20th."""
        found = self._get(f"queues/{quote(self._place.vhost, safe='')}?columns=name,type")
        return {str(queue["name"]) for queue in found if queue.get("type") == "quorum"}

    def facts(self) -> dict[str, Any]:
        """As ``Engine.check`` gives them. The role is always the same, as any node answers for all of them; the uptime
        is told to users with the tag ``monitoring`` only."""
        overview = self._get("overview")
        node = overview.get("node")
        mine = self._get(f"nodes/{quote(node, safe='')}?columns=uptime") if node else {}
        return {
            "version": str(overview["rabbitmq_version"]),
            "role": "node",
            "address": f"{self._place.host}:{self._place.port}",
            "uptime": int(mine["uptime"] // 1000) if "uptime" in mine else None,
            "time": time.time(),
        }

    def _get(self, path: str) -> Any:
        request = Request(f"{self._place.management}/api/{path}", headers=self._headers)  # noqa: S310  # checked: http(s)
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                return json.load(answer)
        except HTTPError as error:
            raise self._refused(error) from None
        except (OSError, HTTPException, ValueError) as error:
            raise self._link.unreachable(f"its management API at {self._place.management}: {error}") from None

    def _refused(self, error: HTTPError) -> BackstepError:
        where = f"its management API at {self._place.management}"
        said = f"{where} says {error.code} {error.reason}"
        if error.code == 401:
            return self._link.no_right("the tag management, or the right password", said)
        if error.code == 403:
            return self._link.no_right("permissions on the virtual host", said)
        if error.code == 404:
            return BrokerRefused(
                f"The broker {self._link.shown} doesn't know what was asked for: {said}.",
                left="Nothing was changed.",
                next_step="Check the virtual host in the broker URL, and its option management.",
            )
        return self._link.unreachable(said)
