# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Redis master with a replica, and the sentinels that watch over both: real servers, which a test can kill."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from tests.support.bench import Bench, bench_of
from tests.support.servers import answers, free_port, wait_for

NAME = "mymaster"
_SENTINELS = 3
_DOWN_AFTER = 500
"""Milliseconds without an answer after which a sentinel takes a server for dead."""
_DOWN_AFTER_AT_START = 60_000
"""The same while they come up: on a busy machine the first master would else be left before anybody has looked."""


@dataclass
class Watch:
    """Two Redis servers, one of which is the master, and three sentinels."""

    folder: Path
    password: str = ""
    """Of the Redis servers."""
    sentinel_password: str = ""
    servers: list[int] = field(default_factory=lambda: [free_port(), free_port()])
    """Ports; the first one is the master at the start."""
    sentinels: list[int] = field(default_factory=lambda: [free_port() for _each in range(_SENTINELS)])
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    """By port, what runs."""

    @property
    def url(self) -> str:
        """As a pool names it."""
        places = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        own = f"?sentinel_password={self.sentinel_password}" if self.sentinel_password else ""
        return f"redis+sentinel://{self._user}{places}/{NAME}/0{own}"

    @property
    def celery_url(self) -> str:
        """As Celery names it, without the master's name."""
        return ";".join(f"sentinel://{self._user}127.0.0.1:{port}/0" for port in self.sentinels)

    @property
    def _user(self) -> str:
        return f":{self.password}@" if self.password else ""

    def client(self, port: int) -> redis.Redis:
        """One of the Redis servers, also when it is no master."""
        return redis.Redis(port=port, password=self.password or None, socket_timeout=5)

    def sentinel(self, port: int) -> redis.Redis:
        """One of the sentinels."""
        return redis.Redis(port=port, password=self.sentinel_password or None, socket_timeout=5)

    def named(self, port: int) -> int:
        """The port of the master that a sentinel names."""
        with self.sentinel(port) as client:
            return int(client.sentinel_master(NAME)["port"])

    @property
    def master(self) -> int:
        """The port of the master that most sentinels name."""
        alive = [self.named(port) for port in self.sentinels if port in self.processes]
        return max(alive, key=alive.count)

    def start_server(self, port: int, *options: str) -> None:
        """Start a Redis server."""
        given = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        secret = ["--requirepass", self.password, "--masterauth", self.password] if self.password else []
        self._start(port, "redis-server", *given, "--repl-diskless-sync-delay", "0", *secret, *options)

    def start_sentinel(self, port: int) -> None:
        """Start a sentinel that watches the first server."""
        config = self.folder / f"sentinel-{port}.conf"
        lines = [
            f"port {port}", "bind 127.0.0.1", f"dir {self.folder}",
            f"sentinel monitor {NAME} 127.0.0.1 {self.servers[0]} 2",
            f"sentinel down-after-milliseconds {NAME} {_DOWN_AFTER_AT_START}",
            f"sentinel failover-timeout {NAME} 3000",
        ]  # fmt: skip
        lines += [f"sentinel auth-pass {NAME} {self.password}"] if self.password else []
        if self.sentinel_password:
            lines += [f"requirepass {self.sentinel_password}", f"sentinel sentinel-pass {self.sentinel_password}"]
        config.write_text("\n".join(lines) + "\n", encoding="ascii")
        self._start(port, "redis-server", str(config), "--sentinel")

    def be_quick(self) -> None:
        """Have the sentinels take a server for dead soon, from now on."""
        for port in self.sentinels:
            with self.sentinel(port) as client:
                client.sentinel_set(NAME, "down-after-milliseconds", _DOWN_AFTER)

    def kill(self, port: int) -> None:
        """SIGKILL one of them, and see it gone."""
        process = self.processes.pop(port)
        process.kill()
        process.wait(10)

    def kill_all(self) -> None:
        """SIGKILL whatever runs."""
        for port in list(self.processes):
            self.kill(port)

    def replicated(self, port: int = 0) -> None:
        """Wait until the replica has everything that the master has, which is the sentinels' unless it is named."""
        with self.client(port or self.master) as master:
            wait_for("the replica has everything", lambda: answers(master) and _equal(master.info("replication")))

    def failed_over(self, old: int, seconds: float = 30.0) -> int:
        """Wait until the sentinels have made another server the master; its port."""

        def new() -> int:
            named = {self.named(port) for port in self.sentinels if port in self.processes}
            return named.pop() if len(named) == 1 and old not in named else 0

        return wait_for("another master", new, seconds)

    def _start(self, port: int, *command: str) -> None:
        with (self.folder / f"redis-{port}.log").open("ab") as log:
            self.processes[port] = subprocess.Popen(command, stdout=log, stderr=log)

    def is_ready(self) -> bool:
        """Whether every sentinel knows the replica and the other sentinels."""
        try:
            states = []
            for port in self.sentinels:
                with self.sentinel(port) as client:
                    states.append(client.sentinel_master(NAME))
            with self.client(self.servers[0]) as master:
                return all(map(_complete, states)) and _equal(master.info("replication"))
        except redis.RedisError:
            return False


def _complete(state: dict[str, Any]) -> bool:
    return (state["num-slaves"], state["num-other-sentinels"]) == (1, _SENTINELS - 1)


def _equal(info: dict[str, Any]) -> bool:
    replica = info.get("slave0", {})
    return bool(replica.get("state") == "online" and replica["offset"] == info["master_repl_offset"])


@contextmanager
def sentinels(folder: Path, password: str = "", sentinel_password: str = "") -> Iterator[Watch]:
    """A master, its replica and three sentinels, once they know of each other; all are ended."""
    watch = Watch(folder, password, sentinel_password)
    with ExitStack() as undo:
        undo.callback(watch.kill_all)
        master, replica = watch.servers
        watch.start_server(master)
        watch.start_server(replica, "--replicaof", f"127.0.0.1 {master}")
        # Before a sentinel asks: it asks again only after ten seconds.
        watch.replicated(master)
        for port in watch.sentinels:
            watch.start_sentinel(port)
        wait_for("the sentinels know everybody", watch.is_ready, 30.0)
        watch.be_quick()
        yield watch


def on_sentinel(engine: str, watch: Watch, folder: Path, ledger_url: str) -> Bench:
    """An engine's bench whose workers find the master by themselves; its producer talks to the present one."""
    kind = bench_of(engine)
    instances = [["127.0.0.1", port] for port in watch.sentinels]
    own = {
        "SENTINEL": json.dumps({"INSTANCES": instances, "MASTER_NAME": NAME, "PASSWORD": watch.password or None}),
        "RQ_CONFIG": "rq_settings",
        "CELERY_BROKER_URL": watch.celery_url,
    }

    class Found(kind):  # type: ignore[misc, valid-type]  # which one is known by its name only
        def command(self, prefix: str, queues: Sequence[str], options: Sequence[str]) -> list[str]:
            words = list(super().command(prefix, queues, options))
            if "--url" in words:
                at = words.index("--url")
                del words[at : at + 2]
            return words

        def environment(self) -> dict[str, str]:
            return {**super().environment(), **own}

    secret = f":{watch.password}@" if watch.password else ""
    found = Found(f"redis://{secret}127.0.0.1:{watch.master}/0", folder)
    found.ledger_url = ledger_url
    return found
