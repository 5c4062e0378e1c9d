# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How this build of the app takes tasks."""

from __future__ import annotations

from configparser import ConfigParser

import redis
from rq import Worker


def make_worker(name: str, queues: list[str], connection: redis.Redis, settings: ConfigParser) -> Worker:
    """A worker that is ready to work."""
    return Worker(queues, name=name, connection=connection)
