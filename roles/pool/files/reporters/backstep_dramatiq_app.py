# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Backstep's reporters in Dramatiq workers share, whatever the broker: the app, the canary, and what happens.

The variable APP names the app's modules, the first of which has the broker: ``APP="mail.broker"``,
``"mail.app:redis_broker mail.tasks"``. Python 3.9 and dramatiq.
"""

from __future__ import annotations

import importlib
import os
import time
from functools import reduce
from typing import Any

import dramatiq
from dramatiq.errors import RateLimitExceeded, Retry
from dramatiq.middleware import Middleware, SkipMessage

CANARY = "backstep_canary"
CANARY_IDS = "backstep-canary-"
_SKIPPED = "skipped"


def load_app(named: str) -> Any:
    """The broker of the modules that are named, found as ``dramatiq`` itself finds it."""
    first, *more = named.split() or [""]
    module, _colon, path = first.partition(":")
    found = importlib.import_module(module) if module else None
    if path:
        found = reduce(getattr, path.split("."), found)
        if callable(found):
            found()
    for name in more:
        importlib.import_module(name)
    return found if isinstance(found, dramatiq.Broker) else dramatiq.get_broker()


def queues_of(broker: Any, worker: Any) -> list[str]:
    """The queues that the process consumes, in the order in which its host names them."""
    declared = broker.get_declared_queues()
    consumed = declared & worker.consumer_whitelist if worker.consumer_whitelist else declared
    named = os.environ.get("BACKSTEP_QUEUES", "").split(",")
    return sorted(consumed, key=lambda queue: (named.index(queue) if queue in named else len(named), queue))


def declare_canary(broker: Any) -> None:
    """Declare an actor that does nothing, on a queue that the app has, so that none is consumed because of it."""
    _declare_tagged(broker)
    queues = sorted(broker.get_declared_queues())
    if queues and CANARY not in broker.actors:
        # Before whatever else its process has taken.
        dramatiq.Actor(
            lambda: None, broker=broker, actor_name=CANARY, queue_name=queues[0], priority=-(10**6), options={}
        )


def _declare_tagged(broker: Any) -> None:
    """Declare what no actor does: of the queues that the process is told to consume, those for its version alone."""
    declared = broker.get_declared_queues()
    for queue in os.environ.get("BACKSTEP_QUEUES", "").split(","):
        if queue.rpartition(".for-")[0] in declared:
            broker.declare_queue(queue)


class Watcher(Middleware):
    """Listens to the broker of one worker process, and hears of each message that is begun and ends."""

    def __init__(self) -> None:
        self._outcomes: dict[Any, str] = {}
        """By key, of messages that were begun or skipped and aren't acknowledged yet; "" from the beginning on."""

    def key(self, message: Any) -> Any:
        """What a message is known by while it is executed; ``None`` for one that isn't told of."""
        raise NotImplementedError

    def begun(self, message: Any) -> None:
        """Called before a message is executed."""
        raise NotImplementedError

    def ended(self, message: Any, outcome: str) -> None:
        """Called when a message has been acknowledged.

        :param outcome: ``finished``, ``failed``, or "" where it is neither.
        """
        raise NotImplementedError

    def before_process_message(self, broker: Any, message: Any) -> None:
        """Execute no canary that has run out."""
        key = self.key(message)
        if key is None:
            return
        if message.options.get("backstep_expires", float("inf")) < time.time():
            raise SkipMessage("This canary has run out.")
        self._outcomes[key] = ""
        self.begun(message)

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Note how it went."""
        key = self.key(message)
        if key in self._outcomes and not isinstance(exception, (Retry, RateLimitExceeded)):
            self._outcomes[key] = "finished" if exception is None else "failed"

    def after_skip_message(self, broker: Any, message: Any) -> None:
        """Note that it counts neither way."""
        self._outcomes[self.key(message)] = _SKIPPED

    def after_ack(self, broker: Any, message: Any) -> None:
        """Tell that it has ended."""
        key = self.key(message)
        if key in self._outcomes:
            outcome = self._outcomes.pop(key)
            self.ended(message, "" if outcome == _SKIPPED else outcome)

    def after_nack(self, broker: Any, message: Any) -> None:
        """Tell that it has failed, also of what was never begun: this process doesn't know its actor."""
        key = self.key(message)
        if key is not None:
            self.ended(message, "" if self._outcomes.pop(key, "") == _SKIPPED else "failed")
