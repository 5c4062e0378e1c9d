# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Redis server and real RQ workers, started as children and stopped with their test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import redis

SUPPORT = Path(__file__).resolve().parent
_POLL_SECONDS = 0.05
# Keeps its process id: the worker's name ends in it, as the names that Backstep gives do.
_START = (
    "import os, sys; from rq.cli import main;"
    "sys.argv = ['rq', 'worker', '--name', sys.argv[1] + '/' + str(os.getpid()), *sys.argv[2:]]; main()"
)

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


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[str]:
    """A Redis server of our own without persistence; its URL (database 0)."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with (folder / f"redis-{port}.log").open("wb") as log:
        server = subprocess.Popen([*command, *options], stdout=log, stderr=log)
    try:
        with redis.Redis(port=port) as client:
            wait_for("redis-server answers", lambda: _answers(client))
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(10)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


class Workers:
    """RQ worker processes of one test, each the leader of its own process group, all stopped at the end."""

    def __init__(self, url: str, folder: Path, python: str = sys.executable) -> None:
        self.url = url
        self.ledger_url = url.rsplit("/", 1)[0] + "/15"
        self._folder = folder
        self._python = python
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, prefix: str, queues: Sequence[str], *options: str, wait: bool = True) -> str:
        """Start a worker named ``<prefix>/<pid>``; returns its name once it has registered."""
        log = self._folder / f"{prefix.replace('/', '_')}.log"
        with log.open("ab") as output:
            worker = subprocess.Popen(
                [self._python, "-c", _START, prefix, "--url", self.url, *options, *queues],
                stdout=output,
                stderr=output,
                env={**os.environ, "LEDGER_URL": self.ledger_url, "PYTHONPATH": str(SUPPORT)},
                start_new_session=True,
            )
        name = f"{prefix}/{worker.pid}"
        self._running[name] = worker
        if wait:
            with redis.Redis.from_url(self.url) as client:
                ready = (b"idle", b"busy", b"suspended")
                wait_for(f"worker {name} is up", lambda: client.hget(f"rq:worker:{name}", "state") in ready)
        return name

    def signal(self, name: str, number: signal.Signals) -> None:
        """Signal the worker's main process only."""
        self._running[name].send_signal(number)

    def kill(self, name: str) -> None:
        """SIGKILL the worker and the process that executes its task, and see them gone."""
        worker = self._running.pop(name)
        for child in _children(worker.pid):
            os.kill(child, signal.SIGKILL)
        worker.kill()
        worker.wait(10)

    def stop(self, name: str) -> int:
        """Stop warm; returns the exit status."""
        worker = self._running.pop(name)
        worker.terminate()
        return worker.wait(20)

    def wait(self, name: str) -> int:
        """Wait until the worker ends by itself; returns the exit status."""
        return self._running[name].wait(20)

    def stop_all(self) -> None:
        """Kill what still runs."""
        for name in list(self._running):
            self.kill(name)


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii") if Path(f"/proc/{pid}").exists() else ""
    return [int(child) for child in text.split()]


def waiting(seconds: float) -> Callable[[Callable[[], bool]], bool]:
    """The wait that modules pass to what they call: asks until a predicate holds, at most ``seconds``."""

    def wait(predicate: Callable[[], bool]) -> bool:
        try:
            return wait_for("it holds", predicate, seconds)
        except AssertionError:
            return False

    return wait
