# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How comes back what Celery's dead workers held, and which tasks went with them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Optional

from ..engine import CANARY_PREFIX, LOST, SCHEDULED, WAITING, RecoveredTask
from . import _celery_scripts as scripts
from ._celery_control import Replies
from ._celery_held import Holdings, look
from ._celery_messages import Held, with_new_tag
from ._celery_told import Begun, begun_by, forget
from ._redis import RedisLink, text

_AT_ONCE = 100


class _Left(NamedTuple):
    """What can be put back."""

    held: Held
    begun: bool
    """Whether it may have been begun."""
    worker: Optional[str]
    """Who was executing it, by that one's own last word."""


def recover(
    link: RedisLink, queues: Sequence[str], gone: Collection[str], to: str, dry_run: bool
) -> list[RecoveredTask]:
    """As ``Engine.recover``; ``to`` is ``waiting`` or ``dead``."""
    begun = {task.id: task for task in begun_by(link, gone) if task.queue in queues}
    holdings = look(link, "registered", gone=gone, registered={"taskinfoitems": ["acks_late"]})
    holdings.replies.require_all(link)
    left = _left_behind(holdings, queues, to, begun)
    entries = [entry.held for entry in left]
    restored = {held.tag for held in entries} if dry_run else _restore(link, entries)
    if not dry_run:
        forget(link, gone)
    return _lost(holdings, begun) + [
        RecoveredTask(
            id=held.id,
            task=held.task,
            queue=held.queue,
            worker=worker,
            to=WAITING if held.state == WAITING else SCHEDULED,
            started=may_have_begun,
        )
        for held, may_have_begun, worker in left
        if held.tag in restored
    ]


def _left_behind(holdings: Holdings, queues: Sequence[str], to: str, begun: dict[str, Begun]) -> list[_Left]:
    """Nobody's, in the order in which it was taken.

    A worker that is about to go listens no more, but may still execute a task that it acknowledges late. If it has no
    reporter that says so, such tasks are only put back when they are to run again at all costs; Celery itself brings
    them back after its visibility time-out.
    """
    found = []
    for held in holdings.entries or ():
        if held.queue in queues and held.tag in holdings.nobodys:
            known = begun.get(held.id)
            may_have_begun = known is not None or (held.state == WAITING and not _is_early(holdings.replies, held.task))
            if to == WAITING or known or not may_have_begun:
                found.append(_Left(held, may_have_begun, known.worker if known else None))
    return found


def _lost(holdings: Holdings, begun: dict[str, Begun]) -> list[RecoveredTask]:
    """What dead workers were executing and had acknowledged already. Nothing is said where not all can be read."""
    if holdings.entries is None:
        return []
    held = {entry.id for entry in holdings.entries}
    return [
        RecoveredTask(task.id, task.task, task.queue, task.worker, LOST, started=True)
        for task in begun.values()
        if task.id not in held and not task.id.startswith(CANARY_PREFIX)
    ]


def _is_early(replies: Replies, task: Optional[str]) -> bool:
    """Whether every worker that knows a task acknowledges it before it executes it, and at least one does know it."""
    late = {
        acknowledged_late(entry)
        for entries in replies.of("registered").values()
        for entry in entries
        if entry.partition(" ")[0] == task
    }
    return late == {False}


def acknowledged_late(entry: str) -> bool:
    """What a worker says of a task that it knows, when it is asked for ``registered`` with ``acks_late``."""
    return entry.partition(" [acks_late=")[2].startswith("True")


def _restore(link: RedisLink, entries: Sequence[Held]) -> Collection[str]:
    """Put entries back where they came from, the first of them to be taken next.

    :returns: the tags of those that were still held.
    """
    restored: set[str] = set()
    backwards = list(reversed(entries))
    for start in range(0, len(backwards), _AT_ONCE):
        some = backwards[start : start + _AT_ONCE]
        facts = [fact for held in some for fact in (held.tag, held.stored, held.key, with_new_tag(held.message))]
        restored.update(text(tag) for tag in link.run(scripts.RESTORE, *facts))
    return restored
