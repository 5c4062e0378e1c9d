# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A build that works for some seconds and then dies, its executing task with it, as if it had run out of memory."""

from __future__ import annotations

import os
import signal
import threading
import time
from configparser import ConfigParser
from pathlib import Path

import redis
from rq import Worker

# Of the process's life, however much of it importing took.
_SECONDS = 4.0


def _age() -> float:
    """Seconds since this process was started."""
    started = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19]
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(started) / os.sysconf("SC_CLK_TCK")


def make_worker(name: str, queues: list[str], connection: redis.Redis, settings: ConfigParser) -> Worker:
    """A worker with not long to live."""
    worker = Worker(queues, name=name, connection=connection)

    def die() -> None:
        if worker.horse_pid:
            worker.kill_horse(signal.SIGKILL)
        os._exit(1)

    timer = threading.Timer(_SECONDS - _age(), die)
    timer.daemon = True
    timer.start()
    return worker
