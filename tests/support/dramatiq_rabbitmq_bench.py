# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real Dramatiq workers on RabbitMQ with Backstep's reporter in them, and a producer that is Dramatiq's own."""

from __future__ import annotations

import json
from functools import cached_property

from dramatiq import Broker
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from tests.support import dramatiq_bench
from tests.support.brokers import RabbitBroker
from tests.support.rabbitmq_bench import lying_in

# Two for each thread.
_TAKEN_AT_MOST = 2


class Workers(dramatiq_bench.Workers):
    """Dramatiq on RabbitMQ, one thread for each worker, with its default retries."""

    engine = "dramatiq_rabbitmq"
    broker = "rabbitmq"

    @cached_property
    def _broker(self) -> Broker:
        return RabbitmqBroker(url=self.client_url, middleware=[])

    def is_settled(self, queue: str) -> bool:
        if not self.order(queue):
            return True
        told = RabbitBroker(self.url).api("GET", f"queues/%2F/{queue}?columns=messages_unacknowledged")
        # An empty list, while there are no figures yet.
        return bool(told and told.get("messages_unacknowledged", 0) >= _TAKEN_AT_MOST)

    def order(self, queue: str) -> list[str]:
        return [json.loads(body)["message_id"] for _properties, body in lying_in(self.client_url, queue)]
