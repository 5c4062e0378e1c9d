# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kinds of broker that engines run on, as tests that are the same for all of them need them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote
from urllib.request import Request, build_opener

import pika
import redis

from tests.support.servers import (
    RabbitPorts,
    free_port,
    rabbit_ports,
    rabbitmq_server,
    redis_server,
    wait_for,
)

USER = "backstep"


class Broker(ABC):
    """One server, of one kind."""

    scheme: ClassVar[str]

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    def empty(self) -> None:
        """Have it hold nothing, as if it were new."""

    @abstractmethod
    def contents(self) -> dict[bytes, Any]:
        """All that it holds, as it can be compared."""

    @abstractmethod
    def as_user(self, rights: str) -> AbstractContextManager[str]:
        """Its URL for another user, who has what the documentation of an engine says."""

    @classmethod
    @abstractmethod
    def nowhere(cls, password: str) -> str:
        """A URL at which nobody listens."""


class RedisBroker(Broker):
    """Database 0 of a Redis server. Another one may hold the ledger."""

    scheme = "redis"

    def empty(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.flushdb()

    def contents(self) -> dict[bytes, Any]:
        """As bytes; lists and hashes by their entries, as a server arranges them as it likes.

        Left out is what numbers the moves, and the ids in streams, which only grow.
        """
        with redis.Redis.from_url(self.url) as client:
            told: dict[bytes, Callable[[bytes], Any]] = {
                b"list": lambda key: client.lrange(key, 0, -1),
                b"hash": client.hgetall,
                b"stream": lambda key: [list(fields.items()) for _id, fields in client.xrange(key)],
            }
            keys = [key for key in client.keys("*") if not key.endswith(b":order")]
            return {key: told.get(client.type(key), client.dump)(key) for key in keys}

    @contextmanager
    def as_user(self, rights: str) -> Iterator[str]:
        with redis.Redis.from_url(self.url) as client:
            client.execute_command("ACL", "SETUSER", USER, "reset", "on", ">pw", *rights.split())
            yield self.url.replace("redis://", f"redis://{USER}:pw@")
            client.execute_command("ACL", "DELUSER", USER)

    @classmethod
    def nowhere(cls, password: str) -> str:
        return f"redis://:{password}@127.0.0.1:{free_port()}/0"


class RabbitBroker(Broker):
    """A RabbitMQ node; its engines use the virtual host ``/``."""

    scheme = "amqp"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.amqp_url, _option, self._management = url.partition("?management=")

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the management API as the administrator."""
        request = Request(  # noqa: S310  # our own server's
            f"{self._management}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": "Basic Z3Vlc3Q6Z3Vlc3Q=", "Content-Type": "application/json"},
        )
        with build_opener().open(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def queues(self) -> list[str]:
        """The names of those that last."""
        found = self.api("GET", "queues/%2F?columns=name,exclusive")
        return [queue["name"] for queue in found if not queue["exclusive"]]

    def empty(self) -> None:
        with pika.BlockingConnection(pika.URLParameters(self.amqp_url)) as connection:
            channel = connection.channel()
            for queue in self.queues():
                channel.queue_delete(queue)
        # Of the last test's engines and workers, the broker may still be about to see the end.
        wait_for("only what is new is there", lambda: not self.queues(), 30)

    def contents(self) -> dict[bytes, Any]:
        """Each queue's messages with their properties. A queue without any is as good as none."""
        found = {}
        with pika.BlockingConnection(pika.URLParameters(self.amqp_url)) as connection:
            for queue in sorted(self.queues()):
                channel, messages = connection.channel(), []
                for _method, properties, body in iter(partial(channel.basic_get, queue), (None, None, None)):
                    messages.append((vars(properties), body))
                channel.close()
                # What it says when no move is under way changes nothing.
                if messages and not queue.startswith("backstep.moving."):
                    found[queue.encode()] = messages
        return found

    @contextmanager
    def as_user(self, rights: str) -> Iterator[str]:
        words = rights.replace("&&", " ").replace("'", "").split()
        configure, write, read = words[5:8]
        self.api("PUT", f"users/{USER}", {"password": "pw", "tags": words[-1]})
        self.api("PUT", f"permissions/%2F/{USER}", {"configure": configure, "write": write, "read": read})
        yield self.url.replace("guest:guest@", f"{USER}:pw@", 1)
        self.api("DELETE", f"users/{USER}")

    @classmethod
    def nowhere(cls, password: str) -> str:
        return f"amqp://guest:{quote(password)}@127.0.0.1:{free_port()}/%2F?management=http://127.0.0.1:{free_port()}"


KINDS: dict[str, type[Broker]] = {"redis": RedisBroker, "rabbitmq": RabbitBroker}


def server(kind: str, folder: Path, ports: Ports | None = None) -> AbstractContextManager[str]:
    """A server of this kind that keeps what it has acknowledged, at the same place when it starts again."""
    ports = ports or Ports(kind)
    if kind == "redis":
        return redis_server(folder, "--appendonly", "yes", "--appendfsync", "always", port=ports.redis)
    return rabbitmq_server(folder, ports=ports.rabbit)


class Ports:
    """Where a server that starts again comes up again."""

    def __init__(self, kind: str) -> None:
        self.redis = free_port() if kind == "redis" else 0
        self.rabbit: RabbitPorts | None = rabbit_ports() if kind == "rabbitmq" else None


class Servers:
    """One server of each kind, started when the first test wants it."""

    def __init__(self, parts: ExitStack, folder: Callable[[str], Path]) -> None:
        self._parts = parts
        self._folder = folder
        self._running: dict[str, Broker] = {}

    def broker(self, kind: str) -> Broker:
        """The one of this kind."""
        if kind not in self._running:
            start = redis_server if kind == "redis" else rabbitmq_server
            url = self._parts.enter_context(start(self._folder(kind)))
            self._running[kind] = KINDS[kind](url)
        return self._running[kind]
