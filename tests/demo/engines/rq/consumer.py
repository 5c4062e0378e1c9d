# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's app with RQ."""

from __future__ import annotations

import os
import threading
from typing import Any

import redis
from rq import Worker


class DeafWorker(Worker):
    """Waits for something else than tasks."""

    def dequeue_job_and_maintain_ttl(self, *arguments: Any, **options: Any) -> None:
        """Comes back only for a signal to stop, which RQ raises out of here."""
        never = threading.Event()
        while not never.wait(1.0):
            self.heartbeat()


def work(name: str, queues: list[str], takes_tasks: bool) -> None:
    """Work until told to stop."""
    kind = Worker if takes_tasks else DeafWorker
    kind(queues, name=name, connection=redis.Redis.from_url(os.environ["RQ_REDIS_URL"])).work()
