# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sidekiq's workers, and what they hold.

Sidekiq itself tells in Redis what a process executes only with each heartbeat (5 s, from version 7 on 10 s), and drops
it when the process is killed. So Backstep's own workers load a reporter, ``backstep_sidekiq.rb``, which describes its
keys. Sidekiq's word is taken for processes that Backstep hasn't started.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from ..._rollout.names import parse_worker_name
from ..engine import CANARY_PREFIX, WorkerSeen
from . import _sidekiq_scripts as scripts
from ._redis import RedisLink, text

WORKERS = f"{scripts.OURS}workers"
_AT_ONCE = 100
_FACTS = ("pid", "hostname", "queues", "identity", "birth", "beat", "finished", "failed", "quiet", "gates")

# ARGV: queues that single payloads may have been taken from (JSON), then workers -> for each held task: worker, number
# ("" when no thread has it yet), start, queue, id, name, whether its worker reports.
_HOLDINGS = (
    scripts.READ
    + r"""
local found = {}
local function add(name, number, start, queue, raw)
  local task, lives = read(raw) or {id = ''}, redis.call('EXISTS', ours .. 'worker:' .. name)
  found[#found + 1] = {name, number, start, queue, task.id, tostring(task.task), lives}
end
local queues = cjson.decode(ARGV[1])
for i = 2, #ARGV do
  local held = redis.call('HGETALL', ours .. 'held:' .. ARGV[i])
  for at = 1, #held, 2 do
    local start, queue, raw = string.match(held[at + 1], '^([%d%.]+)%z(.-)%z(.*)$')
    if start then add(ARGV[i], held[at], start, queue, raw) end
  end
  for _, queue in ipairs(queues) do
    for _, raw in ipairs(redis.call('LRANGE', ours .. 'taken:' .. queue .. ':' .. ARGV[i], 0, -1)) do
      add(ARGV[i], '', '', queue, raw)
    end
  end
end
return found
"""
)

# ARGV: identities of Sidekiq's processes -> for each task that they said they execute: as above.
_TOLD = (
    scripts.READ
    + r"""
local found = {}
for _, identity in ipairs(ARGV) do
  for _, key in ipairs({':work', ':workers'}) do
    for _, entry in ipairs(redis.call('HVALS', identity .. key)) do
      local outer = fields(entry)
      local task = read(outer.payload and tostring(value_of(entry, outer.payload)) or '')
      if task then
        local start, queue = tostring(value_of(entry, outer.run_at)), value_of(entry, outer.queue)
        found[#found + 1] = {identity, '', start, queue, task.id, tostring(task.task), 1}
      end
    end
  end
end
return found
"""
)


@dataclass(frozen=True)
class Held:
    """A task that a worker has taken and not finished."""

    worker: str
    number: str
    """Of the execution, for the worker's own tasks; "" for one that no thread has begun, or that Sidekiq tells of."""
    start: str
    """Epoch seconds, or ""."""
    queue: str
    id: str
    task: Optional[str]
    reports: bool
    """Whether its worker goes on reporting."""

    @property
    def is_canary(self) -> bool:
        """Whether we have sent it ourselves."""
        return self.id.startswith(CANARY_PREFIX)


@dataclass(frozen=True)
class Registered:
    """Who is there, by one look."""

    names: tuple[str, ...]
    """Every worker with a reporter that is there or may have left something, the first to be lost first."""
    facts: dict[str, dict[str, str]]
    """What those that are there report, by their names."""
    processes: dict[str, dict[str, str]]
    """What Sidekiq's processes without a reporter tell of themselves, by their identities."""

    def listening(self) -> list[str]:
        """The queues of workers that take tasks, each as often as one listens to it."""
        found = [queue for fact in self.facts.values() if fact["quiet"] != "1" for queue in _queues(fact)]
        for told in self.processes.values():
            if told["quiet"] != "true":
                found += json.loads(told["info"]).get("queues", [])
        return found


