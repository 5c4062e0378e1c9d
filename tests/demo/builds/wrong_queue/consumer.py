# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A build with a slip of the pen in the name of its queue."""

from __future__ import annotations

from configparser import ConfigParser

import redis
from rq import Worker


def make_worker(name: str, queues: list[str], connection: redis.Redis, settings: ConfigParser) -> Worker:
    """A worker that waits where no task comes."""
    return Worker(["lettres"], name=name, connection=connection)
