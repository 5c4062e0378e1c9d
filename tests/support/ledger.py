# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The oracle of every test about tasks: numbered tasks, and what became of each.

A producer (``Bench.enqueue``) counts a task as enqueued only when the broker has acknowledged it; the workers note
starts, ends and failures (``ledger_tasks``); what is neither finished nor anywhere in the broker is lost.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import LISTED_STATES, Engine

from tests.support.bench import ENQUEUED, ID, Bench
from tests.support.ledger_tasks import FAILED, FINISHED, STARTED

_LISTED_AT_MOST = 1_000_000


@dataclass(frozen=True)
class Balance:
    """What became of the tasks that were enqueued, as ids. Every task is finished, listed or lost."""

    enqueued: frozenset[str]
    finished: frozenset[str]
    listed: frozenset[str]
    """Not finished, and found in the broker in some state."""
    lost: frozenset[str]
    duplicated: frozenset[str]
    """Executed again although they had not failed."""
    announced: frozenset[str]
    """The duplicated ones that had been announced."""

    def counts(self) -> dict[str, int]:
        """Tasks by what became of them."""
        return {name: len(ids) for name, ids in vars(self).items()}

    @property
    def balanced(self) -> bool:
        """Whether no task is lost and each duplicate was announced."""
        return not self.lost and self.announced == self.duplicated


def balance(engine: Engine, ledger_url: str, queues: Sequence[str], announced: Collection[str] = ()) -> Balance:
    """Take the balance. Best at rest: a task that moves backwards meanwhile may be seen in neither place.

    :param announced: ids of tasks of which it was said that they may run twice.
    """
    # In the order in which tasks move on, and what has finished last: so that one that moves on is seen somewhere.
    present: set[str] = set()
    for state in LISTED_STATES:
        for queue in queues:
            present.update(engine.task_ids(queue, state, _LISTED_AT_MOST).ids)
    with redis.Redis.from_url(ledger_url, decode_responses=True) as notes:
        enqueued = {ID + str(number) for number in notes.smembers(ENQUEUED)}
        started, finished, failed = (_counts(notes, key) for key in (STARTED, FINISHED, FAILED))
    done = enqueued & finished.keys()
    listed = (enqueued & present) - done
    duplicated = {number for number, times in started.items() if times - failed.get(number, 0) > 1}
    return Balance(
        enqueued=frozenset(enqueued),
        finished=frozenset(done),
        listed=frozenset(listed),
        lost=frozenset(enqueued - done - listed),
        duplicated=frozenset(duplicated),
        announced=frozenset(duplicated & set(announced)),
    )


def unfinished(engine: Engine, bench: Bench, queue: str) -> str | None:
    """None once the workers have done all that they can reach; what else is counted is then only listed.

    Some tasks may count as waiting and be in no worker's reach: what one had popped when it was told to stop.
    """
    (state,) = engine.queue_states([queue])
    left = state.executing or state.scheduled or state.retrying or state.abandoned or bench.order(queue)
    return str(state) if left or any(worker.current_task for worker in engine.workers()) else None


def _counts(notes: redis.Redis, key: str) -> dict[str, int]:
    return {ID + str(number): int(times) for number, times in notes.hgetall(key).items()}
