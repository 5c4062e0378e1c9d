# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real RQ workers, and a producer that speaks as RQ's own does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import redis
from rq import Queue

from tests.support.bench import REPORTERS, SUPPORT, Bench, Call

# Keeps its process id: the worker's name ends in it, as the names that Backstep gives do.
_START = (
    "import os, sys; from rq.cli import main;"
    "sys.argv = ['rq', 'worker', '--name', sys.argv[1] + '/' + str(os.getpid()), *sys.argv[2:]]; main()"
)
_READY = (b"idle", b"busy", b"suspended")


class Workers(Bench):
    """RQ on Redis."""

    engine = "rq"

    def command(self, prefix: str, queues: Sequence[str], options: Sequence[str]) -> list[str]:
        loads = "--exception-handler=backstep_rq_unknown.hand_on"
        return ["-c", _START, prefix, "--url", self.url, loads, *options, *queues]

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": f"{SUPPORT}:{REPORTERS}"}

    def is_up(self, name: str, log: str) -> bool:
        with redis.Redis.from_url(self.url) as client:
            return client.hget(f"rq:worker:{name}", "state") in _READY

    def send(self, queue: str, known_as: str, call: Call) -> None:
        with redis.Redis.from_url(self.url) as client:
            target = Queue(queue, connection=client)
            if call.delay:
                target.enqueue_in(timedelta(seconds=call.delay), call.task, *call.arguments, job_id=known_as)
            else:
                target.enqueue(call.task, *call.arguments, job_id=known_as, at_front=call.urgent)

    def send_many(self, queue: str, calls: dict[str, Call]) -> None:
        jobs = [Queue.prepare_data(call.task, call.arguments, job_id=known) for known, call in calls.items()]
        with redis.Redis.from_url(self.url) as client:
            Queue(queue, connection=client).enqueue_many(jobs)

    def is_settled(self, queue: str) -> bool:
        return True  # an RQ worker takes one task at a time

    def order(self, queue: str) -> list[str]:
        with redis.Redis.from_url(self.url) as client:
            return [entry.decode() for entry in client.lrange(f"rq:queue:{queue}", 0, -1)]
