# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Celery on RabbitMQ, by its messages' headers and by what the reporter in its workers notes; no body is decoded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Optional

try:
    import pika
except ImportError:  # ``open_engine`` refuses to go on without it, and says what to install
    pika = None  # so that this file can be read without it, as sanity does

from .. import engine as contract
from ..engine import Capabilities
from ._amqp_engine import AmqpEngine
from ._amqp_messages import Message, Messages, kept_of
from ._celery_messages import call_headers
from ._moves import require_no_times

_NO_TASKS = (".celery.pidbox", "celeryev.", "celery_delayed_")


class _Celery(Messages):
    """Version 2 of Celery's protocol, whose headers are AMQP's."""

    def id(self, message: Message) -> str:
        own = (message[1].headers or {}).get("id") or message[1].correlation_id
        return str(own or kept_of(message).get("id") or "")

    def task(self, message: Message) -> Optional[str]:
        name: Optional[str] = (message[1].headers or {}).get("task")
        return name

    def canary(self, known: str, task: str, queue: str, seconds: int) -> tuple[Any, bytes]:
        expires = datetime.now(timezone.utc) + timedelta(seconds=seconds)
        properties = pika.BasicProperties(
            content_type="application/json",
            content_encoding="utf-8",
            headers=call_headers(known, task, expires, seconds),
            correlation_id=known,
            expiration=str(seconds * 1000),
        )
        return properties, json.dumps([[], {}, dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))]).encode()

    def check(self, selection: contract.Selection) -> None:
        require_no_times(selection, "Celery")

    def is_tasks(self, queue: str) -> bool:
        return super().is_tasks(queue) and not any(part in queue for part in _NO_TASKS)

    def places(self, queue: str) -> Mapping[str, tuple[str, ...]]:
        return {queue: (contract.WAITING, contract.SCHEDULED, contract.RETRYING)}

    def state(self, place: str, message: Message) -> str:
        headers = message[1].headers or {}
        if headers.get("eta") is None:
            return contract.WAITING
        return contract.RETRYING if headers.get("retries") else contract.SCHEDULED


class CeleryRabbitmqEngine(AmqpEngine):
    """Celery 5 on one virtual host of RabbitMQ."""

    name = "celery_rabbitmq"
    default_canary = "celery.accumulate"
    messages = _Celery()
    capabilities = Capabilities(
        pause_scope="none",
        pause_survives_worker_restart=False,
        pause_survives_broker_restart=False,
        quiet_can_be_undone=False,
        uncountable_states=(contract.DEAD, contract.DEFERRED),
        counts_failures=True,
        kill_effect="loses",
        stuck_seconds=0.0,
        unknown_task="parked",
        put_back="last",
        reroutes=True,
    )
