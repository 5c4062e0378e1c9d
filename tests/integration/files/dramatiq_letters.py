# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Dramatiq app as a pool runs it: named by the variable ``APP``, with a task that tells whether the release works."""

from __future__ import annotations

import importlib
import importlib.util
import os

import dramatiq
import ledger_tasks  # type: ignore[import-not-found]  # stands beside this file in a release

URL = os.environ["DRAMATIQ_BROKER_URL"]
if URL.startswith("amqp"):
    from dramatiq.brokers.rabbitmq import RabbitmqBroker as Broker
else:
    from dramatiq.brokers.redis import RedisBroker as Broker
dramatiq.set_broker(Broker(url=URL))


@dramatiq.actor(actor_name="dramatiq_letters.check", queue_name="letters")
def check() -> None:
    """Fail in a release that can't work."""
    if os.environ.get("MODE") == "bad":
        raise RuntimeError("this release can't work, as it is meant to")


@dramatiq.actor(actor_name="ledger_tasks.work", queue_name="letters", min_backoff=1000, max_backoff=1000)
def work(number: int, seconds: float) -> None:
    """Task ``number``, which is tried again until a release can do it."""
    check.fn()
    ledger_tasks.work(number, seconds)


if importlib.util.find_spec("letters_more"):
    for name, task in importlib.import_module("letters_more").TASKS.items():
        dramatiq.actor(actor_name=name, queue_name="letters")(task)
