# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The worker half of the ledger: tasks that note, per number, when they start, finish and fail.

Put next to an RQ app's own code; needs ``redis`` and the variable ``LEDGER_URL`` (where to note, a Redis URL).
"""

from __future__ import annotations

import os
import time

import redis

STARTED, FINISHED, FAILED = "ledger:started", "ledger:finished", "ledger:failed"
MENDED = "ledger:mended"


def work(number: int, seconds: float) -> None:
    """Task ``number``: takes ``seconds``."""
    notes = redis.Redis.from_url(os.environ["LEDGER_URL"])
    notes.hincrby(STARTED, str(number), 1)
    time.sleep(seconds)
    notes.hincrby(FINISHED, str(number), 1)


def fail(number: int) -> None:
    """Task ``number``, in a release that can't do it."""
    notes = redis.Redis.from_url(os.environ["LEDGER_URL"])
    notes.hincrby(STARTED, str(number), 1)
    notes.hincrby(FAILED, str(number), 1)
    raise RuntimeError(f"task {number} fails, as it is meant to")


def die(number: int) -> None:
    """Task ``number``, which dies at once and for good until the numbers that are mended contain its own."""
    notes = redis.Redis.from_url(os.environ["LEDGER_URL"])
    notes.hincrby(STARTED, str(number), 1)
    if not notes.sismember(MENDED, str(number)):
        notes.hincrby(FAILED, str(number), 1)
        raise LookupError(f"task {number} isn't mended")
    notes.hincrby(FINISHED, str(number), 1)
