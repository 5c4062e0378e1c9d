# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plain consumer of RabbitMQ that keeps Backstep's convention, with the tasks of the ledger."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from typing import Any

import ledger_tasks  # type: ignore[import-not-found]  # beside this file, which is on the workers' path
import pika
from backstep_rabbitmq import Gates  # type: ignore[import-not-found]  # what a release gets, on the workers' path

NAME = os.environ["BACKSTEP_WORKER"]
QUEUES = os.environ["BACKSTEP_QUEUES"].split(",")
NOTES = f"backstep.worker.{NAME}"
LAST_ONLY = {"x-max-length": 1, "x-overflow": "drop-head", "x-expires": 86_400_000}
TASKS = {
    "backstep-canary": lambda: None,
    "ledger_tasks.work": ledger_tasks.work,
    "ledger_tasks.fail": ledger_tasks.fail,
}

stopping: list[int] = []
signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))

parameters = pika.URLParameters(os.environ["AMQP_URL"])
parameters.client_properties = {"connection_name": NAME}
broker = pika.BlockingConnection(parameters)
channel = broker.channel()
channel.confirm_delivery()
channel.basic_qos(prefetch_count=1)

deliveries: list[Any] = []  # taken and not acknowledged yet, the one that is executed first
counts = {"finished": 0, "failed": 0}
canaries: dict[str, str] = {}
consumers: dict[str, str] = {}  # their tags and queues
birth = noted = time.time()


def note(started: float | None = None) -> None:
    """Tell, and know that it is told, what this worker has, since when it executes it, and what it has done."""
    global noted  # noqa: PLW0603  # the whole program is this one worker
    noted = time.time()
    held: list[dict[str, Any]] = [
        {"id": message.message_id, "task": message.type, "queue": consumers[method.consumer_tag], "started": None}
        for method, message, _body in deliveries
    ]
    if held:
        held[0]["started"] = started
    told = {"queues": QUEUES, "pid": os.getpid(), "birth": birth, **counts, "held": held, "canaries": canaries}
    told |= gates.told
    channel.queue_declare(NOTES, durable=True, arguments=LAST_ONLY)  # which also puts off its end
    channel.basic_publish("", NOTES, json.dumps(told).encode(), mandatory=True)


def execute(message: Any, body: bytes, outcome: list[str]) -> None:
    try:
        TASKS[message.type](*json.loads(body))
        outcome.append("finished")
    except Exception as error:  # noqa: BLE001  # whatever it is, the task has failed
        outcome.append("failed")
        print(f"{message.message_id} failed: {error!r}", flush=True)


def work() -> None:
    """Execute the first task. In a thread, so that the broker goes on hearing from this connection meanwhile."""
    method, message, body = deliveries[0]
    if gates.held(channel, consumers[method.consumer_tag], method, message, body):
        deliveries.pop(0)  # it is parked
        note()
        return
    outcome: list[str] = []
    started = time.time()
    note(started)
    thread = threading.Thread(target=execute, args=(message, body, outcome), daemon=True)
    thread.start()
    while thread.is_alive():
        taken = len(deliveries)
        broker.process_data_events(0)
        if gates.look() or len(deliveries) > taken:  # of another queue
            note(started)
        thread.join(0.1)
    canary = (message.headers or {}).get("backstep_canary")
    if canary:
        canaries[canary] = outcome[0]
    else:
        counts[outcome[0]] += 1
    channel.basic_ack(method.delivery_tag)
    deliveries.pop(0)
    note()


def take(_channel: Any, method: Any, message: Any, body: bytes) -> None:
    deliveries.append((method, message, body))


gates = Gates(broker, parameters, note, lambda: stopping, TASKS, json.loads)
for queue in QUEUES:
    channel.queue_declare(queue, durable=True)
note()
channel.queue_declare(f"backstep.alive.{NAME}", exclusive=True)
consumers |= {channel.basic_consume(queue, take): queue for queue in QUEUES}
print("ready", flush=True)

while not stopping:
    broker.process_data_events(time_limit=1)
    while deliveries and not stopping:
        work()
    if gates.look() or time.time() - noted > 3600:
        note()

for consumer in consumers:
    channel.basic_cancel(consumer)
channel.queue_delete(NOTES)
broker.close()  # what was taken and not begun goes back to its place
