# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Celery's workers have taken and not acknowledged: and whose it is.

kombu keeps it in one hash for all queues and workers of a database, without the worker's name. What the workers that
answer have taken they tell; the rest is held by one that is gone, or that is about to go and listens no more.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Optional

from ..engine import ABANDONED
from ._celery_control import Replies, ask
from ._celery_messages import Held, read_held
from ._celery_told import begun_by_living
from ._redis import RedisLink, text

# A worker that holds more tasks that are due later than this isn't counted by kind.
READ_AT_MOST = 20_000
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


def look(link: RedisLink, *more: str, gone: Collection[str] = (), **arguments: object) -> Holdings:
    """Look at what is held.

    :param more: questions to the workers beside those that are put anyway.
    :param gone: workers that are proven dead, whatever they have told.
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
    known = replies.held() | {begun.id for begun in begun_by_living(link) if begun.worker not in gone}
    # Only what was held before the workers were asked: the rest may have been taken after they had answered.
    nobodys = (held.tag for held in entries if held.tag in before and held.id not in known)
    return Holdings(entries, replies, frozenset() if replies.silent else frozenset(nobodys))
