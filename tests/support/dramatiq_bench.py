# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real Dramatiq workers on Redis with Backstep's reporter in them, and a producer that is Dramatiq's own."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from functools import cached_property

import redis
from dramatiq import Broker, Message
from dramatiq.brokers.redis import RedisBroker

from tests.support.bench import REPORTERS, SUPPORT, Bench, Call

# Keeps its process id: the worker's name ends in it, as the names that Backstep gives do.
_START = (
    "import os, sys; from dramatiq.cli import main;"
    "os.environ['BACKSTEP_WORKER'] = f'{sys.argv[1]}/{os.getpid()}'; os.environ['BACKSTEP_QUEUES'] = sys.argv[2];"
    "sys.argv = ['dramatiq', *sys.argv[3:]]; sys.exit(main())"
)
# No two messages of one millisecond: the order of what a worker had taken is told by nothing else.
_milliseconds = itertools.count(int(time.time() * 1000) - 300_000)


class Workers(Bench):
    """Dramatiq on Redis, one thread for each worker, with its default retries."""

    engine = "dramatiq"

    @cached_property
    def _broker(self) -> Broker:
        return RedisBroker(url=self.url, middleware=[])

    def command(self, prefix: str, queues: Sequence[str], options: Sequence[str]) -> list[str]:
        given = [f"backstep_{self.engine}:broker", "--processes=1", "--threads=1", *options, "--queues", *queues]
        return ["-c", _START, prefix, ",".join(queues), *given]

    def environment(self) -> dict[str, str]:
        path = f"{SUPPORT}:{REPORTERS}"
        return {"APP": "dramatiq_app", "DRAMATIQ_BROKER_URL": self.client_url, "PYTHONPATH": path}

    def is_up(self, name: str, log: str) -> bool:
        return "ready for action" in log

    def send(self, queue: str, known_as: str, call: Call) -> None:
        # Nothing comes before what waits: Dramatiq sorts by priority only what a worker has taken already.
        message: Message[None] = Message(queue, call.task, call.arguments, {}, {}, known_as, next(_milliseconds))
        self._broker.enqueue(message, delay=int(call.delay * 1000) or None)

    def is_settled(self, queue: str) -> bool:
        with redis.Redis.from_url(self.url) as client:
            waiting = client.llen(f"dramatiq:{queue}")
            return not waiting or client.hlen(f"dramatiq:{queue}.msgs") - waiting >= 2

    def order(self, queue: str) -> list[str]:
        with redis.Redis.from_url(self.url) as client:
            ids = client.lrange(f"dramatiq:{queue}", 0, -1)
            messages = client.hmget(f"dramatiq:{queue}.msgs", ids) if ids else []
        return [json.loads(message)["message_id"] for message in messages]
