# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Park and replay for RQ: what to ask Redis for, batch by batch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional

from ..._rollout.errors import BadInput
from ..engine import CANARY_PREFIX, DEAD, LISTED_AT_MOST, PARKED, RETRYING, SCHEDULED, WAITING, Moved, Selection
from . import _rq_scripts as scripts
from ._redis import RedisLink, text
from ._rq_payload import name_in_payload, to_time

BATCH = 1000
_NO_LIMIT = 2**53
_LARGEST_PAYLOAD = 1024 * 1024
_PAYLOADS_AT_ONCE = 100


class _Batch(NamedTuple):
    """One script's answer."""

    ids: Sequence[bytes]
    before: str
    """The state that they were in."""
    after: Sequence[str]
    """The state that each of them is in now."""
    unnamed: Sequence[bytes]
    """Ids of tasks whose description doesn't tell their name."""
    vanished: Sequence[bytes] = ()
    seen: int = 0
    cursor: bytes = b"0"


class _Tally:
    """What has been moved so far."""

    def __init__(self, limit: Optional[int]) -> None:
        self.left = _NO_LIMIT if limit is None else limit
        self.by_queue: Counter[str] = Counter()
        self.before: Counter[str] = Counter()
        self.after: Counter[str] = Counter()
        self.ids: list[str] = []
        self.vanished: list[str] = []

    def add(self, queue: str, batch: _Batch) -> None:
        self.by_queue[queue] += len(batch.ids)
        self.before[batch.before] += len(batch.ids)
        self.after.update(batch.after)
        self.left -= len(batch.ids)
        self.ids.extend(text(task_id) for task_id in batch.ids[: max(0, LISTED_AT_MOST - len(self.ids))])
        self.vanished.extend(text(task_id) for task_id in batch.vanished)

    def result(self) -> Moved:
        return Moved(
            by_queue={queue: count for queue, count in self.by_queue.items() if count},
            before={state: count for state, count in self.before.items() if count},
            after=dict(self.after),
            ids=tuple(self.ids),
            vanished=tuple(dict.fromkeys(self.vanished)),
        )


