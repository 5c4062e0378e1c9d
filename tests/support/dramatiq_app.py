# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Dramatiq app with the tasks of the ledger, which can be sent to any of its worker's queues."""

from __future__ import annotations

import json
import os

import dramatiq
import ledger_tasks  # type: ignore[import-not-found]  # beside this file, which is on the workers' path
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from redis.sentinel import Sentinel

if "SENTINEL" in os.environ:
    given = json.loads(os.environ["SENTINEL"])
    sentinels = Sentinel(given["INSTANCES"], socket_timeout=2)
    dramatiq.set_broker(RedisBroker(client=sentinels.master_for(given["MASTER_NAME"], password=given["PASSWORD"])))
elif os.environ["DRAMATIQ_BROKER_URL"].startswith("amqp"):
    dramatiq.set_broker(RabbitmqBroker(url=os.environ["DRAMATIQ_BROKER_URL"]))
else:
    dramatiq.set_broker(RedisBroker(url=os.environ["DRAMATIQ_BROKER_URL"]))
QUEUES = os.environ["BACKSTEP_QUEUES"].split(",")
for queue in QUEUES:
    dramatiq.get_broker().declare_queue(queue)
dramatiq.actor(actor_name="ledger_tasks.work", queue_name=QUEUES[0])(ledger_tasks.work)
dramatiq.actor(actor_name="ledger_tasks.fail", queue_name=QUEUES[0], min_backoff=3_600_000)(ledger_tasks.fail)
dramatiq.actor(actor_name="ledger_tasks.die", queue_name=QUEUES[0], max_retries=1, min_backoff=1)(ledger_tasks.die)
