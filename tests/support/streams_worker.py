# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A consumer of Redis Streams that keeps Backstep's convention, with the tasks of the ledger."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from typing import Any

import ledger_tasks  # type: ignore[import-not-found]  # beside this file, which is on the workers' path
import redis
from backstep_streams import Gates  # type: ignore[import-not-found]  # what a release gets, on the workers' path

NAME = os.environ["BACKSTEP_WORKER"]
QUEUES = os.environ["BACKSTEP_QUEUES"].split(",")
NOTES = f"backstep:streams:worker:{NAME}"
TASKS = {
    "backstep-canary": lambda: None,
    "ledger_tasks.work": ledger_tasks.work,
    "ledger_tasks.fail": ledger_tasks.fail,
}

stopping: list[int] = []
signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))


def arguments(fields: dict[str, str]) -> list[Any]:
    found: list[Any] = json.loads(fields.get("arguments", "[]"))
    return found


any_bytes = {"decode_responses": True, "encoding_errors": "surrogateescape"}
broker: Any = redis.Redis.from_url(os.environ["REDIS_URL"], client_name=NAME, **any_bytes)
gates = Gates(broker, lambda: stopping, TASKS, reads=arguments)
for queue in QUEUES:
    with contextlib.suppress(redis.ResponseError):  # it is there
        broker.xgroup_create(queue, "workers", id="0", mkstream=True)
    broker.xgroup_createconsumer(queue, "workers", NAME)
broker.hset(NOTES, mapping={"queues": ",".join(QUEUES), "finished": 0, "failed": 0})
print("ready", flush=True)


def read(since: str) -> list[tuple[str, str, dict[str, str]]]:
    """Entries of any of the queues: with ">" the next ones, with "0" what this worker has and did not acknowledge."""
    streams = dict.fromkeys(QUEUES, since)
    found = broker.xreadgroup("workers", NAME, streams, count=1, block=1000) or []
    return [(queue, entry, fields or {}) for queue, entries in found for entry, fields in entries]


while not stopping:
    # The reply that brought an entry may have been lost.
    taken = read("0") or read(">")
    for queue, entry, fields in taken:
        if gates.held(queue, entry, fields):
            continue  # it is parked
        outcome = "finished"
        try:
            TASKS[fields["task"]](*arguments(fields))
        except Exception as error:  # noqa: BLE001  # whatever it is, the task has failed
            outcome = "failed"
            print(f"{entry} failed: {error!r}", flush=True)
        canary = fields.get("backstep_canary")
        with broker.pipeline(transaction=True) as done:
            done.xack(queue, "workers", entry)
            done.hincrby(NOTES, f"{outcome}:{canary}" if canary else outcome, 1)
            done.execute()

for queue in QUEUES:
    broker.xgroup_delconsumer(queue, "workers", NAME)
broker.delete(NOTES)
