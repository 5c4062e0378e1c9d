# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engines on Redis have in common: one link, how it is checked, how tasks are moved, and no pause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Optional

from ..engine import CANARY_PREFIX, RETRYING, SCHEDULED, WAITING, DeadTask, Moved, Selection
from ._dead import last_line
from ._moves import Moving, TaskMove
from ._pauseless import Pauseless
from ._redis import Command, RedisLink, text
from ._redis_moves import BATCH, RedisMove

# ARGV: hash, then ids, each with its mark; takes out those that have this mark still.
_FORGET = """
for i = 2, #ARGV, 2 do
  if redis.call('HGET', ARGV[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', ARGV[1], ARGV[i]) end
end
"""


class RedisEngine(Moving):
    """An engine that keeps its tasks in one Redis database."""

    reading: ClassVar[Sequence[Command]]
    """One harmless use of each command that reading takes."""
    proof: ClassVar[str]
    """A script that tries what writing takes, as ``RedisLink.check`` runs it."""
    move: ClassVar[type[RedisMove]]
    """How its tasks are parked and replayed."""
    list_dead: ClassVar[str] = ""
    """A script. ARGV: queue, cursor, count -> {next cursor, for each dead task {id, name, enqueued, died, mark, error,
    worker, expires}}; "" where the engine has no place for them."""

    def __init__(self, url: str, timeout: float) -> None:
        self._link = RedisLink(url, timeout, rights=self.rights)

    def close(self) -> None:
        self._link.close()

    def check(self, write: bool) -> dict[str, Any]:
        return self._link.check(self.reading, self.proof if write else "")

    def dead_tasks(self, queues: Sequence[str]) -> list[DeadTask]:
        found: dict[tuple[str, str], DeadTask] = {}  # a scan may tell one twice
        for queue in queues if self.list_dead else ():
            for (rows,) in self._link.pages(self.list_dead, queue, count=BATCH):
                tasks = (task for task in self._dead_of(queue, rows) if not task.id.startswith(CANARY_PREFIX))
                found.update(((queue, task.id), task) for task in tasks)
        return list(found.values())

    def _dead_of(self, queue: str, rows: Sequence[Sequence[bytes]]) -> list[DeadTask]:
        """What ``list_dead`` has told."""
        return [
            DeadTask(
                id=text(known),
                task=text(task) or None,
                queue=queue,
                enqueued=float(enqueued) if enqueued else None,
                died=float(died) if died else None,
                mark=text(mark),
                error=last_line(text(error)),
                worker=text(worker) or None,
                expires=float(expires) if expires else None,
            )
            for known, task, enqueued, died, mark, error, worker, expires in rows
        ]

    def parked_by(self, queues: Sequence[str]) -> set[str]:
        keys = [f"{self._ours()}parked:{queue}:why" for queue in queues]
        return {text(owner) for owners in self._link.ask_all([("HKEYS", key) for key in keys]) for owner in owners}

    def _ours(self) -> str:
        """How Backstep's own keys begin."""
        return f"backstep:{self.name}:"

    def read_book(self, book: str) -> dict[str, str]:
        return {text(line): text(said) for line, said in self._link.ask("HGETALL", self._book(book)).items()}

    def write_book(self, book: str, lines: Mapping[str, Optional[str]], seconds: Optional[int] = None) -> None:
        key, out = self._book(book), [line for line, said in lines.items() if said is None]
        said = [word for line, said in lines.items() if said is not None for word in (line, said)]
        commands: list[Command] = [("HSET", key, *said)] if said else []
        commands += [("HDEL", key, *out)] if out else []
        self._link.ask_all([*commands, *([("EXPIRE", key, seconds)] if seconds else [])])

    def gated(self, queues: Sequence[str], task: str) -> dict[str, str]:
        found = self._link.ask("HGETALL", self._gated(task))
        return {text(known): text(mark) for known, mark in found.items()}

    def forget_gated(self, task: str, marks: Mapping[str, str]) -> None:
        pairs = list(marks.items())
        for start in range(0, len(pairs), BATCH):
            some = [word for pair in pairs[start : start + BATCH] for word in pair]
            self._link.run(_FORGET, self._gated(task), *some)

    def _book(self, book: str) -> str:
        return f"{self._ours()}book:{book}"

    def _gated(self, task: str) -> str:
        return f"{self._ours()}gated:{task}"

    def reroute(self, source: str, target: str, dry_run: bool = False) -> Moved:
        if not self.capabilities.reroutes:
            return super().reroute(source, target, dry_run)
        everything = (WAITING, SCHEDULED, RETRYING, *self._dead())
        return self.move(self._link, Selection(everything), everything, dry_run).reroute(source, target)

    def _move(self, queues: Sequence[str], selection: Selection, allowed: Sequence[str], dry_run: bool) -> TaskMove:
        return self.move(self._link, selection, allowed, dry_run)


class PauselessEngine(Pauseless, RedisEngine):
    """One on Redis without a pause."""
