# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has a Dramatiq worker park tasks whose actor it doesn't know: Dramatiq itself dead-letters them, for a week.

After a release is taken back, whoever is still ahead of it goes on enqueueing such tasks. They are parked as
``task_move`` parks them, and are put back like all others. The app isn't changed; in ``pool_env``,
``PARK_UNKNOWN_TASKS: "no"`` leaves Dramatiq its own way, and so does whatever goes wrong here. Python 3.9 and dramatiq.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from typing import Any

from backstep_dramatiq_app import CANARY_IDS
from dramatiq import worker as consuming
from dramatiq.middleware import Middleware

REASON = "the worker's release doesn't know it"

_log = logging.getLogger(__name__)


class Parking(Middleware, ABC):
    """Stands before what the threads that take messages do with each."""

    def __init__(self, worker: str) -> None:
        self.worker = worker

    @abstractmethod
    def park(self, consumer: Any, message: Any) -> bool:
        """Park a message that this process has taken; not so, where Dramatiq is to have its own way.

        :param consumer: what it was taken by.
        """

    def after_consumer_thread_boot(self, broker: Any, thread: Any) -> None:
        """Have a thread ask, before it takes its first message."""
        handle = thread.handle_message

        def handle_known(message: Any) -> None:
            if not self._is_unknown(broker, message) or not self._is_parked(thread.consumer, message):
                handle(message)

        thread.handle_message = handle_known

    @staticmethod
    def _is_unknown(broker: Any, message: Any) -> bool:
        """Whether it would be rejected; what is due later isn't, until it is due."""
        return (
            message.actor_name not in broker.actors
            and message.options.get("eta") is None
            and not str(message.message_id).startswith(CANARY_IDS)
        )

    def _is_parked(self, consumer: Any, message: Any) -> bool:
        try:
            if not self.park(consumer, message):
                return False
        except Exception as error:  # noqa: BLE001  # whatever it is, the worker goes on
            # Only its kind: the text could hold the broker's password.
            _log.warning("A task that this release doesn't know can't be parked now: %s", type(error).__name__)
            return False
        _log.error("Task %s is parked: this release knows no %s.", message.message_id, message.actor_name)
        consumer.ack(message)
        return True


def park_unknown_tasks(broker: Any, parking: Parking) -> None:
    """Have the worker that is about to start do so."""
    if os.environ.get("PARK_UNKNOWN_TASKS", "yes").lower() in ("no", "false", "0"):
        return
    thread = getattr(consuming, "ConsumerThread", None) or getattr(consuming, "_ConsumerThread", None)
    if hasattr(thread, "handle_message") and hasattr(Middleware, "after_consumer_thread_boot"):
        broker.add_middleware(parking)
    else:
        _log.warning("Tasks that this release doesn't know aren't parked: this Dramatiq takes messages in another way.")
