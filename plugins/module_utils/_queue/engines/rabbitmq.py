# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plain consumers of RabbitMQ: the app's own programs, which keep a small convention. It is in docs/engines.md."""

from __future__ import annotations

from typing import Any, Optional

try:
    import pika
except ImportError:  # ``open_engine`` refuses to go on without it, and says what to install
    pika = None  # so that this file can be read without it, as sanity does

from .. import engine as contract
from ..engine import Capabilities
from ._amqp_engine import AmqpEngine
from ._amqp_messages import Message, Messages

CANARY_HEADER = "backstep_canary"


class _Plain(Messages):
    """By the properties that AMQP has for that."""

    def id(self, message: Message) -> str:
        return str(message[1].message_id or "")

    def task(self, message: Message) -> Optional[str]:
        name: Optional[str] = message[1].type
        return name

    def canary(self, known: str, task: str, queue: str, seconds: int) -> tuple[Any, bytes]:
        expiration = str(seconds * 1000)
        headers = {CANARY_HEADER: known}
        return pika.BasicProperties(message_id=known, type=task, headers=headers, expiration=expiration), b"[]"


class RabbitmqEngine(AmqpEngine):
    """Plain consumers of classic or quorum queues."""

    name = "rabbitmq"
    default_canary = "backstep-canary"
    messages = _Plain()
    capabilities = Capabilities(
        pause_scope="none",
        pause_survives_worker_restart=False,
        pause_survives_broker_restart=False,
        quiet_can_be_undone=False,
        uncountable_states=(contract.SCHEDULED, contract.RETRYING, contract.DEAD, contract.DEFERRED),
        counts_failures=True,
        kill_effect="repeats",
        stuck_seconds=0.0,
        unknown_task="parked",
        put_back="last",
        reroutes=True,
    )
