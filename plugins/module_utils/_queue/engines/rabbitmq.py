# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plain consumers of RabbitMQ: the app's own programs, which keep a small convention.

The convention is in docs/engines.md. RabbitMQ itself tells of no task which consumer has it, keeps no count of what a
consumer has finished, and has figures for connections that are up to five seconds old. So workers keep notes.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Sequence
from typing import Any, Optional

try:
    import pika
except ImportError:  # ``open_engine`` refuses to go on without it, and says what to install
    pika = None  # so that this file can be read without it, as sanity does

from ..._rollout.errors import BrokerUnreachable
from .. import engine as contract
from ..engine import CANARY_PREFIX, Capabilities
from . import _amqp_moves as moves
from ._amqp import OURS, AmqpLink
from ._amqp_notes import Notes, Workers, is_canary, seen
from ._moves import Moving, TaskMove
from ._pauseless import Pauseless

CANARY_HEADER = "backstep_canary"
_NOWHERE = (contract.SCHEDULED, contract.RETRYING, contract.DEAD, contract.DEFERRED)
# A worker notes what it was given within milliseconds; a canary that is nowhere for so long is nowhere.
_NOTED_SECONDS = 1.0


class RabbitmqEngine(Pauseless, Moving):
    """Queues of one virtual host, RabbitMQ 3.10 or newer with its management plugin."""

    name = "rabbitmq"
    default_canary = "backstep-canary"
    rights = (
        r"rabbitmqctl set_permissions -p <vhost> <user> '^backstep\.' '^(amq\.default|backstep\..*)$' '.*' && "
        "rabbitmqctl set_user_tags <user> management"
    )
    no_pause = "RabbitMQ has no pause for a queue: whoever consumes is given what there is."
    none_to_end = "RabbitMQ has no pause for a queue, so there is none to end."
    capabilities = Capabilities(
        pause_scope="none",
        pause_survives_worker_restart=False,
        pause_survives_broker_restart=False,
        quiet_can_be_undone=False,
        uncountable_states=_NOWHERE,
        counts_failures=True,
        kill_effect="repeats",
        stuck_seconds=0.0,
        unknown_task="lost",
        put_back="last",
    )

    def __init__(self, url: str, timeout: float) -> None:
        self._link = AmqpLink(url, timeout, rights=self.rights)
        self._workers = Workers(self._link)
        self._sent: dict[str, str] = {}
        """Canaries that are under way, and the queues into which they were put."""
        self._withdrawn: set[str] = set()
        self._missed: dict[str, float] = {}
        """Canaries, and since when they are seen nowhere."""

    def close(self) -> None:
        self._link.close()

    def check(self, write: bool) -> dict[str, Any]:
        return self._link.check(write)

    def known_queues(self) -> list[str]:
        found = self._link.management.queues()
        return sorted(name for name, own in found.items() if not own and not name.startswith((OURS, "amq.")))

    def queue_states(self, queues: Sequence[str]) -> list[contract.QueueState]:
        # Before what executes: a task that is taken meanwhile is rather seen twice than not at all.
        counted = [self._counts(queue) for queue in queues]
        living = self._workers.living()
        held = [task.queue for notes in living for task in notes.held]
        listening = [queue for notes in living for queue in notes.queues]
        return [
            contract.QueueState(
                queue=queue,
                waiting=waiting,
                scheduled=None,
                executing=held.count(queue),
                retrying=None,
                dead=None,
                parked=parked,
                abandoned=0,  # what a dead worker had, the broker has given back
                deferred=None,
                oldest_waiting_seconds=None,
                workers=listening.count(queue),
            )
            for queue, (waiting, parked) in zip(queues, counted)
        ]

    def _counts(self, queue: str) -> tuple[Optional[int], int]:
        """What waits, and what is parked; a copy that a dead mover has left is neither.

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
        parked = self._link.count(moves.parked_queue(queue)) or 0
        return waiting, max(0, parked - len(left.ids if left else ()))

    def task_ids(self, queue: str, state: str, limit: int) -> contract.TaskIds:
        ids: list[str] = []
        if state == contract.EXECUTING:
            ids = [task.id for task in self.executing([queue]) if not is_canary(task.id)]
        elif state == contract.WAITING:
            ids = self._listed(queue, queue, limit)
        elif state == contract.PARKED:
            ids = self._listed(queue, moves.parked_queue(queue), limit)
        return contract.TaskIds(tuple(ids[:limit]), len(ids) > limit)

    def _listed(self, queue: str, place: str, limit: int) -> list[str]:
        """The ids of what lies there, one more than ``limit`` at most. Each is taken for a moment, and put back."""
        with self._link.locked(f"queue.{queue}"):
            left = moves.unfinished(self._link, queue)
            copies = left.ids if left and place != queue else ()
            ids: list[str] = []
            count = self._link.count(place) or 0
            with self._link.channel() as channel:
                for message in moves.walk(channel, place, count):
                    known = moves.known_as(message)
                    if known and not is_canary(known) and known not in copies:
                        ids.append(known)
                    if len(ids) > limit:
                        break
        return ids

    def workers(self) -> list[contract.WorkerSeen]:
        return [seen(notes, self._uncounted(notes)) for notes in self._workers.living()]

    def _uncounted(self, notes: Notes) -> set[str]:
        """Canaries that count no longer: withdrawn here, or, whoever has sent them, expired."""
        return {known for known in notes.canaries if known in self._withdrawn or _expires(known) < time.time()}

    def executing(self, queues: Sequence[str]) -> list[contract.ExecutingTask]:
        return [task for notes in self._workers.living() for task in notes.held if task.queue in queues]

    def _move(
        self, queues: Sequence[str], selection: contract.Selection, allowed: Sequence[str], dry_run: bool
    ) -> TaskMove:
        return moves.Move(self._link, selection, allowed, dry_run)

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
        held = [
            task
            for notes in self._workers.gone(workers_gone)
            for task in notes.held
            if task.queue in queues and not is_canary(task.id)
        ]
        parked: set[str] = set()
        if to == contract.DEAD and held:
            chosen = contract.Selection(states=(contract.WAITING,), ids=tuple(task.id for task in held))
            where = contract.unique(task.queue for task in held)
            parked = set(self.park(where, chosen, "recover", "its worker was killed", dry_run).ids)
        if not dry_run:
            self._workers.forget(workers_gone)
        return told + [_recovered(task, task.id in parked) for task in held]

    def _finish_moves(self, queues: Sequence[str]) -> list[contract.RecoveredTask]:
        """Finish what dead movers have left; tasks that a worker took meanwhile are parked too, and may run twice."""
        found = []
        for queue in queues:
            with moves.moving(self._link, queue):
                found += [
                    contract.RecoveredTask(known, None, queue, None, contract.PARKED, True)
                    for known in moves.finish(self._link, queue)
                ]
        return found

    def send_canary(self, queue: str, task: str, count: int, seconds: int) -> list[str]:
        ids = [f"{CANARY_PREFIX}{uuid.uuid4().hex}-{int(time.time()) + seconds}" for _number in range(count)]
        with self._link.channel() as channel:
            channel.tx_select()
            for known in ids:
                properties = pika.BasicProperties(
                    message_id=known, type=task, headers={CANARY_HEADER: known}, expiration=str(seconds * 1000)
                )
                channel.basic_publish("", queue, b"[]", properties)
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
                return contract.CanaryOutcome(known, notes.canaries[known], notes.name)
            if known in [task.id for task in notes.held]:
                return contract.CanaryOutcome(known, contract.EXECUTING, notes.name)
        if not left_queue:
            self._missed.pop(known, None)
        elif time.monotonic() - self._missed.setdefault(known, time.monotonic()) > _NOTED_SECONDS:
            return contract.CanaryOutcome(known, "gone", None)
        gone = known in self._withdrawn or _expires(known) < time.time()
        return contract.CanaryOutcome(known, "gone" if gone else contract.WAITING, None)

    def withdraw(self, queue: str, ids: Sequence[str]) -> None:
        """One that still waits can't be taken out of the middle of a queue: it expires, and changes nothing if not."""
        self._withdrawn.update(ids)
        wanted = set(ids)
        with self._link.locked(f"queue.{queue}"), self._link.channel() as channel:
            # What is in front of others is real work, and left alone; an idle worker's queue holds canaries only.
            for message in moves.walk(channel, queue, self._link.count(queue) or 0):
                if not is_canary(moves.known_as(message)):
                    break
                if moves.known_as(message) in wanted:
                    channel.basic_ack(message[0].delivery_tag)
        for known in ids:
            self._sent.pop(known, None)
            self._missed.pop(known, None)


def _expires(known: str) -> float:
    """When a canary expires, which its id ends in."""
    end = known.rpartition("-")[2]
    return float(end) if end.isdecimal() else 0.0


def _recovered(task: contract.ExecutingTask, is_parked: bool) -> contract.RecoveredTask:
    state = contract.PARKED if is_parked else contract.WAITING
    return contract.RecoveredTask(task.id, task.task, task.queue, task.worker, state, task.started is not None)
