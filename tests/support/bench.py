# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a test needs of an engine: its real worker programs, and a producer that speaks as the engine's own does."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import redis

from tests.support.ledger_tasks import FINISHED, MENDED, STARTED
from tests.support.servers import wait_for
from tools.common import CHECKOUT

SUPPORT = Path(__file__).resolve().parent
# What a release of the engine's gets into it, for the worker to load.
REPORTERS = CHECKOUT / "roles" / "pool" / "files" / "reporters"
ENQUEUED = "ledger:enqueued"
ID = "task-"
TASK = "ledger_tasks.work"
FAILING_TASK = "ledger_tasks.fail"
DYING_TASK = "ledger_tasks.die"
UNKNOWN_TASK = "app.tasks.unknown"
# Celery's pool now and then waits half a minute for an answer that its main process gives no more (seen with 5.7).
_STOP_SECONDS = 60


def task_id(number: int) -> str:
    """The id under which task ``number`` is known to the broker."""
    return f"{ID}{number}"


class Call(NamedTuple):
    """What a task does, and when."""

    task: str
    arguments: tuple[float, ...]
    delay: float
    """Seconds until it is due."""
    urgent: bool
    """Before those that wait, by the engine's own means."""


class Bench(ABC):
    """One engine on one broker. Workers are leaders of process groups of their own, and all end with the bench."""

    engine: str
    """Its name, as the collection's users write it."""
    broker = "redis"
    """The kind of its broker, as ``tests/support/brokers.py`` names them."""
    schedules = True
    """Whether its producers can have a task wait until it is due."""

    def __init__(
        self, url: str, folder: Path | None = None, python: str = sys.executable, ledger_url: str = ""
    ) -> None:
        """:param folder: for the workers' logs; not needed where none is started.
        :param ledger_url: where tasks note what becomes of them; else in another database of the same Redis.
        """
        self.url = url
        self.ledger_url = ledger_url or url.rsplit("/", 1)[0] + "/15"
        self._folder = folder or Path(os.devnull)
        self._python = python
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def client_url(self) -> str:
        """The broker's URL as client libraries know it."""
        return self.url.partition("?management=")[0]

    @abstractmethod
    def command(self, prefix: str, queues: Sequence[str], options: Sequence[str]) -> list[str]:
        """Arguments for Python that run a worker, which executes one task at a time and is named ``<prefix>/<pid>``."""

    @abstractmethod
    def is_up(self, name: str, log: str) -> bool:
        """Whether a worker takes tasks now, or knows that it may not; told without the code under test.

        :param log: what it has written so far.
        """

    def named(self, task: str) -> str:
        """How the engine calls a task of these tests."""
        return task

    @abstractmethod
    def send(self, queue: str, known_as: str, call: Call) -> None:
        """Enqueue a call under an id; raises what the client library raises when the broker doesn't take it."""

    def send_many(self, queue: str, calls: dict[str, Call]) -> None:
        """Enqueue calls by their ids, in this order; in one go, where the engine's client can."""
        for known_as, call in calls.items():
            self.send(queue, known_as, call)

    @abstractmethod
    def is_settled(self, queue: str) -> bool:
        """Whether its busy workers have taken from the queue what they take ahead; told without the code under test."""

    @abstractmethod
    def order(self, queue: str) -> list[str]:
        """The ids of the tasks that lie in the queue itself, the next one first; told without the code under test."""

    def start(self, prefix: str, queues: Sequence[str], *options: str, wait: bool = True) -> str:
        """Start a worker named ``<prefix>/<pid>``; returns its name once it is up."""
        log = self._folder / f"{prefix.replace('/', '_')}.log"
        before = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            worker = subprocess.Popen(
                [self._python, *self.command(prefix, queues, options)],
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": str(SUPPORT), "LEDGER_URL": self.ledger_url, **self.environment()},
                start_new_session=True,
            )
        name = f"{prefix}/{worker.pid}"
        self._running[name] = worker
        if wait:
            wait_for(f"worker {name} is up", lambda: self.is_up(name, log.read_text("utf-8", "replace")[before:]))
        return name

    def enqueue(
        self, queue: str, number: int, *arguments: float, task: str = TASK, delay: float = 0, urgent: bool = False
    ) -> str:
        """Enqueue task ``number`` and note in the ledger that the broker has taken it; its id."""
        self.send(queue, task_id(number), Call(task, (number, *arguments), delay, urgent))
        with redis.Redis.from_url(self.ledger_url) as notes:
            notes.sadd(ENQUEUED, str(number))
        return task_id(number)

    def fill(self, queue: str, count: int, task: Callable[[int], str] = lambda _number: TASK) -> list[str]:
        """Enqueue the tasks 0 to ``count`` that nobody will balance; their ids."""
        calls = {task_id(number): Call(task(number), (number, 0), 0, False) for number in range(count)}
        self.send_many(queue, calls)
        return list(calls)

    def environment(self) -> dict[str, str]:
        """What the worker program needs in its environment."""
        return {}

    def signal(self, name: str, number: signal.Signals) -> None:
        """Signal the worker's main process only."""
        self._running[name].send_signal(number)

    def kill(self, name: str) -> None:
        """SIGKILL the worker and the processes that execute its tasks, and see them gone."""
        worker = self._running.pop(name)
        for child in _children(worker.pid):
            os.kill(child, signal.SIGKILL)
        worker.kill()
        worker.wait(10)

    def stop(self, name: str) -> int:
        """Stop warm; returns the exit status."""
        worker = self._running.pop(name)
        worker.terminate()
        return worker.wait(_STOP_SECONDS)

    def wait(self, name: str) -> int:
        """Wait until the worker ends by itself; returns the exit status."""
        return self._running[name].wait(_STOP_SECONDS)

    def has_ended(self, name: str) -> bool:
        """Whether the worker's main process is gone."""
        return self._running[name].poll() is not None

    def stop_all(self) -> None:
        """Kill what still runs."""
        for name in list(self._running):
            self.kill(name)

    def executions(self, number: int) -> tuple[int, int]:
        """How often a task was begun and finished, by its own notes."""
        with redis.Redis.from_url(self.ledger_url) as notes:
            started, finished = (notes.hget(kind, str(number)) for kind in (STARTED, FINISHED))
        return int(started or 0), int(finished or 0)

    def mend(self, numbers: Iterable[int]) -> None:
        """Have these tasks that die end well from now on."""
        with redis.Redis.from_url(self.ledger_url) as notes:
            notes.sadd(MENDED, *map(str, numbers))

    def finished(self) -> int:
        """How many tasks have been finished at least once, by their own notes."""
        with redis.Redis.from_url(self.ledger_url) as notes:
            return int(notes.hlen(FINISHED))


def bench_of(engine: str) -> type[Bench]:
    """The bench of an engine: the class ``Workers`` in ``tests/support/<engine>_bench.py``."""
    found: type[Bench] = importlib.import_module(f"tests.support.{engine}_bench").Workers
    return found


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii") if Path(f"/proc/{pid}").exists() else ""
    return [int(child) for child in text.split()]
