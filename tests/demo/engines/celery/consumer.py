# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's app with Celery, with the settings that lose no task when a worker is killed."""

from __future__ import annotations

import os
from typing import Any

import letters  # type: ignore[import-not-found]  # stands beside this file in a release
from celery import Celery
from celery.signals import worker_ready

RETRY_SECONDS = 3
BROKER_URL = os.environ["CELERY_BROKER_URL"]
REPORTER = "backstep_celery_rabbitmq" if BROKER_URL.startswith("amqp") else "backstep_celery"

app = Celery("letters", broker=BROKER_URL)
app.conf.task_acks_late = True
app.conf.task_reject_on_worker_lost = True
app.conf.worker_prefetch_multiplier = 1
# Celery keeps no failed task, so one that fails is to be tried again.
app.task(name="letters.send", autoretry_for=(Exception,), default_retry_delay=RETRY_SECONDS, max_retries=None)(
    letters.send
)


def work(name: str, queues: list[str], takes_tasks: bool) -> None:
    """Work until told to stop."""
    if not takes_tasks:
        worker_ready.connect(_turn_away, weak=False)
    words = [f"--hostname={name}@%h", f"--queues={','.join(queues)}", "--concurrency=1", "--without-mingle"]
    app.worker_main(["worker", "--loglevel=INFO", f"--include={REPORTER}", *words])


def _turn_away(sender: Any, **_told: Any) -> None:
    """Listen to none of the queues."""
    for queue in list(sender.task_consumer.queues):
        sender.cancel_task_queue(queue.name)
