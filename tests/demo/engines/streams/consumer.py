# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's app as a consumer of Redis Streams, which keeps Backstep's convention (docs/engines.md)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from typing import Any

import letters  # type: ignore[import-not-found]  # stands beside this file in a release
import redis

TASKS = {"backstep-canary": lambda: None, "letters.send": letters.send}
BLOCK_MILLISECONDS = 1000
GROUP = "workers"


def work(name: str, queues: list[str], takes_tasks: bool) -> None:
    """Work until told to stop."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    broker: Any = redis.Redis.from_url(os.environ["REDIS_URL"], client_name=name, decode_responses=True)
    notes = f"backstep:streams:worker:{name}"
    for queue in queues:
        with contextlib.suppress(redis.ResponseError):  # it is there
            broker.xgroup_create(queue, GROUP, id="0", mkstream=True)
        broker.xgroup_createconsumer(queue, GROUP, name)
    broker.hset(notes, mapping={"queues": ",".join(queues), "finished": 0, "failed": 0})
    while not stopping:
        if not takes_tasks:
            signal.pause()
            continue
        # The reply that brought an entry may have been lost.
        for since in ("0", ">"):
            found = broker.xreadgroup(GROUP, name, dict.fromkeys(queues, since), count=1, block=BLOCK_MILLISECONDS)
            taken = [(queue, *entry) for queue, entries in found or [] for entry in entries]
            if taken:
                break
        for queue, entry, fields in taken:
            _execute(broker, notes, queue, entry, fields)
    for queue in queues:
        broker.xgroup_delconsumer(queue, GROUP, name)
    broker.delete(notes)


def _execute(broker: Any, notes: str, queue: str, entry: str, fields: dict[str, str]) -> None:
    """Execute a task. One that fails is put behind the others, to be tried again: a stream keeps no failed ones."""
    canary, outcome = fields.get("backstep_canary"), "finished"
    try:
        TASKS[fields["task"]](*json.loads(fields.get("arguments", "[]")))
    except Exception as error:  # noqa: BLE001  # whatever it is, the task has failed
        outcome = "failed"
        print(f"{entry} failed: {error!r}", flush=True)
    with broker.pipeline(transaction=True) as done:
        if outcome == "failed" and not canary:
            done.xadd(queue, fields)
        done.xack(queue, GROUP, entry)
        done.hincrby(notes, f"{outcome}:{canary}" if canary else outcome, 1)
        done.execute()
