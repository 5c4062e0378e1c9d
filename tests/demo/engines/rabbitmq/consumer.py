# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's app as a plain consumer of RabbitMQ, which keeps Backstep's convention (docs/engines.md)."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from typing import Any

import letters  # type: ignore[import-not-found]  # stands beside this file in a release
import pika

TASKS = {"backstep-canary": lambda: None, "letters.send": letters.send}
LAST_ONLY = {"x-max-length": 1, "x-overflow": "drop-head", "x-expires": 86_400_000}
RETRY_SECONDS = 3
BIRTH = time.time()


def work(name: str, queues: list[str], takes_tasks: bool) -> None:
    """Work until told to stop."""
    Worker(name, queues).work(takes_tasks)


class Worker:
    """One consumer, which takes a task at a time."""

    def __init__(self, name: str, queues: list[str]) -> None:
        self._stopping: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _frame: self._stopping.append(number))
        self._name, self._queues = name, queues
        self._broker = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
        self._channel = self._broker.channel()
        self._channel.confirm_delivery()
        self._channel.basic_qos(prefetch_count=1, global_qos=True)
        self._taken: list[Any] = []
        self._counts = {"finished": 0, "failed": 0}
        self._canaries: dict[str, str] = {}

    def work(self, takes_tasks: bool) -> None:
        """Work until told to stop."""
        for queue in self._queues:
            self._channel.queue_declare(queue, durable=True)
        self._note([])
        self._channel.queue_declare(f"backstep.alive.{self._name}", exclusive=True)
        consumers = {}
        if takes_tasks:
            consumers = {self._channel.basic_consume(queue, self._take): queue for queue in self._queues}
        while not self._stopping:
            self._broker.process_data_events(time_limit=1)
            while self._taken and not self._stopping:
                method, message, body = self._taken.pop()
                self._execute(consumers[method.consumer_tag], method, message, body)
        for consumer in consumers:
            self._channel.basic_cancel(consumer)
        self._channel.queue_delete(f"backstep.worker.{self._name}")
        self._broker.close()

    def _take(self, _channel: Any, *delivery: Any) -> None:
        self._taken.append(delivery)

    def _execute(self, queue: str, method: Any, message: Any, body: bytes) -> None:
        """Execute a task in a thread, while the broker hears from this one. One that fails is tried again."""
        known = message.message_id
        self._note([{"id": known, "task": message.type, "queue": queue, "started": time.time()}])
        outcome: list[str] = []
        thread = threading.Thread(target=_call, args=(known, message.type, body, outcome), daemon=True)
        thread.start()
        while thread.is_alive():
            self._broker.process_data_events(0)
            thread.join(0.1)
        canary = (message.headers or {}).get("backstep_canary")
        if canary:
            self._canaries[canary] = outcome[0]
        else:
            self._counts[outcome[0]] += 1
        if canary or outcome[0] == "finished":
            self._channel.basic_ack(method.delivery_tag)
        else:
            # Until then nobody is given it.
            self._broker.process_data_events(time_limit=RETRY_SECONDS)
            self._channel.basic_nack(method.delivery_tag)
        self._note([])

    def _note(self, held: list[dict[str, Any]]) -> None:
        told = {"queues": self._queues, "pid": os.getpid(), "birth": BIRTH, **self._counts, "held": held}
        notes = f"backstep.worker.{self._name}"
        self._channel.queue_declare(notes, durable=True, arguments=LAST_ONLY)
        body = json.dumps({**told, "canaries": self._canaries}).encode()
        self._channel.basic_publish("", notes, body, mandatory=True)


def _call(known: str, task: str, body: bytes, outcome: list[str]) -> None:
    try:
        TASKS[task](*json.loads(body))
        outcome.append("finished")
    except Exception as error:  # noqa: BLE001  # whatever it is, the task has failed
        outcome.append("failed")
        print(f"{known} failed: {error!r}", flush=True)
