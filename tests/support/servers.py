# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real servers for tests, and how to wait for them: by asking, never by sleeping a fixed time."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import redis

_POLL_SECONDS = 0.05

Answer = TypeVar("Answer")


def wait_for(what: str, ask: Callable[[], Answer], seconds: float = 20.0) -> Answer:
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
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
            wait_for("redis-server answers", lambda: _answers(client))
        yield f"redis://{f':{password}@' if password else ''}127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(10)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def waiting(seconds: float) -> Callable[[Callable[[], bool]], bool]:
    """The wait that modules pass to what they call: asks until a predicate holds, at most ``seconds``."""

    def wait(predicate: Callable[[], bool]) -> bool:
        try:
            return wait_for("it holds", predicate, seconds)
        except AssertionError:
            return False

    return wait
