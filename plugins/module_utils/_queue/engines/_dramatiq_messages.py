# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dramatiq's messages, as its default encoder writes them on any broker."""

from __future__ import annotations

import json
from typing import Any


def canary(known: str, task: str, queue: str, now: float, seconds: int, **options: Any) -> str:
    """A call without arguments. It is not tried again, and workers with a reporter don't begin it once it has run out.

    :param options: what the broker needs beside that.
    """
    return json.dumps(
        {
            "queue_name": queue,
            "actor_name": task,
            "args": [],
            "kwargs": {},
            "options": {
                **options,
                "max_retries": 0,
                "time_limit": seconds * 1000,
                "backstep_expires": now + seconds,
            },
            "message_id": known,
            "message_timestamp": int(now * 1000),
        },
        separators=(",", ":"),
    )
