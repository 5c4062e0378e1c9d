# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Park, replay and reroute for RQ: its list of waiting tasks, its registries, and names that only a payload tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from ..engine import DEAD, DEFERRED, PARKED, RETRYING, SCHEDULED, WAITING, Selection
from . import _rq_scripts as scripts
from ._moves import Fact
from ._redis import RedisLink, text
from ._redis_moves import BATCH, Batch, RedisMove
from ._rq_payload import from_time, name_in_payload, to_time

_LARGEST_PAYLOAD = 1024 * 1024
_PAYLOADS_AT_ONCE = 100


class Move(RedisMove):
    """One move of RQ tasks."""

    replay_parked = scripts.REPLAY_PARKED
    find_limit = scripts.FIND_LIMIT

    def __init__(self, link: RedisLink, selection: Selection, allowed: Sequence[str], dry_run: bool) -> None:
        super().__init__(link, selection, allowed, dry_run)
        self._want.update(
            now=to_time(float(link.ask("TIME")[0])),
            after=None if selection.enqueued_after is None else to_time(selection.enqueued_after),
            before=None if selection.enqueued_before is None else to_time(selection.enqueued_before),
        )

    def _orders(self, queue: str) -> str:
        return f"{scripts.OURS}parked:{queue}:order"

    def _park_queue(self, queue: str) -> None:
        states = set(self._selection.states)
        if WAITING in states:
            self._walk_waiting(scripts.PARK_WAITING, queue, PARKED)
        if states & {SCHEDULED, RETRYING}:
            both = {SCHEDULED, RETRYING} <= states
            self._walk_registry("scheduled", queue, {"retries": None if both else RETRYING in states})
        if DEAD in states:
            self._walk_registry("failed", queue, {})

    def _reroute_queue(self, queue: str) -> None:
        self._walk_waiting(scripts.REROUTE_WAITING, queue, WAITING)
        for registry, state in (("scheduled", SCHEDULED), ("deferred", DEFERRED), ("failed", DEAD)):
            self._walk_set(scripts.REROUTE_REGISTRY, queue, {}, (state, state), registry)

    def _walk_waiting(self, script: str, queue: str, after: str) -> None:
        def ask(want: str, skip: int) -> Batch:
            ids, seen, unnamed, facts = self._link.run(script, queue, want, skip, BATCH)
            return Batch(ids, [WAITING] * len(ids), [after] * len(ids), facts, unnamed, seen=seen)

        self._walk_list(queue, {}, ask)

    def _replay_queue(self, queue: str) -> None:
        super()._replay_queue(queue)
        if DEAD in self._selection.states:
            self._walk_set(scripts.REPLAY_DEAD, queue, {}, (DEAD, WAITING))

    def _replayed(self, answer: Sequence[Any]) -> Batch:
        ids, states, seen, unnamed, vanished, facts = answer
        return Batch(ids, [PARKED] * len(ids), [text(state) for state in states], facts, unnamed, vanished, seen)

    def _walk_registry(self, registry: str, queue: str, extra: dict[str, Any]) -> None:
        before = DEAD if registry == "failed" else RETRYING if extra.get("retries") else SCHEDULED
        self._walk_set(scripts.PARK_REGISTRY, queue, extra, (before, PARKED), registry)

    def _walk_set(
        self, script: str, queue: str, extra: dict[str, Any], states: tuple[str, str], *arguments: str
    ) -> None:
        before, after = states
        cursor = None
        while self._tally.left > 0 and cursor != b"0":

            def ask(want: str, cursor: bytes = cursor or b"0") -> Batch:
                following, ids, unnamed, facts = self._link.run(script, queue, want, cursor, BATCH, *arguments)
                return Batch(ids, [before] * len(ids), [after] * len(ids), facts, unnamed, cursor=following)

            first, _removed = self._do(queue, extra, ask)
            cursor = first.cursor

    def _named(self, ids: Sequence[bytes]) -> list[str]:
        names = self._by_payload([text(task_id) for task_id in ids])
        return [task_id for task_id, name in names.items() if name in self._selection.tasks]

    def _facts(self, ids: Sequence[str], told: Sequence[bytes]) -> list[Fact]:
        names = [text(task) or None for task in told[::2]]
        hidden = self._by_payload([task_id for task_id, name in zip(ids, names) if name is None])
        times = [from_time(text(at)) for at in told[1::2]]
        return [(name or hidden[task_id], at) for task_id, name, at in zip(ids, names, times)]

    def _by_payload(self, ids: Sequence[str]) -> dict[str, Optional[str]]:
        return dict(zip(ids, payload_names(self._link, ids)))


def payload_names(link: RedisLink, ids: Sequence[str]) -> list[Optional[str]]:
    """The task names in the payloads of these jobs; ``None`` where it can't be told, or the payload is huge."""
    names: list[Optional[str]] = []
    for start in range(0, len(ids), _PAYLOADS_AT_ONCE):
        keys = [f"rq:job:{task_id}" for task_id in ids[start : start + _PAYLOADS_AT_ONCE]]
        sizes = link.ask_all([("HSTRLEN", key, "data") for key in keys])
        fields = ["data" if size <= _LARGEST_PAYLOAD else "" for size in sizes]
        payloads = link.ask_all([("HGET", key, field) for key, field in zip(keys, fields)])
        names += [name_in_payload(data) if data else None for data in payloads]
    return names
