# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Consumers of Redis Streams, and a producer: plain ``XADD``, as an app's own code calls it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import redis

from tests.support.bench import REPORTERS, SUPPORT, Bench, Call

# Keeps its process id: the worker's name ends in it, as the names that Backstep gives do.
START = (
    "import os, runpy, sys;"
    "os.environ.update(BACKSTEP_WORKER=f'{sys.argv[1]}/{os.getpid()}', BACKSTEP_QUEUES=sys.argv[2]);"
    "runpy.run_path(sys.argv[3], run_name='__main__')"
)
_PROGRAM = SUPPORT / "streams_worker.py"


class Workers(Bench):
    """Streams with the group ``workers``."""

    engine = "streams"
    schedules = False

    def command(self, prefix: str, queues: Sequence[str], options: Sequence[str]) -> list[str]:
        return ["-c", START, prefix, ",".join(queues), str(_PROGRAM), *options]

    def environment(self) -> dict[str, str]:
        return {"REDIS_URL": self.url, "PYTHONPATH": f"{SUPPORT}:{REPORTERS}"}

    def is_up(self, name: str, log: str) -> bool:
        return "ready" in log

    def send(self, queue: str, known_as: str, call: Call) -> None:
        self.send_many(queue, {known_as: call})

    def send_many(self, queue: str, calls: dict[str, Call]) -> None:
        with redis.Redis.from_url(self.url) as client, client.pipeline(transaction=False) as pipeline:
            for known_as, call in calls.items():
                pipeline.xadd(queue, {"id": known_as, "task": call.task, "arguments": json.dumps(call.arguments)})
            pipeline.execute()

    def is_settled(self, queue: str) -> bool:
        return True  # a worker that reads one entry at a time takes nothing ahead

    def order(self, queue: str) -> list[str]:
        with redis.Redis.from_url(self.url, decode_responses=True) as client:
            groups = client.xinfo_groups(queue) if client.exists(queue) else []
            after = groups[0]["last-delivered-id"] if groups else "0-0"
            return [fields["id"] for _entry, fields in client.xrange(queue, f"({after}", "+")]
