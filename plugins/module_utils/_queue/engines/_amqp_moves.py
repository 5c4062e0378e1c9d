# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Park and replay in RabbitMQ, which can't move a task in one step: it is copied first, and then removed.

Both are transactions, so that a mover that dies has done one, both or none; and the first one ends only
when the copies are as safe as the broker makes them, so that nothing is ever in no place. The first also writes into
``backstep.moving.<queue>`` what it has copied, and the second crosses that out. What stands there when a mover has died
is in two places: its copies are not counted, and the next call finishes with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Optional

try:
    import pika
except ImportError:  # ``open_engine`` refuses to go on without it, and says what to install
    pika = None  # so that this file can be read without it, as sanity does

from ..._rollout.errors import BrokerRefused
from ..engine import PARKED, WAITING, Moved, Selection
from ._amqp import OURS, AmqpLink, Message
from ._amqp_notes import is_canary
from ._moves import Tally, check_selection, require_owner

BATCH = 200
"""Smaller than for Redis: a batch is held back from the workers while it is copied."""
_PARKED, _MOVING = f"{OURS}parked.", f"{OURS}moving."
_LAST_ONLY = {"x-max-length": 1, "x-overflow": "drop-head"}
# What a task comes back with. An expiry would go on while it is parked.
_KEPT = "backstep-kept"


class Unfinished(NamedTuple):
    """A move whose mover died between its two steps."""

    source: str
    ids: tuple[str, ...]


def parked_queue(queue: str) -> str:
    """Where the parked tasks of a queue lie."""
    return f"{_PARKED}{queue}"


def known_as(message: Message) -> str:
    """The task's id; "" when its producer gave none. Such a task is counted, and stays where it is."""
    return str(message[1].message_id or "")


def walk(channel: Any, queue: str, count: int) -> Iterator[Message]:
    """Take up to ``count`` tasks, the next one first. What isn't acknowledged is put back when the channel closes."""
    for _number in range(count):
        message = channel.basic_get(queue)
        if message[0] is None:
            return
        yield message


def unfinished(link: AmqpLink, queue: str) -> Optional[Unfinished]:
    """What a mover that has died has left of this queue; of one that is at work, what it is about to remove."""
    if link.count(f"{_MOVING}{queue}") is None:
        return None
    with link.locked(""), link.channel() as channel:
        found = [json.loads(body) for _method, _properties, body in walk(channel, f"{_MOVING}{queue}", 10)]
    return Unfinished(found[-1]["source"], tuple(found[-1]["ids"])) if found and found[-1]["ids"] else None


@contextmanager
def moving(link: AmqpLink, queue: str) -> Iterator[None]:
    """Be the only one that takes tasks from a queue, and let others see that this lasts."""
    with link.locked(f"move.{queue}"), link.locked(f"queue.{queue}"):
        yield


def is_moving(link: AmqpLink, queue: str) -> bool:
    """Whether a mover is at work, and holds more than it will move."""
    return link.is_locked(f"move.{queue}")


def finish(link: AmqpLink, queue: str) -> list[str]:
    """Remove what was copied already; to be called under the queue's lock.

    A transaction is one step for each queue of it only, so a broker that dies may have kept the record and not the
    copies: what has none stays where it is.

    :returns: parked tasks that may run twice: a worker has taken the original of a copy, or the copy of an original.
    """
    left = unfinished(link, queue)
    if left is None:
        return []
    target = parked_queue(queue) if left.source == queue else queue
    with link.channel() as channel:
        there = {known_as(message) for message in walk(channel, target, link.count(target) or 0)}
    copied, removed = there.intersection(left.ids), set[str]()
    with link.channel() as channel:
        channel.tx_select()
        for message in walk(channel, left.source, link.count(left.source) or 0):
            if known_as(message) in copied - removed:
                removed.add(known_as(message))
                channel.basic_ack(message[0].delivery_tag)
        _note(channel, queue, left.source, [])
        channel.tx_commit()
    twice = copied - removed if left.source == queue else set(left.ids) - copied
    return [known for known in left.ids if known in twice]