def registered(link: RedisLink) -> Registered:
    """Look who is there."""
    ranked, identities = link.ask_all([("ZRANGE", WORKERS, 0, -1), ("SMEMBERS", "processes")])
    names = [text(name) for name in ranked]
    known = sorted(text(identity) for identity in identities)
    answers = link.ask_all([
        *(("HMGET", f"{scripts.OURS}worker:{name}", *_FACTS) for name in names),
        *(("HMGET", identity, "info", "beat", "quiet") for identity in known),
    ])  # fmt: skip
    facts = {
        name: dict(zip(_FACTS, map(text, answer))) for name, answer in zip(names, answers) if answer[4] is not None
    }
    reporting = {fact["identity"] for fact in facts.values()}
    processes = {
        identity: dict(zip(("info", "beat", "quiet"), map(text, answer)))
        for identity, answer in zip(known, answers[len(names) :])
        if answer[0] is not None and identity not in reporting
    }
    return Registered(tuple(names), facts, processes)


def held_by(link: RedisLink, workers: Sequence[str], queues: Collection[str]) -> list[Held]:
    """What workers with a reporter hold, the first begun first.

    :param queues: those of which also a task that has been taken and not begun is told.
    """
    asked = json.dumps(list(queues))
    found: list[Held] = []
    for first in range(0, len(workers), _AT_ONCE):
        found += _read(link.run(_HOLDINGS, asked, *workers[first : first + _AT_ONCE]))
    return sorted(found, key=lambda held: float(held.start or "inf"))


def told_by(link: RedisLink, identities: Sequence[str]) -> list[Held]:
    """What Sidekiq's processes without a reporter said they were executing when they last reported."""
    found: list[Held] = []
    for first in range(0, len(identities), _AT_ONCE):
        found += _read(link.run(_TOLD, *identities[first : first + _AT_ONCE]))
    return found


def _read(answer: Sequence[Any]) -> list[Held]:
    found = []
    for *facts, task, reports in answer:
        worker, number, start, queue, known_as = map(text, facts)
        named = None if task in (b"null", b"nil") else text(task)
        found.append(Held(worker, number, start, queue, known_as, named, bool(reports)))
    return found


def seen(there: Registered, held: Sequence[Held]) -> list[WorkerSeen]:
    """Every worker that is there, sorted by name."""
    found = [_seen(name, fact, _current(name, held)) for name, fact in there.facts.items()]
    found += [_process_seen(name, told, _current(name, held)) for name, told in there.processes.items()]
    return sorted(found, key=lambda worker: worker.name)


def _current(worker: str, held: Sequence[Held]) -> Optional[str]:
    """One task that a worker executes, a canary only when there is no other."""
    mine = [task for task in held if task.worker == worker and task.start]
    return next((task.id for task in sorted(mine, key=lambda task: task.is_canary)), None)


def _seen(name: str, fact: dict[str, str], current: Optional[str]) -> WorkerSeen:
    return WorkerSeen(
        name=name,
        parsed=parse_worker_name(name),
        queues=_queues(fact),
        state="busy" if current else "suspended" if fact["quiet"] == "1" else "idle",
        pid=int(fact["pid"] or 0) or None,
        hostname=fact["hostname"] or None,
        birth=float(fact["birth"]),
        last_heartbeat=float(fact["beat"] or fact["birth"]),
        current_task=current,
        finished=max(0, int(fact["finished"] or 0)),
        failed=max(0, int(fact["failed"] or 0)),
        connected=None,
        gates=fact["gates"] or None,
    )


def _process_seen(identity: str, told: dict[str, str], current: Optional[str]) -> WorkerSeen:
    info = json.loads(told["info"])
    return WorkerSeen(
        name=identity,
        parsed=None,
        queues=tuple(info.get("queues", ())),
        state="busy" if current else "suspended" if told["quiet"] == "true" else "idle",
        pid=info.get("pid"),
        hostname=info.get("hostname"),
        birth=info.get("started_at"),
        last_heartbeat=float(told["beat"]) if told["beat"] else None,
        current_task=current,
        finished=0,
        failed=None,
        connected=None,
    )


def _queues(fact: dict[str, str]) -> tuple[str, ...]:
    return tuple(fact["queues"].split("\0")) if fact["queues"] else ()
