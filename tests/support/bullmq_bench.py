# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real BullMQ workers on Node, and BullMQ's own client as the producer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis

from tests.support.bench import REPORTERS, SUPPORT, Bench, Call
from tools.node import MODULES

# Keeps its process id: the worker's name ends in it, as the names that Backstep gives do.
_START = (
    "import os, sys;"
    "os.environ.update(BACKSTEP_WORKER=f'{sys.argv[1]}/{os.getpid()}', BACKSTEP_QUEUES=sys.argv[2]);"
    "os.execvp('node', ['node', *sys.argv[3:]])"
)


class Workers(Bench):
    """BullMQ 6."""

    engine = "bullmq"
    library = "bullmq"
    """The package under ``MODULES``."""

    def __init__(
        self, url: str, folder: Path | None = None, python: str = sys.executable, ledger_url: str = ""
    ) -> None:
        super().__init__(url, folder, python, ledger_url)
        self._producer: subprocess.Popen[str] | None = None
        self._wanted: dict[str, int] = {}

    def command(self, prefix: str, queues: Sequence[str], options: Sequence[str]) -> list[str]:
        self._wanted[prefix] = len(queues)
        return ["-c", _START, prefix, ",".join(queues), str(SUPPORT / "bullmq_worker.cjs"), *options]

    def environment(self) -> dict[str, str]:
        return {"REDIS_URL": self.url, "NODE_PATH": f"{REPORTERS}:{MODULES}", "BULLMQ": self.library}

    def is_up(self, name: str, log: str) -> bool:
        with redis.Redis.from_url(self.url) as client:
            named = {found["name"] for found in client.client_list() if found["name"].endswith(f":w:{name}")}
        # One connection for each queue, named as soon as it is there.
        # And another word of each when it has told that it keeps gates, or tells nothing.
        return len(named) == log.count("ready") == self._wanted[name.rpartition("/")[0]]

    def ask(self, queue: str, **request: Any) -> None:
        """Have the library do something with a queue; raises what it says when it fails."""
        if self._producer is None:
            self._producer = subprocess.Popen(
                ["node", str(SUPPORT / "bullmq_producer.cjs")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **self.environment()},
            )
        assert self._producer.stdin is not None
        assert self._producer.stdout is not None
        self._producer.stdin.write(json.dumps({"queue": queue, **request}) + "\n")
        self._producer.stdin.flush()
        said = self._producer.stdout.readline().strip()
        if said != "done":
            raise RuntimeError(f"BullMQ's client {said or 'has ended'}")

    def stop_all(self) -> None:
        super().stop_all()
        if self._producer is not None:
            self._producer.kill()
            self._producer.communicate()

    def send(self, queue: str, known_as: str, call: Call) -> None:
        self.send_many(queue, {known_as: call})

    def send_many(self, queue: str, calls: dict[str, Call]) -> None:
        jobs = [
            {
                "name": call.task,
                "data": call.arguments,
                "opts": {"jobId": known_as, "lifo": call.urgent, "delay": int(call.delay * 1000)},
            }
            for known_as, call in calls.items()
        ]
        self.ask(queue, jobs=jobs)

    def is_settled(self, queue: str) -> bool:
        return True  # with a concurrency of 1, a worker takes one task at a time

    def order(self, queue: str) -> list[str]:
        with redis.Redis.from_url(self.url, decode_responses=True) as client:
            listed = [client.lrange(f"bull:{queue}:{place}", 0, -1) for place in ("wait", "paused")]
            later = client.zrange(f"bull:{queue}:prioritized", 0, -1)
        return [*(known for entries in listed for known in reversed(entries)), *later]
