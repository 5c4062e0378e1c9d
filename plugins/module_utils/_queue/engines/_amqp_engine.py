# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engines on RabbitMQ have in common.

RabbitMQ itself tells of no task which consumer has it, keeps no count of what a consumer has finished, and has figures
for connections that are up to five seconds old. So workers keep notes, or a reporter in them does. Of what a worker has
taken, it counts as executing what is begun, and as waiting what was taken ahead.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from typing import Any, ClassVar, NamedTuple, Optional

from ..._rollout.errors import BrokerUnreachable
from .. import engine as contract
from ..books import GATE_OWNER
from ..engine import CANARY_PREFIX
from . import _amqp_books as books
from . import _amqp_dead as dead
from . import _amqp_moves as moves
from ._amqp import AmqpLink
from ._amqp_messages import Message, Messages, is_canary, parked_queue
from ._amqp_notes import Notes, Workers, seen
from ._moves import Moving, TaskMove
from ._pauseless import Pauseless

# A worker notes what it was given within milliseconds; a canary that is nowhere for so long is nowhere.
_NOTED_SECONDS = 1.0
# Whoever looks at tasks takes them for as long as that lasts, and they count as delivered once more.
_NAMED_AT_MOST = 10_000


class _Counts(NamedTuple):
    """Tasks of a queue that lie in the broker."""

    waiting: Optional[int]
    later: int
    dead: Optional[int]
    parked: int


