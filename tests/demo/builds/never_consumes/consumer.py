# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A build that starts, registers, stays up, and takes nothing."""

from __future__ import annotations

import threading
from configparser import ConfigParser
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


def make_worker(name: str, queues: list[str], connection: redis.Redis, settings: ConfigParser) -> Worker:
    """A worker that hears nothing."""
    return DeafWorker(queues, name=name, connection=connection)
