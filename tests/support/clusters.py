# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Redis Cluster of real servers, which a test can kill: three masters, and a replica of each."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from tests.support.servers import answers, free_port, wait_for
from tools.common import run

_MASTERS = 3
_TRIES = 5
_NODE_TIMEOUT = 1000
"""Milliseconds without a word after which a node is taken for dead."""


@dataclass
class Nodes:
    """The servers of one cluster, by port."""

    folder: Path
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def places(self) -> str:
        """Those that run, as a URL has them."""
        return ",".join(f"127.0.0.1:{port}" for port in self.processes)

    @property
    def url(self) -> str:
        """As a pool with BullMQ names it."""
        return f"redis+cluster://{self.places}/?prefix={{bull}}"

    def view(self) -> dict[str, Any]:
        """What a node that runs knows of all, by their addresses."""
        with redis.Redis(port=next(iter(self.processes)), socket_timeout=5) as client:
            found: dict[str, Any] = client.execute_command("CLUSTER NODES")
        return found

    def owner(self, key: str) -> int:
        """The port of the master that has a key's slot."""
        with redis.Redis(port=next(iter(self.processes)), socket_timeout=5) as client:
            slot = int(client.execute_command("CLUSTER KEYSLOT", key))
        for address, node in self.view().items():
            if any(int(span[0]) <= slot <= int(span[-1]) for span in node["slots"]):
                return int(address.rpartition(":")[2])
        raise AssertionError(f"nobody has slot {slot}")

    def start(self) -> None:
        """Start one more server, without any slot; on other ports, where somebody else has taken one meanwhile."""
        for _try in range(_TRIES):
            port = self._start()
            server = self.processes[port]
            wait_for("it answers or has ended", lambda: _answers(port) or server.poll() is not None)  # noqa: B023  # asked at once
            if server.poll() is None:
                return
            del self.processes[port]
        raise AssertionError(f"no server has come up; see the logs in {self.folder}")

    def _start(self) -> int:
        """Start a server; its port."""
        port = free_port()
        folder = self.folder / str(port)
        folder.mkdir()
        # Redis would choose a port for the cluster itself by adding to its own, which may be too high already.
        options = [
            "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder), "--cluster-enabled", "yes",
            "--cluster-port", str(free_port()), "--cluster-node-timeout", str(_NODE_TIMEOUT),
        ]  # fmt: skip
        with (folder / "log").open("wb") as log:
            self.processes[port] = subprocess.Popen(["redis-server", *options], stdout=log, stderr=log)
        return port

    def kill(self, port: int) -> None:
        """SIGKILL a server, and see it gone."""
        server = self.processes.pop(port)
        server.kill()
        server.wait(10)

    def kill_all(self) -> None:
        """Kill what still runs."""
        for port in list(self.processes):
            self.kill(port)


@contextmanager
def cluster(folder: Path) -> Iterator[Nodes]:
    """A cluster that is up, with every replica in step."""
    nodes = Nodes(folder)
    with ExitStack() as parts:
        parts.callback(nodes.kill_all)
        for _each in range(2 * _MASTERS):
            nodes.start()
        create = ["redis-cli", "--cluster", "create", *nodes.places.split(","), "--cluster-replicas", "1"]
        run([*create, "--cluster-yes"], timeout=60)
        wait_for("it is up", lambda: all(_is_ready(port) for port in nodes.processes), 60)
        yield nodes


def _answers(port: int) -> bool:
    with redis.Redis(port=port) as client:
        return answers(client)


def _is_ready(port: int) -> bool:
    with redis.Redis(port=port) as client:
        told = client.info("replication")
        is_followed = told["role"] == "master" and told["connected_slaves"]
        is_in_step = is_followed or told.get("master_link_status") == "up"
        return bool(is_in_step and client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
