# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The names that releases and workers carry and how they are read back; points in time as people read them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class WorkerName:
    """The name under which a worker process registers with its engine.

    Written ``<pool>/<release>/<host>/<index>/<pid>``. The process id makes each start's name its own: RQ refuses
    a worker whose name an earlier, crashed process still holds (seen with rq 2.12: the key lives on for 480 seconds).
    """

    pool: str
    release: str
    host: str
    index: int
    pid: int

    def __str__(self) -> str:
        return f"{worker_prefix(self.pool, self.release, self.host, self.index)}/{self.pid}"


def worker_prefix(pool: str, release: str, host: str, index: Optional[int] = None) -> str:
    """The part of a worker's name that is known before the process starts; without ``index``, that of all on a host."""
    return f"{pool}/{release}/{host}" if index is None else f"{pool}/{release}/{host}/{index}"


def parse_worker_name(name: str) -> Optional[WorkerName]:
    """Read a worker's name back; ``None`` when Backstep did not give it."""
    parts = name.split("/")
    if len(parts) != 5 or not parts[3].isdecimal() or not parts[4].isdecimal():
        return None
    return WorkerName(parts[0], parts[1], parts[2], int(parts[3]), int(parts[4]))


def utc(epoch: Optional[float]) -> str:
    """A point in time (epoch seconds) as people read it, in UTC; ``-`` when there is none."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(epoch)) if epoch else "-"
