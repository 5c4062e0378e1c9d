# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A build that needs a setting which the config doesn't have: it exits at boot."""

from __future__ import annotations

from configparser import ConfigParser

import redis
from rq import Worker


def make_worker(name: str, queues: list[str], connection: redis.Redis, settings: ConfigParser) -> Worker:
    """Fails: nobody has set a sender."""
    sender = settings["letters"]["sender"]
    return Worker(queues, name=f"{name}/{sender}", connection=connection)
