# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's app with Dramatiq. The process that executes tasks imports it anew, and is told by variables."""

from __future__ import annotations

import os
import sys
from typing import Any

import dramatiq
import letters  # type: ignore[import-not-found]  # stands beside this file in a release
from dramatiq.cli import main

BROKER_URL = os.environ["DRAMATIQ_BROKER_URL"]
if BROKER_URL.startswith("amqp"):
    from dramatiq.brokers.rabbitmq import RabbitmqBroker as Broker

    REPORTER = "backstep_dramatiq_rabbitmq"
else:
    from dramatiq.brokers.redis import RedisBroker as Broker

    REPORTER = "backstep_dramatiq"
RETRY_MILLISECONDS = 3000
_DEAF = "LETTERS_DEAF"


class DeafBroker(Broker):
    """Gives out nothing."""

    def consume(self, *arguments: Any, **options: Any) -> Any:
        """A consumer that never gets a message."""
        consumer = super().consume(*arguments, **options)
        consumer.__class__ = type("DeafConsumer", (type(consumer),), {"__next__": lambda _self: None})
        return consumer


dramatiq.set_broker((DeafBroker if os.environ.get(_DEAF) else Broker)(url=BROKER_URL))
retry = {"min_backoff": RETRY_MILLISECONDS, "max_backoff": RETRY_MILLISECONDS}
dramatiq.actor(actor_name="letters.send", queue_name="letters", **retry)(letters.send)


def work(name: str, queues: list[str], takes_tasks: bool) -> None:
    """Work until told to stop."""
    os.environ["APP"] = "consumer"
    if not takes_tasks:
        os.environ[_DEAF] = "1"
    # Spawned, it imports this anew, and sees the variables; forked, it would go on with what is imported here.
    options = ["--use-spawn", "--processes=1", "--threads=1"]
    sys.argv = ["dramatiq", f"{REPORTER}:broker", *options, "--queues", *queues]
    sys.exit(main())
