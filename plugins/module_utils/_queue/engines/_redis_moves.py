# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Park, replay and reroute in Redis, batch by batch: what the engines that keep their queues there have in common.

An engine brings the scripts, each of which moves one batch in one atomic step. They read the same selection (JSON) and
give answers of the same form; see ``Batch``.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional

from ..engine import CANARY_PREFIX, PARKED, Moved, Selection
from ._moves import Fact, Tally, check_selection, require_owner
from ._redis import RedisLink, text

BATCH = 1000


class Batch(NamedTuple):
    """One script's answer."""

    ids: Sequence[bytes]
    before: Sequence[str]
    """The state that each of them was in."""
    after: Sequence[str]
    """The state that each of them is in now."""
    facts: Sequence[bytes]
    """Flat list of the name of each and of when it was enqueued, "" for what the script can't tell."""
    unnamed: Sequence[bytes] = ()
    """Ids of tasks that may be wanted by their names, which the script can't tell."""
    vanished: Sequence[bytes] = ()
    seen: int = 0
    cursor: bytes = b"0"


class RedisMove(ABC):
    """One move: a selection, as the scripts read it, and what has been done about it."""

    replay_parked: str
    """Script. ARGV: queue, selection, skip, count, highest order; walks from the last parked task forward."""
    find_limit: str
    """Script. ARGV: queue, selection, skip, count -> {matches, order of the last match, entries seen}; oldest first."""

    def __init__(self, link: RedisLink, selection: Selection, allowed: Sequence[str], dry_run: bool) -> None:
        check_selection(selection, allowed)
        self._link = link
        self._selection = selection
        self._dry = dry_run
        self._tally = Tally(selection.limit)
        self._want: dict[str, Any] = {
            "canary": CANARY_PREFIX,
            "dry": dry_run,
            "ids": dict.fromkeys(selection.ids, True) or None,
            "tasks": dict.fromkeys(selection.tasks, True) or None,
        }

    def park(self, queues: Sequence[str], owner: str, reason: str) -> Moved:
        """Park from every selected state of every queue.

        :raises BadInput: ``owner`` is empty.
        """
        require_owner(owner)
        self._want.update(owner=owner, reason=reason)
        for queue in queues:
            self._park_queue(queue)
            if not self._dry:
                # The next park's tasks are younger and get larger order numbers.
                self._link.ask("HDEL", self._orders(queue), owner)
        return self._tally.result()

    def replay(self, queues: Sequence[str]) -> Moved:
        """Put back what was selected."""
        for queue in queues:
            self._replay_queue(queue)
        return self._tally.result()

    def reroute(self, queue: str, target: str) -> Moved:
        """Move what was selected to another queue, where it comes before what waits there."""
        # As those write it who put the name of a task's queue into its message.
        self._want.update(target=target, named=json.dumps(target))
        self._reroute_queue(queue)
        return self._tally.result()

    def _reroute_queue(self, queue: str) -> None:
        """Move from every place of a queue; for an engine that can (``Capabilities.reroutes``)."""
        raise NotImplementedError

    @abstractmethod
    def _park_queue(self, queue: str) -> None:
        """Park from every selected state."""

    def _replay_queue(self, queue: str) -> None:
        if PARKED in self._selection.states:
            self._walk_parked(queue)

    @abstractmethod
    def _orders(self, queue: str) -> str:
        """The key in which the order numbers of unfinished parks are kept, by owner."""

    @abstractmethod
    def _replayed(self, answer: Sequence[Any]) -> Batch:
        """The answer of ``replay_parked``."""

    def _named(self, ids: Sequence[bytes]) -> list[str]:
        """Those of the unnamed tasks whose names were selected."""
        return []

    def _walk_list(self, queue: str, extra: dict[str, Any], ask: Callable[[str, int], Batch]) -> None:
        """Have a script walk a list. What it moves away makes room, so the next batch begins that much earlier."""
        skip, seen = 0, BATCH
        while self._tally.left > 0 and seen == BATCH:

            def ask_here(want: str, skip: int = skip) -> Batch:
                return ask(want, skip)

            first, removed = self._do(queue, extra, ask_here)
            seen = first.seen
            skip += seen - removed

    def _walk_parked(self, queue: str) -> None:
        highest = self._highest_order(queue)
        self._walk_list(
            queue,
            {},
            lambda want, skip: self._replayed(
                self._link.run(self.replay_parked, queue, want, skip, BATCH, highest)
            ),
        )

    def _do(self, queue: str, extra: dict[str, Any], ask: Callable[[str], Batch]) -> tuple[Batch, int]:
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

    def _note(self, queue: str, batch: Batch) -> int:
        ids, vanished = [text(known) for known in batch.ids], [text(known) for known in batch.vanished]
        self._tally.add(queue, ids, batch.before, batch.after, self._facts(ids, batch.facts), vanished)
        return 0 if self._dry else len(batch.ids) + len(batch.vanished)

    def _facts(self, ids: Sequence[str], told: Sequence[bytes]) -> list[Fact]:
        """Names and times of these tasks, out of what a script has told."""
        return [(text(task) or None, float(at) if at else None) for task, at in zip(told[::2], told[1::2])]

    def _as_json(self, extra: dict[str, Any], limit: Optional[int] = None) -> str:
        want = {**self._want, **extra, "limit": self._tally.left if limit is None else limit}
        return json.dumps({key: value for key, value in want.items() if value is not None})

    def _highest_order(self, queue: str) -> str:
        """Up to which order number to replay, so that a limit takes the oldest."""
        if self._selection.limit is None:
            return "+inf"
        skip, seen, left, highest = 0, BATCH, self._tally.left, "+inf"
        while left > 0 and seen == BATCH:
            matches, last, seen = self._link.run(self.find_limit, queue, self._as_json({}, left), skip, BATCH)
            left -= matches
            skip += BATCH
            highest = text(last) if left <= 0 else highest
        return highest
