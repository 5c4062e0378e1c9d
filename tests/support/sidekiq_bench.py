# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real Sidekiq workers with Backstep's reporter, and Sidekiq's own client as the producer."""

from __future__ import annotations

import functools
import json
import subprocess
import time
from collections.abc import Sequence

import redis

from tests.support.bench import DYING_TASK, FAILING_TASK, REPORTERS, SUPPORT, TASK, UNKNOWN_TASK, Bench, Call

# Keeps its process id: the worker's name ends in it, as the names that Backstep gives do.
_START = (
    "import os, sys;"
    "os.environ['BACKSTEP_WORKER'] = f'{sys.argv[1]}/{os.getpid()}';"
    "os.execvp('sidekiq', ['sidekiq', *sys.argv[2:]])"
)
_CLASSES = {
    TASK: "LedgerTasks::Work",
    FAILING_TASK: "LedgerTasks::Fail",
    DYING_TASK: "LedgerTasks::Die",
    UNKNOWN_TASK: "AppTasks::Unknown",
    "letters.send": "Letters::Send",
    "letters_more.write": "LettersMore::Write",
    "letters_more.later": "LettersMore::Later",
}


class _Producer:
    """A process with Sidekiq's client, for all benches; it ends when its input does."""

    def __init__(self) -> None:
        program = ["ruby", str(SUPPORT / "sidekiq_producer.rb")]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)

    def push(self, *request: object) -> None:
        """Have tasks enqueued.

        :raises RuntimeError: what the client said when it could not.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        if answer != "ok":
            raise RuntimeError(answer or "the producer is gone")


_producer = functools.cache(_Producer)


class Workers(Bench):
    """Sidekiq on Redis."""

    engine = "sidekiq"

    def command(self, prefix: str, queues: Sequence[str], options: Sequence[str]) -> list[str]:
        given = ["--concurrency=1", "--timeout=60", f"--require={SUPPORT / 'sidekiq_app.rb'}", *options]
        return ["-c", _START, prefix, *given, *(f"--queue={queue}" for queue in queues)]

    def environment(self) -> dict[str, str]:
        return {"REDIS_URL": self.url, "RUBYOPT": f"-r{REPORTERS / 'backstep_sidekiq.rb'}"}

    def named(self, task: str) -> str:
        return _CLASSES.get(task, task)

    def is_up(self, name: str, log: str) -> bool:
        with redis.Redis.from_url(self.url) as client:
            known = [client.hget(identity, "info") for identity in client.smembers("processes")]
        return name.rsplit("/", 1)[1] in [str(json.loads(info)["pid"]) for info in known if info]

    def send(self, queue: str, known_as: str, call: Call) -> None:
        _producer().push(self.url, call.urgent, [_item(queue, known_as, self.named(call.task), call)])

    def send_many(self, queue: str, calls: dict[str, Call]) -> None:
        items = [_item(queue, known_as, self.named(call.task), call) for known_as, call in calls.items()]
        _producer().push(self.url, False, items)

    def is_settled(self, queue: str) -> bool:
        return True  # a Sidekiq worker takes as many tasks as it executes

    def order(self, queue: str) -> list[str]:
        with redis.Redis.from_url(self.url) as client:
            return [json.loads(entry)["jid"] for entry in reversed(client.lrange(f"queue:{queue}", 0, -1))]


def _item(queue: str, known_as: str, task: str, call: Call) -> dict[str, object]:
    item: dict[str, object] = {"class": task, "args": call.arguments, "jid": known_as, "queue": queue}
    if call.task != UNKNOWN_TASK:
        item["retry"] = 0  # as its class says, which the producer doesn't have
    if call.delay:
        item["at"] = time.time() + call.delay
    return item
