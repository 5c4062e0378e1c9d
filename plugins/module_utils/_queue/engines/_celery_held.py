# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Celery's workers have taken and not acknowledged: whose it is, and how it comes back.

kombu keeps it in one hash for all queues and workers of a database, without the worker's name. What the workers that
answer have taken they tell; the rest is held by one that is gone, or that is about to go and listens no more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Optional

from ..engine import ABANDONED, WAITING
from . import _celery_scripts as scripts
from ._celery_control import Replies, ask
from ._celery_messages import Held, read_held
from ._redis import RedisLink, text

# A worker that holds more tasks that are due later than this isn't counted by kind.
READ_AT_MOST = 20_000
_AT_ONCE = 100
_QUESTIONS = ("active", "reserved", "scheduled", "active_queues")


@dataclass(frozen=True)
class Holdings:
    """What is held, and by whom, at one moment."""

    entries: Optional[list[Held]]
    """In the order in which they were taken; None when they are too many to be read."""
    replies: Replies
    nobodys: frozenset[str]
    """Delivery tags of what no worker that answers has taken. Empty while a worker is silent: it may be that one's."""

    def in_state(self, queue: str, state: str) -> list[Held]:
        """The entries of a queue in a state; executing ones are in none, as only some of them are held."""
        executing = {str(request["id"]) for some in self.replies.requests("active").values() for request in some}
        found = [held for held in self.entries or () if held.queue == queue and held.id not in executing]
        return [held for held in found if (ABANDONED if held.tag in self.nobodys else held.state) == state]


def look(link: RedisLink, *more: str, **arguments: object) -> Holdings:
    """Look at what is held.

    :param more: questions to the workers beside those that are put anyway.
    """
    before = {text(tag) for tag in link.ask("HKEYS", "unacked")}
    replies = ask(link, *_QUESTIONS, *more, **arguments)
    count = link.ask("HLEN", "unacked")
    if count > READ_AT_MOST:
        return Holdings(None, replies, frozenset())
    stored, taken = link.ask_all([("HGETALL", "unacked"), ("ZRANGE", "unacked_index", 0, -1)])
    place = {text(tag): number for number, tag in enumerate(taken)}
    entries = [read_held(text(tag), value) for tag, value in stored.items()]
    entries.sort(key=lambda held: place.get(held.tag, len(place)))
    known = replies.held()
    # Only what was held before the workers were asked: the rest may have been taken after they had answered.
    nobodys = (held.tag for held in entries if held.tag in before and held.id not in known)
    return Holdings(entries, replies, frozenset() if replies.silent else frozenset(nobodys))


def begun_by(link: RedisLink, workers: Collection[str]) -> dict[str, str]:
    """The tasks that workers were executing by their own last word, and which of them each: ids to names.

    Only a worker with Backstep's reporter says so.
    """
    names = sorted(workers)
    told = link.ask_all([("HKEYS", f"{scripts.OURS}executing:{name}") for name in names])
    return {text(known): name for name, ids in zip(names, told) for known in ids}


def left_behind(
    link: RedisLink, queues: Sequence[str], to: str, begun_by_gone: Collection[str]
) -> list[tuple[Held, bool]]:
    """What can be put back: nobody's, in the order in which it was taken; and whether it may have been begun.

    A worker that is about to go listens no more, but may still execute a task that it acknowledges late. Such tasks are
    only put back when they are to run again at all costs; Celery itself brings them back after its visibility time-out.

    :param to: ``waiting`` to have everything run again, or else ``dead``.
    :param begun_by_gone: ids of tasks that were executed by workers that are proven dead.
    :raises BrokerUnreachable: a worker is silent, so that what it holds is unknown.
    """
    found = look(link, "registered", registered={"taskinfoitems": ["acks_late"]})
    found.replies.require_all(link)
    mine = [held for held in found.entries or () if held.queue in queues and held.tag in found.nobodys]
    judged = [
        (held, held.id in begun_by_gone or (held.state == WAITING and not _is_early(found.replies, held.task)))
        for held in mine
    ]
    return [(held, begun) for held, begun in judged if to == WAITING or not begun or held.id in begun_by_gone]


def _is_early(replies: Replies, task: Optional[str]) -> bool:
    """Whether every worker that knows a task acknowledges it before it executes it, and at least one does know it."""
    late = {
        entry.partition(" [acks_late=")[2].startswith("True")
        for entries in replies.of("registered").values()
        for entry in entries
        if entry.partition(" ")[0] == task
    }
    return late == {False}


def restore(link: RedisLink, entries: Sequence[Held]) -> Collection[str]:
    """Put entries back where they came from, the first of them to be taken next.

    :returns: the tags of those that were still held.
    """
    restored: set[str] = set()
    backwards = list(reversed(entries))
    for start in range(0, len(backwards), _AT_ONCE):
        some = backwards[start : start + _AT_ONCE]
        facts = [fact for held in some for fact in (held.tag, held.stored, held.key, held.message)]
        restored.update(text(tag) for tag in link.run(scripts.RESTORE, *facts))
    return restored
