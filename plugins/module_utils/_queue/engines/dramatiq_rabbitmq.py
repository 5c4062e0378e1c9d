# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dramatiq on RabbitMQ, by its messages and by what the reporter in each worker notes; no argument is ever returned."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import Any, Optional

try:
    import pika
except ImportError:  # ``open_engine`` refuses to go on without it, and says what to install
    pika = None  # so that this file can be read without it, as sanity does

from .. import engine as contract
from ..engine import Capabilities
from ._amqp_engine import AmqpEngine
from ._amqp_messages import Message, Messages, kept_of
from ._dead import last_line
from ._dramatiq_dead import KEPT_SECONDS
from ._dramatiq_messages import canary

_LATER, _DEAD = ".DQ", ".XQ"


class _Dramatiq(Messages):
    """Dramatiq's default encoder, JSON. A message of another one has no id that can be read, and stays where it is,
    unless a worker has parked it.
    """

    dead_kept_seconds = KEPT_SECONDS

    def id(self, message: Message) -> str:
        return str(_read(message).get("message_id") or kept_of(message).get("id") or "")

    def task(self, message: Message) -> Optional[str]:
        return _read(message).get("actor_name")

    def enqueued(self, message: Message) -> Optional[float]:
        at = _read(message).get("message_timestamp")
        return at / 1000 if isinstance(at, (int, float)) else None

    def canary(self, known: str, task: str, queue: str, seconds: int) -> tuple[Any, bytes]:
        body = canary(known, task, queue, time.time(), seconds)
        # None that expires in the queue: Dramatiq's queues would keep it among their dead ones.
        return pika.BasicProperties(delivery_mode=2), body.encode()

    def is_tasks(self, queue: str) -> bool:
        return super().is_tasks(queue) and not queue.endswith((_LATER, _DEAD))

    def places(self, queue: str) -> Mapping[str, tuple[str, ...]]:
        return {
            queue: (contract.WAITING,),
            f"{queue}{_LATER}": (contract.SCHEDULED, contract.RETRYING),
            f"{queue}{_DEAD}": (contract.DEAD,),
        }

    def renamed(self, message: Message, source: str, target: str) -> bytes:
        names = {source: target, f"{source}{_LATER}": f"{target}{_LATER}"}
        try:
            return _renamed(message[2].decode(), names).encode()
        except ValueError:
            return message[2]  # by its place it is known, and it is taken from there

    def error(self, message: Message) -> str:
        return last_line(str((_read(message).get("options") or {}).get("traceback") or ""))

    def state(self, place: str, message: Message) -> str:
        if place.endswith(_DEAD):
            return contract.DEAD
        if not place.endswith(_LATER):
            return contract.WAITING
        return contract.RETRYING if (_read(message).get("options") or {}).get("retries") else contract.SCHEDULED


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """A JSON object with another ``queue_name``, and nothing else written anew.

    :raises ValueError: it is none, or has no such field.
    """
    decoder, at = json.JSONDecoder(), _past("{", text, 0)
    while True:
        key, at = decoder.raw_decode(text, at)
        begins = _past(":", text, at)
        value, at = decoder.raw_decode(text, begins)
        if key == "queue_name" and isinstance(value, str):
            return f"{text[:begins]}{json.dumps(names.get(value, value))}{text[at:]}"
        at = _past(",", text, at)


def _past(sign: str, text: str, at: int) -> int:
    found = re.compile(rf"\s*{re.escape(sign)}\s*").match(text, at)
    if found is None:
        raise ValueError(f"no {sign}")
    return found.end()


def _read(message: Message) -> dict[str, Any]:
    try:
        found = json.loads(message[2])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class DramatiqRabbitmqEngine(AmqpEngine):
    """Dramatiq 2 on one virtual host of RabbitMQ."""

    name = "dramatiq_rabbitmq"
    default_canary = "backstep_canary"
    messages = _Dramatiq()
    capabilities = Capabilities(
        pause_scope="none",
        pause_survives_worker_restart=False,
        pause_survives_broker_restart=False,
        quiet_can_be_undone=False,
        uncountable_states=(contract.DEFERRED,),
        counts_failures=True,
        kill_effect="repeats",
        stuck_seconds=0.0,
        unknown_task="parked",
        put_back="last",
        reroutes=True,
    )