class Move:
    """One park or replay."""

    def __init__(self, link: AmqpLink, selection: Selection, allowed: Sequence[str], dry_run: bool) -> None:
        check_selection(selection, allowed)
        self._link = link
        self._selection = selection
        self._dry = dry_run
        self._tally = Tally(selection.limit)

    def park(self, queues: Sequence[str], owner: str, reason: str) -> Moved:
        """Move what waits to where no worker consumes.

        :raises BadInput: ``owner`` is empty.
        """
        require_owner(owner)
        why = {"owner": owner, "reason": reason}
        for queue in queues if WAITING in self._selection.states else ():
            with moving(self._link, queue):
                self._transfer(queue, queue, parked_queue(queue), (WAITING, PARKED), why)
        return self._tally.result()

    def replay(self, queues: Sequence[str]) -> Moved:
        """Put parked tasks behind what waits."""
        for queue in queues:
            with moving(self._link, queue):
                self._transfer(queue, parked_queue(queue), queue, (PARKED, WAITING), None)
        return self._tally.result()

    def _transfer(
        self, queue: str, source: str, target: str, states: tuple[str, str], why: Optional[dict[str, str]]
    ) -> None:
        if not self._dry:
            finish(self._link, queue)
        left = unfinished(self._link, queue)  # of a dry run: what is only a copy, or has one
        doubled = left.ids if left else ()
        count = self._link.count(source) or 0
        if not self._dry and count:
            self._link.declare(parked_queue(queue))
            self._link.declare(f"{_MOVING}{queue}", _LAST_ONLY)
        with self._link.channel() as channel:
            returned: list[str] = []
            channel.add_on_return_callback(lambda _channel, method, *_rest: returned.append(method.reply_text))
            channel.tx_select()
            batch: list[Message] = []
            for message in walk(channel, source, count):
                if not self._is_wanted(message) or known_as(message) in doubled:
                    continue
                batch.append(message)
                last = len(batch) >= self._tally.left
                if last or len(batch) == BATCH:
                    self._move(channel, queue, source, target, batch, states, why, returned)
                    batch = []
                if last:
                    break
            if batch:
                self._move(channel, queue, source, target, batch, states, why, returned)

    def _move(
        self,
        channel: Any,
        queue: str,
        source: str,
        target: str,
        batch: Sequence[Message],
        states: tuple[str, str],
        why: Optional[dict[str, str]],
        returned: list[str],
    ) -> None:
        ids = [known_as(message) for message in batch]
        if not self._dry:
            for _method, properties, body in batch:
                copy = _parked(properties, why) if why is not None else _put_back(properties)
                channel.basic_publish("", target, body, copy, mandatory=True)
            _note(channel, queue, source, ids)
            channel.tx_commit()
            channel.connection.process_data_events(0)
            if returned:
                self._refuse(channel, queue, source, target)
            for method, _properties, _body in batch:
                channel.basic_ack(method.delivery_tag)
            _note(channel, queue, source, [])
            channel.tx_commit()
        self._tally.add(queue, ids, [states[0]] * len(ids), [states[1]] * len(ids))

    def _refuse(self, channel: Any, queue: str, source: str, target: str) -> None:
        _note(channel, queue, source, [])
        channel.tx_commit()
        raise BrokerRefused(
            f"The queue {target} isn't there any more: the broker returned what was put into it.",
            left=f"Those tasks are still in {source}.",
            next_step="Start the workers, which declare their queues, and run again.",
        )

    def _is_wanted(self, message: Message) -> bool:
        known, properties, chosen = known_as(message), message[1], self._selection
        if not known or is_canary(known):
            return False
        if chosen.ids and known not in chosen.ids:
            return False
        if chosen.tasks and properties.type not in chosen.tasks:
            return False
        if chosen.enqueued_after is None and chosen.enqueued_before is None:
            return True
        at = properties.timestamp
        return (
            at is not None
            and (chosen.enqueued_after is None or at > chosen.enqueued_after)
            and (chosen.enqueued_before is None or at < chosen.enqueued_before)
        )


def _note(channel: Any, queue: str, source: str, ids: Sequence[str]) -> None:
    """Write down, when the transaction ends, what has been copied and not removed yet."""
    body = json.dumps({"source": source, "ids": list(ids)}).encode()
    channel.basic_publish("", f"{_MOVING}{queue}", body, pika.BasicProperties(delivery_mode=2))


def _parked(properties: Any, why: dict[str, str]) -> Any:
    """The properties with which a task lies parked, out of its own."""
    kept = {"expiration": properties.expiration, "delivery_mode": properties.delivery_mode, **why}
    properties.headers = {**(properties.headers or {}), _KEPT: json.dumps(kept)}
    properties.expiration = None
    properties.delivery_mode = 2
    return properties


def _put_back(properties: Any) -> Any:
    """A task's own properties, out of those with which it lay parked."""
    headers = dict(properties.headers or {})
    kept = json.loads(headers.pop(_KEPT, "{}"))
    properties.headers = headers or None
    properties.expiration = kept.get("expiration")
    properties.delivery_mode = kept.get("delivery_mode")
    return properties
