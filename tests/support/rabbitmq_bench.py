# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plain consumers of RabbitMQ, and a producer: a publish with confirms, as an app's own code calls it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress

import pika

from tests.support.bench import REPORTERS, SUPPORT, Bench, Call
from tests.support.streams_bench import START

_PROGRAM = SUPPORT / "rabbitmq_worker.py"


class Workers(Bench):
    """Durable classic queues of one virtual host."""

    engine = "rabbitmq"
    broker = "rabbitmq"
    schedules = False

    def command(self, prefix: str, queues: Sequence[str], options: Sequence[str]) -> list[str]:
        return ["-c", START, prefix, ",".join(queues), str(_PROGRAM), *options]

    def environment(self) -> dict[str, str]:
        return {"AMQP_URL": self.client_url, "PYTHONPATH": f"{SUPPORT}:{REPORTERS}"}

    def is_up(self, name: str, log: str) -> bool:
        return "ready" in log

    def send(self, queue: str, known_as: str, call: Call) -> None:
        self.send_many(queue, {known_as: call})

    def send_many(self, queue: str, calls: dict[str, Call]) -> None:
        with self._connected() as connection:
            channel = connection.channel()
            channel.queue_declare(queue, durable=True)
            channel.tx_select()
            for known_as, call in calls.items():
                properties = pika.BasicProperties(message_id=known_as, type=call.task, delivery_mode=2)
                channel.basic_publish("", queue, json.dumps(call.arguments).encode(), properties)
            channel.tx_commit()

    def is_settled(self, queue: str) -> bool:
        return True  # a worker on one queue, with a prefetch of one, takes nothing ahead

    def order(self, queue: str) -> list[str]:
        return [str(properties.message_id) for properties, _body in lying_in(self.client_url, queue)]

    def _connected(self) -> pika.BlockingConnection:
        return pika.BlockingConnection(pika.URLParameters(self.client_url))


def lying_in(url: str, queue: str) -> list[tuple[pika.BasicProperties, bytes]]:
    """The messages of a queue, the next one first. They are in their places again afterwards."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        found: list[tuple[pika.BasicProperties, bytes]] = []
        with suppress(pika.exceptions.ChannelClosedByBroker):  # there is no such queue
            while True:
                method, properties, body = channel.basic_get(queue)
                if method is None:
                    break
                found.append((properties, body))
            channel.close()
        return found
