# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Park, replay and reroute in RabbitMQ, which can't move a task in one step: it is copied first, and then removed.

Both are transactions, so that a mover that dies has done one, both or none; and the first one ends only
when the copies are as safe as the broker makes them, so that nothing is ever in no place. The first also writes into
``backstep.moving.<queue>`` what it has copied, and the second crosses that out. What stands there when a mover has died
is in two places: it is counted in one of them, and the next call finishes with it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, NamedTuple, Optional

try:
    import pika
except ImportError:  # ``open_engine`` refuses to go on without it, and says what to install
    pika = None  # so that this file can be read without it, as sanity does

from ..._rollout.errors import BrokerRefused
from ..engine import DEAD, PARKED, WAITING, Moved, Selection
from ._amqp import OURS, AmqpLink
from ._amqp_messages import KEPT, Message, Messages, is_canary, kept_of, parked_queue
from ._moves import Tally, check_selection, require_owner

BATCH = 200
"""Smaller than for Redis: a batch is held back from the workers while it is copied."""
_MOVING = f"{OURS}moving."
_LAST_ONLY = {"x-max-length": 1, "x-overflow": "drop-head"}


class Unfinished(NamedTuple):
    """A move whose mover died between its two steps."""

    source: str
    targets: tuple[str, ...]
    ids: tuple[str, ...]

    def hidden(self, messages: Messages, queue: str, place: str) -> Collection[str]:
        """The tasks that are not to be counted in a place of the queue, as they are counted in another."""
        counted_in_targets = messages.is_inert(self.source, queue)
        uncounted = (self.source,) if counted_in_targets else self.targets
        return self.ids if place in uncounted else ()


class _Copy(NamedTuple):
    """What a task becomes when it is moved."""

    target: str
    properties: Any
    before: str
    """The state it is in, and then the one it will be in."""
    after: str
    body: Optional[bytes] = None
    """``None`` for the one that it has."""


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
    if not found or not found[-1]["ids"]:
        return None
    return Unfinished(found[-1]["source"], tuple(found[-1]["targets"]), tuple(found[-1]["ids"]))


@contextmanager
def moving(link: AmqpLink, queue: str) -> Iterator[None]:
    """Be the only one that takes tasks from a queue, and let others see that this lasts."""
    with link.locked(f"move.{queue}"), link.locked(f"queue.{queue}"):
        yield


def is_moving(link: AmqpLink, queue: str) -> bool:
    """Whether a mover is at work, and holds more than it will move."""
    return link.is_locked(f"move.{queue}")


def finish(link: AmqpLink, messages: Messages, queue: str) -> list[str]:
    """Remove what was copied already; to be called under the queue's lock.

    A transaction is one step for each queue of it only, so a broker that dies may have kept the record and not the
    copies: what has none stays where it is.

    :returns: tasks that may run twice: a worker has taken the original of a copy, or the copy of an original.
    """
    left = unfinished(link, queue)
    if left is None:
        return []
    there: set[str] = set()
    for target in left.targets:
        with link.channel() as channel:
            there.update(messages.id(message) for message in walk(channel, target, link.count(target) or 0))
    copied, removed = there.intersection(left.ids), set[str]()
    with link.channel() as channel:
        channel.tx_select()
        for message in walk(channel, left.source, link.count(left.source) or 0):
            if messages.id(message) in copied - removed:
                removed.add(messages.id(message))
                channel.basic_ack(message[0].delivery_tag)
        _note(channel, queue, left.source, (), ())
        channel.tx_commit()
    twice = set() if messages.is_inert(left.source, queue) else copied - removed
    if not all(messages.is_inert(target, queue) for target in left.targets):
        twice |= set(left.ids) - copied
    return [known for known in left.ids if known in twice]


