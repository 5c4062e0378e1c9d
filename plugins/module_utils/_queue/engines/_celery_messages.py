# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Celery's messages as kombu keeps them in Redis: what their envelopes tell. Pure; no task's body is ever decoded."""

from __future__ import annotations

import base64
import json
import re
import uuid
from bisect import bisect_right
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Optional

from ..._rollout.names import WorkerName, parse_worker_name
from ..engine import RETRYING, SCHEDULED, WAITING

# kombu writes it between the parts of a key and of a binding.
SEPARATOR = "\x06\x16"
# A queue is one list for each of these priorities; the lower number goes first.
PRIORITIES = (0, 3, 6, 9)
CANARY_EXCHANGE = "backstep"
_FINISHED, _FAILED = "-finished", "-failed"
_ORIGIN = re.compile(r"gen(\d+)@(.+)")


def lists(queue: str) -> list[str]:
    """The keys of a queue's lists, the most urgent first."""
    return [queue if priority == 0 else f"{queue}{SEPARATOR}{priority}" for priority in PRIORITIES]


def binding(queue: str) -> str:
    """How a queue is entered for the messages that carry its name."""
    return SEPARATOR.join((queue, "", queue))


def bound_queue(member: str) -> str:
    """The queue in a binding."""
    return member.rpartition(SEPARATOR)[2]


def encode(body: Any, headers: dict[str, Any], exchange: str, key: str, tag: str, **properties: Any) -> str:
    """A message as kombu publishes it."""
    return json.dumps(
        {
            "body": base64.b64encode(json.dumps(body).encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": headers,
            "properties": {
                "delivery_mode": 1,
                "delivery_info": {"exchange": exchange, "routing_key": key},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": tag,
                **properties,
            },
        }
    )


@dataclass(frozen=True)
class Held:
    """A message that some worker has taken and not acknowledged."""

    tag: str
    stored: bytes
    """As it lies in Redis."""
    message: str
    """As it would lie in its queue."""
    id: str
    task: Optional[str]
    queue: str
    state: str
    """What it would be in its queue: waiting, scheduled or retrying."""
    key: str
    """The list that it came from."""


def read_held(tag: str, stored: bytes) -> Held:
    """Read one entry of kombu's hash of unacknowledged messages.

    :raises ValueError: it is none.
    """
    message, _exchange, routing_key = json.loads(stored)
    headers, properties = message.get("headers") or {}, message.get("properties") or {}
    step = bisect_right(PRIORITIES, min(9, max(0, int(properties.get("priority") or 0)))) - 1
    due = headers.get("eta") is not None
    return Held(
        tag=tag,
        stored=stored,
        message=json.dumps(message),
        id=str(headers.get("id") or properties.get("correlation_id") or tag),
        task=headers.get("task"),
        queue=routing_key,
        state=(RETRYING if headers.get("retries") else SCHEDULED) if due else WAITING,
        key=lists(routing_key)[step],
    )


def with_new_tag(message: str) -> str:
    """The same message under a delivery tag of its own.

    A worker that is about to end puts back what it took, and knows that by its tag (kombu 5.7). By the same tag it
    would put back once more what another worker has taken since.
    """
    found = json.loads(message)
    found["properties"] = {**(found.get("properties") or {}), "delivery_tag": str(uuid.uuid4())}
    return json.dumps(found)


def call_headers(known_as: str, task: str, expires: datetime, seconds: int) -> dict[str, Any]:
    """The headers of a call without arguments whose result nobody wants; it is cut off after ``seconds``."""
    return {
        "lang": "py", "task": task, "id": known_as, "root_id": known_as, "parent_id": None, "group": None, "eta": None,
        "expires": expires.isoformat(), "retries": 0, "timelimit": [seconds, None], "argsrepr": "()",
        "kwargsrepr": "{}", "origin": "backstep", "ignore_result": True,
    }  # fmt: skip


def canary(known_as: str, task: str, queue: str, replies: str, now: float, seconds: int) -> str:
    """A call without arguments that reports its end as a message to the list ``replies``, whatever its app's settings.

    Celery's own callbacks do that: they are published by the process that has executed the task, which they name. The
    tasks that they call are Celery's own, and nobody executes them.
    """
    callbacks = {
        "callbacks": [_signature("celery.accumulate", known_as + _FINISHED, replies)],
        "errbacks": [_signature("celery.backend_cleanup", known_as + _FAILED, replies)],
        "chain": None,
        "chord": None,
    }
    expires = datetime.fromtimestamp(now + seconds, timezone.utc)
    headers = call_headers(known_as, task, expires, seconds)
    return encode([[], {}, callbacks], headers, "", queue, known_as, correlation_id=known_as, reply_to="")


def queue_of(message: bytes) -> str:
    """The queue that a canary was sent to."""
    return str(json.loads(message)["properties"]["delivery_info"]["routing_key"])


def _signature(task: str, known_as: str, replies: str) -> dict[str, Any]:
    options = {"task_id": known_as, "exchange": CANARY_EXCHANGE, "routing_key": replies, "declare": []}
    return {
        "task": task, "args": [], "kwargs": {}, "options": {**options, "ignore_result": True}, "subtask_type": None,
        "immutable": True, "chord_size": None,
    }  # fmt: skip


@dataclass(frozen=True)
class CanaryReply:
    """How a canary ended, and in which process."""

    failed: bool
    pid: Optional[int]
    hostname: Optional[str]


def read_canary_reply(raw: bytes) -> CanaryReply:
    """Read what a canary has published."""
    headers = json.loads(raw)["headers"]
    origin = _ORIGIN.fullmatch(str(headers.get("origin") or ""))
    failed = str(headers["id"]).endswith(_FAILED)
    return CanaryReply(failed, int(origin.group(1)) if origin else None, origin.group(2) if origin else None)


def worker_of(node: str) -> tuple[str, Optional[WorkerName], Optional[str]]:
    """A node as a worker: its name, what Backstep wrote in that, and the host that it is on.

    Backstep's name stands before the ``@``, or after it where the command has left the host out.
    """
    name, _at, host = node.rpartition("@")
    parsed = parse_worker_name(name)
    if parsed:
        return name, parsed, host
    parsed = parse_worker_name(host)
    return (host, parsed, None) if parsed else (node, None, host or None)
