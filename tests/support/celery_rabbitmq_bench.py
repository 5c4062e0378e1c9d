# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real Celery workers on RabbitMQ."""

from __future__ import annotations

from tests.support import celery_bench
from tests.support.rabbitmq_bench import lying_in


class Workers(celery_bench.Workers):
    """Celery on RabbitMQ, with its default acknowledgement: before a task is executed."""

    engine = "celery_rabbitmq"
    broker = "rabbitmq"

    def order(self, queue: str) -> list[str]:
        return [str((properties.headers or {}).get("id")) for properties, _body in lying_in(self.client_url, queue)]