class Move:
    """One move."""

    def __init__(
        self, link: AmqpLink, messages: Messages, selection: Selection, allowed: Sequence[str], dry_run: bool
    ) -> None:
        check_selection(selection, allowed)
        messages.check(selection)
        self._link = link
        self._messages = messages
        self._selection = selection
        self._dry = dry_run
        self._tally = Tally(selection.limit)

    def park(self, queues: Sequence[str], owner: str, reason: str) -> Moved:
        """Move what waits to where no worker consumes.

        :raises BadInput: ``owner`` is empty.
        """
        require_owner(owner)
        for queue in queues:
            places = self._messages.places(queue).items()
            wanted = [place for place, states in places if set(states) & set(self._selection.states)]
            with moving(self._link, queue):
                for place in wanted:
                    self._transfer(queue, place, self._parking(queue, place, {"owner": owner, "reason": reason}))
        return self._tally.result()

    def _parking(self, queue: str, place: str, why: dict[str, str]) -> Callable[[Message], _Copy]:
        def copy(message: Message) -> _Copy:
            state = self._messages.state(place, message)
            kept = {"place": place, "state": state, **why}
            return _Copy(parked_queue(queue), _parked(message[1], kept), state, PARKED)

        return copy

    def replay(self, queues: Sequence[str]) -> Moved:
        """Put parked tasks behind what waits where they were; dead ones, wherever they are, behind what waits."""
        for queue in queues:
            dead_place = self._messages.dead_place(queue)
            with moving(self._link, queue):
                if PARKED in self._selection.states:
                    self._transfer(queue, parked_queue(queue), partial(_replayed, queue))
                if DEAD in self._selection.states and dead_place:
                    self._transfer(queue, dead_place, self._to(queue, DEAD, WAITING))
        return self._tally.result()

    def reroute(self, queue: str, target: str) -> Moved:
        """Move what lies in each place of a queue behind what lies in that place of another one."""
        places = zip(self._messages.places(queue), self._messages.places(target))
        with moving(self._link, queue):
            for place, other in places:
                self._transfer(queue, place, self._rerouting((queue, place), (target, other)))
        return self._tally.result()

    def _rerouting(self, source: tuple[str, str], target: tuple[str, str]) -> Callable[[Message], _Copy]:
        def copy(message: Message) -> _Copy:
            state = self._messages.state(source[1], message)
            return _Copy(target[1], message[1], state, state, self._messages.renamed(message, source[0], target[0]))

        return copy

    def bury(self, queue: str, dead_place: str) -> Moved:
        """Move what waits to the dead ones."""
        with moving(self._link, queue):
            self._transfer(queue, queue, self._to(dead_place, WAITING, DEAD))
        return self._tally.result()

    @staticmethod
    def _to(target: str, before: str, after: str) -> Callable[[Message], _Copy]:
        return lambda message: _Copy(target, message[1], before, after)

    def _transfer(self, queue: str, source: str, copy: Callable[[Message], _Copy]) -> None:
        if not self._dry:
            finish(self._link, self._messages, queue)
        left = unfinished(self._link, queue)  # of a dry run: what is only a copy, or has one
        doubled = left.ids if left else ()
        count = self._link.count(source) or 0
        if not self._dry and count:
            self._link.declare(parked_queue(queue))
            self._link.declare(f"{_MOVING}{queue}", _LAST_ONLY)
        with self._link.channel() as channel:
            returned: list[str] = []
            channel.add_on_return_callback(lambda _channel, method, *_rest: returned.append(method.routing_key))
            channel.tx_select()
            batch: list[tuple[Message, _Copy]] = []
            for message in walk(channel, source, count) if self._tally.left else ():
                if not self._is_wanted(message) or self._messages.id(message) in doubled:
                    continue
                made = copy(message)
                if made.before not in (PARKED, *self._selection.states):
                    continue
                batch.append((message, made))
                last = len(batch) >= self._tally.left
                if last or len(batch) == BATCH:
                    self._move(channel, queue, source, batch, returned)
                    batch = []
                if last:
                    break
            if batch:
                self._move(channel, queue, source, batch, returned)

    def _move(
        self, channel: Any, queue: str, source: str, batch: Sequence[tuple[Message, _Copy]], returned: list[str]
    ) -> None:
        ids = [self._messages.id(message) for message, _copy in batch]
        if not self._dry:
            for message, copy in batch:
                body = message[2] if copy.body is None else copy.body
                channel.basic_publish("", copy.target, body, copy.properties, mandatory=True)
            _note(channel, queue, source, sorted({copy.target for _message, copy in batch}), ids)
            channel.tx_commit()
            channel.connection.process_data_events(0)
            if returned:
                self._refuse(channel, queue, source, returned[0])
            for message, _copy in batch:
                channel.basic_ack(message[0].delivery_tag)
            _note(channel, queue, source, (), ())
            channel.tx_commit()
        facts = [(self._messages.task(message), self._messages.enqueued(message)) for message, _copy in batch]
        before, after = [copy.before for _message, copy in batch], [copy.after for _message, copy in batch]
        self._tally.add(queue, ids, before, after, facts)

    def _refuse(self, channel: Any, queue: str, source: str, target: str) -> None:
        _note(channel, queue, source, (), ())
        channel.tx_commit()
        raise BrokerRefused(
            f"The queue {target} isn't there any more: the broker returned what was put into it.",
            left=f"Those tasks are still in {source}.",
            next_step="Start the workers, which declare their queues, and run again.",
        )

    def _is_wanted(self, message: Message) -> bool:
        known, chosen = self._messages.id(message), self._selection
        if not known or is_canary(known):
            return False
        if chosen.ids and known not in chosen.ids:
            return False
        if chosen.tasks and self._messages.task(message) not in chosen.tasks:
            return False
        if chosen.enqueued_after is None and chosen.enqueued_before is None:
            return True
        at = self._messages.enqueued(message)
        return (
            at is not None
            and (chosen.enqueued_after is None or at > chosen.enqueued_after)
            and (chosen.enqueued_before is None or at < chosen.enqueued_before)
        )


def _note(channel: Any, queue: str, source: str, targets: Sequence[str], ids: Sequence[str]) -> None:
    """Write down, when the transaction ends, what has been copied and not removed yet."""
    body = json.dumps({"source": source, "targets": list(targets), "ids": list(ids)}).encode()
    channel.basic_publish("", f"{_MOVING}{queue}", body, pika.BasicProperties(delivery_mode=2))


def _parked(properties: Any, kept: dict[str, Any]) -> Any:
    """The properties with which a task lies parked, out of its own."""
    kept = {"expiration": properties.expiration, "delivery_mode": properties.delivery_mode, **kept}
    # An expiry would go on while it is parked.
    properties.headers = {**(properties.headers or {}), KEPT: json.dumps(kept)}
    properties.expiration = None
    properties.delivery_mode = 2
    return properties


def owner_of(message: Message) -> str:
    """Who has parked it."""
    return str(kept_of(message).get("owner", ""))


def _replayed(queue: str, message: Message) -> _Copy:
    """A parked task with its own properties, out of those with which it lay parked."""
    properties = message[1]
    kept = kept_of(message)
    properties.headers = {name: value for name, value in (properties.headers or {}).items() if name != KEPT} or None
    properties.expiration = kept.get("expiration")
    properties.delivery_mode = kept.get("delivery_mode")
    return _Copy(kept.get("place", queue), properties, PARKED, kept.get("state", WAITING))
