# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has a Celery worker park tasks that it doesn't know: Celery rejects them, which mostly destroys them.

After a release is taken back, whoever is still ahead of it goes on enqueueing such tasks. They are parked as
``task_move`` parks them, and are put back like all others. The app isn't changed; in ``pool_env``,
``PARK_UNKNOWN_TASKS: "no"`` leaves Celery its own way.
"""

from __future__ import annotations

import logging
import os
from typing import Any, Callable

from celery import bootsteps, current_app

WHY = "the worker's release doesn't know it"
"""The reason that is noted with a task."""
_CANARY = "backstep-canary-"

_log = logging.getLogger(__name__)
Way = Callable[[Any, Any, str, str], bool]
"""How it is done with one broker. Takes the consumer, the message, the task's id, and the worker's name; gives whether
the task is parked. If not, it stays unacknowledged."""


class NotParked(Exception):
    """A task can't be parked, and Celery is to do what it always did."""


class Parking(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery tells no types
    """Takes the place of what the consumer does with a task that nobody has registered."""

    worker = ""
    way: Way

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        if not hasattr(consumer, "on_unknown_task"):
            _log.warning("Tasks that this release doesn't know will be lost: this version of Celery is not understood.")
            return
        reject = consumer.on_unknown_task

        def park(body: Any, message: Any, error: Exception) -> Any:
            known = str((message.headers or {}).get("id") or "")
            if known.startswith(_CANARY):
                return reject(body, message, error)
            try:
                parked = type(self).way(consumer, message, known, self.worker)
            except NotParked:
                return reject(body, message, error)
            if parked:
                message.ack_log_error(_log, consumer.connection_errors)
                _log.error("Task %s is parked: this release knows no %s.", known, (message.headers or {}).get("task"))
            return None

        consumer.on_unknown_task = park


def park_unknown_tasks(worker: str, way: Way) -> None:
    """Have the worker that is about to start do so.

    :param worker: its name.
    """
    if os.environ.get("PARK_UNKNOWN_TASKS", "yes").lower() not in ("no", "false", "0"):
        Parking.worker, Parking.way = worker, staticmethod(way)
        current_app.steps["consumer"].add(Parking)
