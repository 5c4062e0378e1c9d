# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations


class ModuleDocFragment:
    """Documentation that the modules for the broker share."""

    DOCUMENTATION = r"""
options:
  engine:
    description:
      - The queue library. This version knows V(bullmq), V(celery), V(dramatiq), V(rq), V(sidekiq) and V(streams), all
        on Redis, and V(celery_rabbitmq), V(dramatiq_rabbitmq) and V(rabbitmq) on RabbitMQ.
    type: str
    required: true
  broker_url:
    description:
      - Where the broker is, for example V(redis://:password@redis.example.org:6379/0), or
        V(amqp://user:password@rabbit.example.org:5672/vhost). V(rediss://) and V(amqps://) are TLS, and V(unix://) is a
        socket.
      - A Redis under Sentinel is named by its sentinels and what they call it,
        V(redis+sentinel://:password@one.example.org:26379,two.example.org:26379/mymaster/0), with
        C(?sentinel_username=) and C(&sentinel_password=) where they ask for these, and V(rediss+sentinel://) for TLS.
        The master is asked for before each question, and nobody else is believed.
      - A Redis Cluster is for V(bullmq) only, V(redis+cluster://:password@one.example.org:6379,two.example.org:6379/?prefix={bull}),
        and refused for others. C(?prefix=) is how BullMQ's keys begin, where that isn't C(bull).
      - Passwords are never shown.
    type: str
    required: true
  timeout:
    description: How many seconds the broker may take for any single answer.
    type: float
    default: 5.0
  step_timeout:
    description:
      - After how many seconds without an answer the machine that talks to the broker counts as unreachable, beyond
        those that the step itself may wait, for example for a canary task. It isn't asked again in the same run.
        V(0) waits for ever.
      - Read on the controller only.
    type: float
    default: 120.0
requirements:
  - Python 3.9 or newer on the machine that talks to the broker.
  - The Python package C(redis) there, or C(pika) for RabbitMQ.
notes:
  - Runs on any machine that reaches the broker, usually the controller (C(delegate_to=localhost)).
"""