class Move:
    """One park or replay: a selection, as the scripts read it, and what has been done about it."""

    def __init__(self, link: RedisLink, selection: Selection, allowed: Sequence[str], dry_run: bool) -> None:
        _check(selection, allowed)
        self._link = link
        self._selection = selection
        self._dry = dry_run
        self._tally = _Tally(selection.limit)
        self._want: dict[str, Any] = {
            "canary": CANARY_PREFIX,
            "dry": dry_run,
            "now": to_time(float(link.ask("TIME")[0])),
            "ids": dict.fromkeys(selection.ids, True) or None,
            "tasks": dict.fromkeys(selection.tasks, True) or None,
            "after": None if selection.enqueued_after is None else to_time(selection.enqueued_after),
            "before": None if selection.enqueued_before is None else to_time(selection.enqueued_before),
        }

    def park(self, queues: Sequence[str], owner: str, reason: str) -> Moved:
        """Park from every selected state of every queue."""
        self._want.update(owner=owner, reason=reason)
        states = set(self._selection.states)
        for queue in queues:
            if WAITING in states:
                self._walk_waiting(queue)
            if states & {SCHEDULED, RETRYING}:
                both = {SCHEDULED, RETRYING} <= states
                retries = None if both else RETRYING in states
                self._walk_registry("scheduled", queue, {"retries": retries})
            if DEAD in states:
                self._walk_registry("failed", queue, {})
            if not self._dry:
                # The next park's tasks are younger and get larger order numbers.
                self._link.ask("HDEL", f"{scripts.OURS}parked:{queue}:order", owner)
        return self._tally.result()

    def replay(self, queues: Sequence[str]) -> Moved:
        """Put back what is parked, then what is dead."""
        for queue in queues:
            if PARKED in self._selection.states:
                self._walk_parked(queue)
            if DEAD in self._selection.states:
                self._walk_set(scripts.REPLAY_DEAD, queue, {}, (DEAD, WAITING))
        return self._tally.result()

    def _walk_waiting(self, queue: str) -> None:
        skip, seen = 0, BATCH
        while self._tally.left > 0 and seen == BATCH:

            def ask(want: str, skip: int = skip) -> _Batch:
                ids, seen, unnamed = self._link.run(scripts.PARK_WAITING, queue, want, skip, BATCH)
                return _Batch(ids, WAITING, [PARKED] * len(ids), unnamed, seen=seen)

            first, removed = self._do(queue, {}, ask)
            seen = first.seen
            skip += seen - removed

    def _walk_registry(self, registry: str, queue: str, extra: dict[str, Any]) -> None:
        before = DEAD if registry == "failed" else RETRYING if extra.get("retries") else SCHEDULED
        self._walk_set(scripts.PARK_REGISTRY, queue, extra, (before, PARKED), registry)

    def _walk_set(
        self, script: str, queue: str, extra: dict[str, Any], states: tuple[str, str], *arguments: str
    ) -> None:
        before, after = states
        cursor = None
        while self._tally.left > 0 and cursor != b"0":

            def ask(want: str, cursor: bytes = cursor or b"0") -> _Batch:
                following, ids, unnamed = self._link.run(script, queue, want, cursor, BATCH, *arguments)
                return _Batch(ids, before, [after] * len(ids), unnamed, cursor=following)

            first, _removed = self._do(queue, extra, ask)
            cursor = first.cursor

    def _walk_parked(self, queue: str) -> None:
        highest = self._highest_order(queue)
        skip, seen = 0, BATCH
        while self._tally.left > 0 and seen == BATCH:

            def ask(want: str, skip: int = skip) -> _Batch:
                ids, states, seen, unnamed, vanished = self._link.run(
                    scripts.REPLAY_PARKED, queue, want, skip, BATCH, highest
                )
                return _Batch(ids, PARKED, [text(state) for state in states], unnamed, vanished, seen=seen)

            first, removed = self._do(queue, {}, ask)
            seen = first.seen
            skip += seen - removed

    def _do(self, queue: str, extra: dict[str, Any], ask: Callable[[str], _Batch]) -> tuple[_Batch, int]:
        """Move one batch, and again by id those of it whose names only their payloads tell.

        :returns: the first answer, and how many entries are no longer where they were.
        """
        first = ask(self._as_json(extra))
        removed = self._note(queue, first)
        matching = self._named(first.unnamed)
        if matching and self._tally.left > 0:
            by_id = {"ids": dict.fromkeys(matching, True), "tasks": None}
            removed += self._note(queue, ask(self._as_json({**extra, **by_id})))
        return first, removed

    def _note(self, queue: str, batch: _Batch) -> int:
        self._tally.add(queue, batch)
        return 0 if self._dry else len(batch.ids) + len(batch.vanished)

    def _as_json(self, extra: dict[str, Any], limit: Optional[int] = None) -> str:
        want = {**self._want, **extra, "limit": self._tally.left if limit is None else limit}
        return json.dumps({key: value for key, value in want.items() if value is not None})

    def _highest_order(self, queue: str) -> str:
        """Up to which order number to replay, so that a limit takes the oldest."""
        if self._selection.limit is None:
            return "+inf"
        skip, seen, left, highest = 0, BATCH, self._tally.left, "+inf"
        while left > 0 and seen == BATCH:
            matches, last, seen = self._link.run(scripts.FIND_LIMIT, queue, self._as_json({}, left), skip, BATCH)
            left -= matches
            skip += BATCH
            highest = text(last) if left <= 0 else highest
        return highest

    def _named(self, ids: Sequence[bytes]) -> list[str]:
        wanted = []
        for start in range(0, len(ids), _PAYLOADS_AT_ONCE):
            some = [text(task_id) for task_id in ids[start : start + _PAYLOADS_AT_ONCE]]
            for task_id, name in zip(some, payload_names(self._link, some)):
                if name in self._selection.tasks:
                    wanted.append(task_id)
        return wanted


def payload_names(link: RedisLink, ids: Sequence[str]) -> list[Optional[str]]:
    """The task names in the payloads of these jobs; ``None`` where it can't be told, or the payload is huge."""
    sizes = link.ask_all([("HSTRLEN", f"rq:job:{task_id}", "data") for task_id in ids])
    fields = ["data" if size <= _LARGEST_PAYLOAD else "" for size in sizes]
    payloads = link.ask_all([("HGET", f"rq:job:{task_id}", field) for task_id, field in zip(ids, fields)])
    return [name_in_payload(data) if data else None for data in payloads]


def _check(selection: Selection, allowed: Sequence[str]) -> None:
    wrong = [state for state in selection.states if state not in allowed]
    if wrong or not selection.states:
        raise BadInput(
            f"Tasks can't be selected by the states {wrong or 'none'} here; these can: {', '.join(allowed)}.",
            left="No task was moved.",
        )
    if selection.limit is not None and selection.limit < 1:
        raise BadInput(f"A limit of {selection.limit} selects nothing; give at least 1.", left="No task was moved.")
