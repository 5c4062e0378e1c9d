# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has a consumer of Redis Streams keep gates: the app's own program imports this file, which each release gets.

``Gates`` is made before the consumer is, and asked about each entry before that is executed; docs/engines.md shows it.
What isn't to be executed is parked as ``task_move`` does that, in the same step in which it ceases to be the worker's,
and put back like all else. The line of a task's gate is asked for whenever there is a task, so the worker tells
``gates`` ``fresh`` in its hash, ``backstep:streams:worker:<name>``. It tells nothing, and keeps none, with
``KEEP_GATES: "no"`` in ``pool_env``, and where its user may not read the gates.
Python 3.9, the standard library, and the app's own redis.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection, Mapping
from typing import Any, Callable

from backstep_gates import UNKNOWN, UNREADABLE, keeps_gates, owner, parks_unknown_tasks, why_held
from redis.exceptions import RedisError, ResponseError

_OURS = "backstep:streams:"
_BOOK = f"{_OURS}book:gates"
_REST_SECONDS = 1.0
# What the script says.
_CHANGED, _SHARED = 2, 3
# ARGV: queue, group, consumer, entry, id, owner, reason, name of a gate or "", its line, the entry's fields -> 1 when
# it is parked, 0 when it isn't this consumer's any more, 2 when the gate says something else, and 3 when other groups
# read the stream, too: to take it out would take it from them. What may be refused is done first. The fields are for an
# entry that was trimmed away meanwhile.
_PARK = """
local queue, entry, known, gate = ARGV[1], ARGV[4], ARGV[5], ARGV[8]
local parked = 'backstep:streams:parked:' .. queue
if #redis.call('XPENDING', queue, ARGV[2], entry, entry, 1, ARGV[3]) == 0 then return 0 end
if gate ~= '' and redis.call('HGET', 'backstep:streams:book:gates', gate) ~= ARGV[9] then return 2 end
if #redis.call('XINFO', 'GROUPS', queue) > 1 then return 3 end
local found, fields = redis.call('XRANGE', queue, entry, entry)[1], {}
for i = 10, #ARGV do fields[i - 9] = ARGV[i] end
if found then fields = found[2] end
local at, number = string.match(entry, '^(%d+)%-(%d+)$')
local member = at .. '-' .. string.rep('0', 20 - #number) .. number
redis.call('ZADD', parked, at, member)
redis.call('HSET', parked .. ':entries', member, cmsgpack.pack(fields))
redis.call('HSET', parked .. ':why', ARGV[6], ARGV[7])
if gate ~= '' then redis.call('HSET', 'backstep:streams:gated:' .. gate, known, member) end
redis.call('XACK', queue, ARGV[2], entry)
redis.call('XDEL', queue, entry)
return 1
"""

_log = logging.getLogger(__name__)


class SeveralGroupsReadThisStream(ResponseError):
    """What one of them parked would be taken from the others."""


class Gates:
    """What one consumer doesn't execute."""

    def __init__(
        self,
        broker: Any,
        stopping: Callable[[], object],
        tasks: Collection[str] | None = None,
        group: str = "workers",
        reads: Callable[[Mapping[Any, Any]], object] | None = None,
    ) -> None:
        """Make it before the consumer, so that no consumer is seen that hasn't told yet that it keeps gates.

        :param broker: a client of redis, with ``decode_responses`` or without.
        :param stopping: whether the worker is to end; it then doesn't wait for Redis any more.
        :param tasks: names of the tasks that the worker can execute; others are parked. ``None``: execute whatever
            there is.
        :param group: of the consumer, on each of its streams.
        :param reads: raises whatever it likes where the worker can't read an entry, given its fields; such are parked.
        :raises RedisError: Redis can't be asked.
        """
        self._broker, self._stopping, self._group = broker, stopping, group
        self._tasks, self._reads = (tasks, reads) if parks_unknown_tasks() else (None, None)
        self._name = os.environ.get("BACKSTEP_WORKER", "")
        self._rest = threading.Event()
        self._keeps_gates = keeps_gates() and self._may_read()
        if self._keeps_gates and self._name:
            broker.hset(f"{_OURS}worker:{self._name}", "gates", "fresh")

    def _may_read(self) -> bool:
        try:
            self._broker.hget(_BOOK, "")
        except ResponseError as error:
            _log.warning("This worker keeps no gates, as it may not read them: %s", type(error).__name__)
            return False
        return True

    def held(self, queue: Any, entry: Any, fields: Mapping[Any, Any]) -> bool:
        """Whether an entry that was read isn't this worker's to execute; then there is nothing to do, nor to
        acknowledge, nor to count. Waits while Redis can't be asked.

        :raises RedisError: Redis can't be asked, and the worker is to end: leave everything as it is.
        """
        found = {_text(key): _text(value) for key, value in fields.items()}
        if not found or found.get("backstep_canary"):
            return False  # without fields it was trimmed away, and there is nothing to keep
        taken = (_text(queue), self._group, self._name, _text(entry), found.get("id") or _text(entry))
        task = found.get("task", "")
        whole = [word for field in fields.items() for word in field]
        waits = False
        while True:
            try:
                why = self._lack(task, fields)
                if why and self._is_left(why, taken, whole):
                    return True
                return self._keeps_gates and self._is_held(task, taken, whole)
            except RedisError as error:
                # Only its kind: the text could hold the broker's password.
                if not waits:
                    _log.warning("Task %s waits until its gate can be kept: %s", taken[-1], type(error).__name__)
                waits = True
                if self._stopping():
                    raise
                self._rest.wait(_REST_SECONDS)

    def _lack(self, task: str, fields: Mapping[Any, Any]) -> str:
        """Why the release can't execute it; "" where it can."""
        if self._tasks is not None and task not in self._tasks:
            return UNKNOWN
        try:
            if self._reads is not None:
                self._reads(fields)
        except Exception:  # noqa: BLE001  # whatever it is, the task's arguments can't be had
            return UNREADABLE
        return ""

    def _is_left(self, why: str, taken: tuple[str, ...], whole: list[Any]) -> bool:
        try:
            self._park(taken, (self._name, why, "", ""), whole)
        except ResponseError as error:
            kind = type(error).__name__
            _log.warning("Task %s, which this release can't execute, can't be parked: %s", taken[-1], kind)
            return False
        _log.warning("Task %s is parked: %s", taken[-1], why)
        return True

    def _is_held(self, task: str, taken: tuple[str, ...], whole: list[Any]) -> bool:
        while True:
            line = self._broker.hget(_BOOK, task)
            why = why_held(line, taken[-1])
            if not why:
                return False
            if self._park(taken, (owner(task), why, task, line), whole) != _CHANGED:
                _log.warning("Task %s of %s is parked: %s", taken[-1], task, why)
                return True

    def _park(self, taken: tuple[str, ...], why: tuple[Any, ...], whole: list[Any]) -> int:
        """What the script has said, which is that the task isn't this worker's any more, or ``_CHANGED``."""
        answer: int = self._broker.eval(_PARK, 0, *taken, *why, *whole)
        if answer == _SHARED:
            raise SeveralGroupsReadThisStream
        return answer


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