class AmqpEngine(Pauseless, Moving):
    """Queues of one virtual host, RabbitMQ 3.10 or newer with its management plugin."""

    rights = (
        r"rabbitmqctl set_permissions -p <vhost> <user> '^backstep\.' '^(amq\.default|backstep\..*)$' '.*' && "
        "rabbitmqctl set_user_tags <user> management"
    )
    no_pause = "RabbitMQ has no pause for a queue: whoever consumes is given what there is."
    none_to_end = "RabbitMQ has no pause for a queue, so there is none to end."
    # Who reads a book keeps the others waiting: of 40 producers that sent all the time, the last knew after 1.8 s.
    followed_seconds = 4.0
    messages: ClassVar[Messages]
    """How its apps write tasks."""

    def __init__(self, url: str, timeout: float) -> None:
        self._link = AmqpLink(url, timeout, rights=self.rights)
        self._workers = Workers(self._link)
        self._sent: dict[str, str] = {}
        """Canaries that are under way, and the queues into which they were put."""
        self._withdrawn: set[str] = set()
        self._failed: set[str] = set()
        """Canaries of which some engines keep a dead task."""
        self._missed: dict[str, float] = {}
        """Canaries, and since when they are seen nowhere."""

    def close(self) -> None:
        self._link.close()

    def check(self, write: bool) -> dict[str, Any]:
        return self._link.check(write)

    def known_queues(self) -> list[str]:
        found = self._link.management.queues()
        return sorted(name for name, own in found.items() if not own and self.messages.is_tasks(name))

    def queue_states(self, queues: Sequence[str]) -> list[contract.QueueState]:
        # Before what is held: a task that is taken meanwhile is rather seen twice than not at all.
        counted = [self._counts(queue) for queue in queues]
        living = self._workers.living()
        return [self._state(queue, counts, living) for queue, counts in zip(queues, counted)]

    def _state(self, queue: str, counts: _Counts, living: Sequence[Notes]) -> contract.QueueState:
        held = [task for notes in living for task in notes.held if task.queue == queue]
        executing = sum(task.started is not None for task in held)
        kept = Counter[str]()
        for later in (later for notes in living for later in notes.later if later.queue == queue):
            kept[later.state] += later.tasks
        uncountable = self.capabilities.uncountable_states

        def told(state: str, count: Optional[int]) -> Optional[int]:
            return None if state in uncountable else count

        return contract.QueueState(
            queue=queue,
            waiting=None if counts.waiting is None else counts.waiting + len(held) - executing,
            scheduled=told(contract.SCHEDULED, kept[contract.SCHEDULED] + counts.later),
            executing=executing,
            # What lies in the queue of delayed tasks may be either; one that is looked at is delivered once more.
            retrying=told(contract.RETRYING, None if counts.later else kept[contract.RETRYING]),
            dead=told(contract.DEAD, counts.dead),
            parked=counts.parked,
            abandoned=0,  # what a dead worker had, the broker has given back
            deferred=None,
            oldest_waiting_seconds=None,
            workers=sum(queue in notes.queues for notes in living),
        )

    def _counts(self, queue: str) -> _Counts:
        """What lies in the broker, in which place; what a dead mover has left in two is counted in one.

        While tasks are moved, the mover holds some that it will not move: what waits can't be told then.
        """
        waiting: Optional[int] = None
        if not moves.is_moving(self._link, queue):
            try:
                with self._link.locked(f"queue.{queue}"):
                    waiting = self._link.count(queue) or 0
            except BrokerUnreachable:
                if not moves.is_moving(self._link, queue):
                    raise
        left = moves.unfinished(self._link, queue)

        def lies_in(place: str) -> int:
            hidden = left.hidden(self.messages, queue, place) if left else ()
            return max(0, (self._link.count(place) or 0) - len(hidden))

        dead = self.messages.dead_place(queue)
        others = [place for place in self.messages.places(queue) if place not in (queue, dead)]
        return _Counts(
            waiting=waiting,
            later=sum(map(lies_in, others)),
            dead=lies_in(dead) if dead else None,
            parked=lies_in(parked_queue(queue)),
        )

    def task_ids(self, queue: str, state: str, limit: int) -> contract.TaskIds:
        found, unnamed = self._all_ids(queue, state, limit)
        ids = [known for known in found if not is_canary(known)]
        return contract.TaskIds(tuple(ids[:limit]), unnamed or len(ids) > limit)

    def _all_ids(self, queue: str, state: str, limit: int) -> tuple[list[str], bool]:
        """The ids, and whether a worker has more than it names; of a queue, one more than ``limit`` at most."""
        if state == contract.EXECUTING:
            return [task.id for task in self.executing([queue])], False
        if state == contract.PARKED:
            return self._listed(queue, parked_queue(queue), state, limit), False
        # Before what is held: a task that is taken meanwhile is rather seen twice than not at all.
        places = [place for place, states in self.messages.places(queue).items() if state in states]
        listed = [known for place in places for known in self._listed(queue, place, state, limit)]
        if state == contract.DEAD or not places:
            return listed, False
        living = self._workers.living()
        later = [some for notes in living for some in notes.later if (some.queue, some.state) == (queue, state)]
        kept = [known for some in later for known in some.ids]
        ahead = [
            task.id
            for notes in living
            for task in notes.held
            if state == contract.WAITING and task.queue == queue and task.started is None
        ]
        return contract.unique([*ahead, *kept, *listed]), sum(some.tasks for some in later) > len(kept)

    def _listed(self, queue: str, place: str, state: str, limit: int) -> list[str]:
        """The ids of what lies there, one more than ``limit`` at most."""
        ids: list[str] = []
        with closing(self._lying_in(queue, place)) as messages:
            for message in messages:
                known = self.messages.id(message)
                if known and self._state_in(queue, place, message) == state:
                    ids.append(known)
                if len(ids) > limit:
                    break
        return ids

    def _lying_in(self, queue: str, place: str, at_most: Optional[int] = None) -> Generator[Message, None, None]:
        """What lies there, canaries left out. Each is taken for a moment, and put back at the end."""
        with self._link.locked(f"queue.{queue}"):
            left = moves.unfinished(self._link, queue)
            hidden = left.hidden(self.messages, queue, place) if left else ()
            count = self._link.count(place) or 0
            with self._link.channel() as channel:
                for message in moves.walk(channel, place, count if at_most is None else min(count, at_most)):
                    known = self.messages.id(message)
                    if not is_canary(known) and known not in hidden:
                        yield message

    def _state_in(self, queue: str, place: str, message: Message) -> str:
        return contract.PARKED if place == parked_queue(queue) else self.messages.state(place, message)

    def _lying(self, queues: Sequence[str]) -> list[contract.NamedTasks]:
        """Of what lies in one place, the first 10,000 are named; none in a quorum queue."""
        counting = self._link.management.quorum_queues()
        found: list[contract.NamedTasks] = []
        for queue in queues:
            places = {**self.messages.places(queue), parked_queue(queue): (contract.PARKED,)}
            for place, states in places.items():
                at_most = 0 if place in counting else _NAMED_AT_MOST
                beyond = (self._link.count(place) or 0) - at_most
                if beyond > 0:
                    found.append(contract.NamedTasks(queue, states[0], None, beyond, None))
                with closing(self._lying_in(queue, place, at_most)) as messages:
                    for message in messages:
                        state = self._state_in(queue, place, message)
                        task, enqueued = self.messages.task(message), self.messages.enqueued(message)
                        found.append(contract.NamedTasks(queue, state, task, 1, enqueued))
        return found

    def _taken(self, queues: Sequence[str]) -> list[contract.NamedTasks]:
        found: list[contract.NamedTasks] = []
        for notes in self._workers.living():
            for task in notes.held:
                state = contract.WAITING if task.started is None else contract.EXECUTING
                if task.queue in queues and not is_canary(task.id):
                    found.append(contract.NamedTasks(task.queue, state, task.task, 1, None))
            for later in notes.later:
                unnamed = (None, later.tasks - sum(later.names.values()))
                if later.queue in queues:
                    found += [
                        contract.NamedTasks(later.queue, later.state, name, tasks, None)
                        for name, tasks in (*later.names.items(), unnamed)
                        if tasks > 0
                    ]
        return found

    def parked_by(self, queues: Sequence[str]) -> set[str]:
        owners: set[str] = set()
        for queue in queues:
            with closing(self._lying_in(queue, parked_queue(queue), _NAMED_AT_MOST)) as messages:
                owners.update(moves.owner_of(message) for message in messages)
        return owners

    def dead_tasks(self, queues: Sequence[str]) -> list[contract.DeadTask]:
        found: list[contract.DeadTask] = []
        for queue in queues:
            place = self.messages.dead_place(queue)
            with closing(self._lying_in(queue, place)) if place else nullcontext(()) as messages:
                found += [dead.dead_task(self.messages, queue, message) for message in messages]
        return found

    def read_book(self, book: str) -> dict[str, str]:
        return books.read(self._link, book)

    def write_book(self, book: str, lines: Mapping[str, Optional[str]], seconds: Optional[int] = None) -> None:
        books.write(self._link, book, lines, seconds)

    def gated(self, queues: Sequence[str], task: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for queue in queues:
            with closing(self._lying_in(queue, parked_queue(queue))) as messages:
                some = [message for message in messages if moves.owner_of(message) == f"{GATE_OWNER}{task}"]
            found.update((self.messages.id(message), "") for message in some)
        return found

    def forget_gated(self, task: str, marks: Mapping[str, str]) -> None:
        """Nothing is to be done: who has parked a task is written on it."""

    def workers(self) -> list[contract.WorkerSeen]:
        return [seen(notes, self._uncounted(notes)) for notes in self._workers.living()]

    def _uncounted(self, notes: Notes) -> set[str]:
        """Canaries that count no longer: withdrawn here, or, whoever has sent them, expired."""
        return {known for known in notes.canaries if known in self._withdrawn or _expires(known) < time.time()}

    def executing(self, queues: Sequence[str]) -> list[contract.ExecutingTask]:
        return [task for notes in self._workers.living() for task in notes.begun if task.queue in queues]

    def lost_when_killed(self) -> list[str]:
        return sorted({name for notes in self._workers.living() for name in notes.loses})

    def _move(
        self, queues: Sequence[str], selection: contract.Selection, allowed: Sequence[str], dry_run: bool
    ) -> TaskMove:
        return self._mover(selection, allowed, dry_run)

    def _mover(self, selection: contract.Selection, allowed: Sequence[str], dry_run: bool) -> moves.Move:
        return moves.Move(self._link, self.messages, selection, allowed, dry_run)

    def reroute(self, source: str, target: str, dry_run: bool = False) -> contract.Moved:
        everything = (contract.WAITING, contract.SCHEDULED, contract.RETRYING, *self._dead())
        return self._mover(contract.Selection(everything), everything, dry_run).reroute(source, target)

    def recover(
        self,
        queues: Sequence[str],
        workers_gone: Collection[str],
        to: str,
        wait: contract.Wait = contract.once,
        dry_run: bool = False,
    ) -> list[contract.RecoveredTask]:
        contract.require_end(to)
        told = [] if dry_run else self._finish_moves(queues)
        # The broker gives back what a dead worker had when it sees the connection end, which takes it a moment.
        wait(lambda: not self._workers.are_alive(workers_gone))
        gone = self._workers.gone(workers_gone)
        held = [task for notes in gone for task in notes.held if task.queue in queues and not is_canary(task.id)]
        lost = {known for notes in gone for known in notes.acknowledged}
        ends = dict.fromkeys(lost, contract.LOST)
        begun = [task for task in held if task.started is not None and task.id not in lost]
        if to == contract.DEAD and begun:
            ends.update(self._take_out(begun, dry_run))
        if not dry_run:
            self._workers.forget(workers_gone)
        return told + [_recovered(task, ends.get(task.id, contract.WAITING)) for task in held]

    def _take_out(self, tasks: Sequence[contract.ExecutingTask], dry_run: bool) -> dict[str, str]:
        """Move tasks that are back in their queues to the dead ones, or park them where there are none.

        :returns: their states, by their ids.
        """
        chosen = contract.Selection(states=(contract.WAITING,), ids=tuple(task.id for task in tasks))
        ends: dict[str, str] = {}
        for queue in contract.unique(task.queue for task in tasks):
            mover = self._mover(chosen, (contract.WAITING,), dry_run)
            dead_place = self.messages.dead_place(queue)
            if dead_place:
                ends.update(dict.fromkeys(mover.bury(queue, dead_place).ids, contract.DEAD))
            else:
                moved = mover.park([queue], "recover", "its worker was killed")
                ends.update(dict.fromkeys(moved.ids, contract.PARKED))
        return ends

    def _finish_moves(self, queues: Sequence[str]) -> list[contract.RecoveredTask]:
        """Finish what dead movers have left; tasks that a worker took meanwhile are parked too, and may run twice."""
        found = []
        for queue in queues:
            with moves.moving(self._link, queue):
                found += [
                    contract.RecoveredTask(known, None, queue, None, contract.PARKED, True)
                    for known in moves.finish(self._link, self.messages, queue)
                ]
        return found

    def send_canary(self, queue: str, task: str, count: int, seconds: int) -> list[str]:
        ids = [f"{CANARY_PREFIX}{uuid.uuid4().hex}-{int(time.time()) + seconds}" for _number in range(count)]
        with self._link.channel() as channel:
            channel.tx_select()
            for known in ids:
                properties, body = self.messages.canary(known, task, queue, seconds)
                channel.basic_publish("", queue, body, properties)
            channel.tx_commit()
        self._sent.update(dict.fromkeys(ids, queue))
        return ids

    def canaries(self, ids: Sequence[str]) -> list[contract.CanaryOutcome]:
        if not ids:
            return []
        # Before the notes: what leaves the queue after this is found in them.
        empty = {queue for queue in {self._sent.get(known) for known in ids} if queue and not self._link.count(queue)}
        living = self._workers.living()
        return [self._outcome(known, living, self._sent.get(known) in empty) for known in ids]

    def _outcome(self, known: str, living: Sequence[Notes], left_queue: bool) -> contract.CanaryOutcome:
        for notes in living:
            if known in notes.canaries:
                if notes.canaries[known] == "failed":
                    self._failed.add(known)
                return contract.CanaryOutcome(known, notes.canaries[known], notes.name)
            if known in [task.id for task in notes.begun]:
                return contract.CanaryOutcome(known, contract.EXECUTING, notes.name)
            # One that lies with a worker that is at work is of no use to another, which is idle.
            if known in [task.id for task in notes.held] and notes.begun:
                return contract.CanaryOutcome(known, "gone", notes.name)
        if not left_queue:
            self._missed.pop(known, None)
        elif time.monotonic() - self._missed.setdefault(known, time.monotonic()) > _NOTED_SECONDS:
            return contract.CanaryOutcome(known, "gone", None)
        gone = known in self._withdrawn or _expires(known) < time.time()
        return contract.CanaryOutcome(known, "gone" if gone else contract.WAITING, None)

    def withdraw(self, queue: str, ids: Sequence[str]) -> None:
        """One that still waits can't be taken out of the middle of a queue: it expires, and changes nothing if not."""
        self._withdrawn.update(ids)
        with self._link.locked(f"queue.{queue}"):
            # What is in front of others is real work, and left alone; an idle worker's queue holds canaries only.
            self._remove(queue, ids, only_first=True)
            dead_place = self.messages.dead_place(queue)
            if dead_place and self._failed.intersection(ids):
                self._remove(dead_place, ids, only_first=False)
        self._failed.difference_update(ids)
        for known in ids:
            self._sent.pop(known, None)
            self._missed.pop(known, None)

    def _remove(self, place: str, ids: Sequence[str], only_first: bool) -> None:
        """Take these canaries out of a queue; those that have only canaries before them, where ``only_first``."""
        with self._link.channel() as channel:
            for message in moves.walk(channel, place, self._link.count(place) or 0):
                known = self.messages.id(message)
                if only_first and not is_canary(known):
                    break
                if known in ids:
                    channel.basic_ack(message[0].delivery_tag)


def _expires(known: str) -> float:
    """When a canary expires, which its id ends in."""
    end = known.rpartition("-")[2]
    return float(end) if end.isdecimal() else 0.0


def _recovered(task: contract.ExecutingTask, state: str) -> contract.RecoveredTask:
    return contract.RecoveredTask(task.id, task.task, task.queue, task.worker, state, task.started is not None)
