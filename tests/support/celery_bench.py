# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real Celery workers on Redis, and a producer that speaks as Celery's own does."""

from __future__ import annotations

import json
from collections.abc import Sequence

import redis
from celery import Celery

from tests.support.bench import REPORTERS, SUPPORT, Bench, Call

# Keeps its process id: the worker's name ends in it, as the names that Backstep gives do.
_START = (
    "import os, sys; from celery.__main__ import main;"
    "os.environ['BACKSTEP_WORKER'] = name = f'{sys.argv[1]}/{os.getpid()}';"
    "sys.argv = ['celery', '-A', 'celery_app', 'worker', f'--hostname={name}@%h', *sys.argv[2:]];"
    "main()"
)


class Workers(Bench):
    """Celery on Redis, with its default acknowledgement: before a task is executed."""

    engine = "celery"

    def command(self, prefix: str, queues: Sequence[str], options: Sequence[str]) -> list[str]:
        # Without asking its neighbours first, which takes a second of each start.
        given = ["--concurrency=1", "--loglevel=INFO", "--without-mingle", f"--include=backstep_{self.engine}"]
        return ["-c", _START, prefix, f"--queues={','.join(queues)}", *given, *options]

    def environment(self) -> dict[str, str]:
        return {"CELERY_BROKER_URL": self.client_url, "PYTHONPATH": f"{SUPPORT}:{REPORTERS}"}

    def is_up(self, name: str, log: str) -> bool:
        return " ready." in log

    def send(self, queue: str, known_as: str, call: Call) -> None:
        self.send_many(queue, {known_as: call})

    def send_many(self, queue: str, calls: dict[str, Call]) -> None:
        app = Celery(broker=self.client_url, set_as_current=False)
        with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
            for known_as, call in calls.items():
                app.send_task(
                    call.task,
                    args=call.arguments,
                    task_id=known_as,
                    queue=queue,
                    countdown=call.delay or None,
                    # In Redis the lower number goes first.
                    priority=0 if call.urgent else 6,
                    producer=producer,
                )

    def is_settled(self, queue: str) -> bool:
        return not self.order(queue)

    def order(self, queue: str) -> list[str]:
        with redis.Redis.from_url(self.url) as client:
            lists = [client.lrange(key, 0, -1) for key in (queue, *(f"{queue}\x06\x16{rank}" for rank in (3, 6, 9)))]
        return [json.loads(entry)["headers"]["id"] for entries in lists for entry in reversed(entries)]
