# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real servers for tests, and how to wait for them: by asking, never by sleeping a fixed time."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import redis

_POLL_SECONDS = 0.05
# By chance, as several processes look for ports at once.
_PORTS = iter(random.sample(range(10_000, 32_768), 20_000))
# Not the one in /usr/sbin, which becomes another user where it is root's.
_RABBITMQ_SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"

Answer = TypeVar("Answer")


def wait_for(what: str, ask: Callable[[], Answer], seconds: float = 60.0) -> Answer:
    """The first true answer; fails when none came in time, saying what the last one was."""
    end = time.monotonic() + seconds
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s, last seen: {answer!r}")
        time.sleep(_POLL_SECONDS)


def free_port() -> int:
    """A TCP port that nobody listens on now, and that this process hasn't been given before.

    Not one of those that the kernel gives to whoever connects somewhere (from 32768, by its default): one of these
    is now and then taken again before the server that it was meant for has come up.
    """
    for port in _PORTS:
        with socket.socket() as probe:
            if _binds(probe, port):
                return port
    raise AssertionError("no port is left")


def _binds(probe: socket.socket, port: int) -> bool:
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def own_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody vouches for but itself, and its key: the paths of both."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    made = ["-newkey", "rsa:2048", "-noenc", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", *made, *subject], check=True, capture_output=True, timeout=60)
    return certificate, key


@contextmanager
def redis_server(folder: Path, *options: str, port: int = 0, password: str = "") -> Iterator[str]:
    """A Redis server of our own, without persistence unless ``options`` ask for it; its URL (database 0).

    :param port: where it listens; 0 for any that is free.
    :param password: the one that ``options`` make it ask for.
    """
    port = port or free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with (folder / f"redis-{port}.log").open("wb") as log:
        server = subprocess.Popen([*command, *options], stdout=log, stderr=log)
    try:
        with redis.Redis(port=port, password=password or None) as client:
            wait_for("redis-server answers", lambda: answers(client))
        yield f"redis://{f':{password}@' if password else ''}127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(10)


def answers(client: redis.Redis) -> bool:
    """Whether it is there."""
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


# Debian's wrapper would become another user.
_RABBITMQCTL = "/usr/lib/rabbitmq/bin/rabbitmqctl"


class RabbitPorts(NamedTuple):
    """Where a node listens, always on 127.0.0.1."""

    amqp: int
    management: int
    dist: int
    names: int
    """Of a name server (epmd) of its own: one that it had started itself would outlive it."""


def rabbit_ports() -> RabbitPorts:
    """Ports on which nobody listens now."""
    return RabbitPorts(*(free_port() for _name in RabbitPorts._fields))


def set_rabbitmq_disk_limit(folder: Path, ports: RabbitPorts, free: str) -> None:
    """Set below how much free disk a node takes no messages any more, for example ``1MB``.

    :param folder: and ``ports``: of the node.
    """
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8", "ERL_EPMD_PORT": str(ports.names),
        "RABBITMQ_NODENAME": "backstep@localhost", "RABBITMQ_CONF_ENV_FILE": os.devnull,
    }  # fmt: skip
    subprocess.run([_RABBITMQCTL, "-q", "set_disk_free_limit", free], env=environment, check=True)


@contextmanager
def rabbitmq_server(folder: Path, *settings: str, ports: RabbitPorts | None = None) -> Iterator[str]:
    """A RabbitMQ node of our own with the management plugin, which keeps what is durable in ``folder``; its URL.

    :param settings: lines for its ``rabbitmq.conf``.
    :param ports: as it had them before, for one that starts again.
    """
    ports = ports or rabbit_ports()
    (folder / "enabled_plugins").write_text("[rabbitmq_management].\n", "ascii")
    listeners = (
        f"listeners.tcp.1 = 127.0.0.1:{ports.amqp}", "management.tcp.ip = 127.0.0.1",
        f"management.tcp.port = {ports.management}",
    )  # fmt: skip
    (folder / "rabbitmq.conf").write_text("\n".join([*listeners, *settings, ""]), "ascii")
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8",
        "ERL_EPMD_PORT": str(ports.names), "ERL_EPMD_ADDRESS": "127.0.0.1",
        # The name is the folder's of its data: a node that starts again has to have the same.
        "RABBITMQ_NODENAME": "backstep@localhost", "RABBITMQ_DIST_PORT": str(ports.dist),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"), "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"), "RABBITMQ_CONF_ENV_FILE": os.devnull,
        # Together: that the process which is started is the node itself, and can be told to stop.
        "RABBITMQ_ALLOW_INPUT": "1", "RABBITMQ_SERVER_START_ARGS": "-noinput",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
    }  # fmt: skip
    with ExitStack() as parts:
        log = parts.enter_context((folder / "rabbitmq.log").open("ab"))
        for command in (["epmd", "-port", str(ports.names), "-address", "127.0.0.1"], [_RABBITMQ_SERVER]):
            server = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            parts.callback(server.wait, 60)
            parts.callback(server.terminate)
        management = f"http://127.0.0.1:{ports.management}"
        wait_for("rabbitmq-server answers", lambda: _serves(f"{management}/api/overview", ports.amqp), 120)
        yield f"amqp://guest:guest@127.0.0.1:{ports.amqp}/%2F?management={management}"


def _serves(url: str, port: int) -> bool:
    """Whether the management API and AMQP are there: 401 is its answer to those who give no password."""
    try:
        urllib.request.urlopen(url, timeout=5).close()  # noqa: S310  # our own
    except urllib.error.HTTPError as error:
        if error.code == 401:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0
    except OSError:
        pass
    return False


def waiting(seconds: float) -> Callable[[Callable[[], bool]], bool]:
    """The wait that modules pass to what they call: asks until a predicate holds, at most ``seconds``."""

    def wait(predicate: Callable[[], bool]) -> bool:
        try:
            return wait_for("it holds", predicate, seconds)
        except AssertionError:
            return False

    return wait
