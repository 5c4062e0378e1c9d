# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Celery's workers tell from within, where they have Backstep's reporter (``backstep_celery.py``, which says how).

A worker that was told to stop answers no question any more, and yet tells this until its last task has ended.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import NamedTuple, Optional

from . import _celery_scripts as scripts
from ._redis import RedisLink, text

_LIVING = f"{scripts.OURS}living:"


class Begun(NamedTuple):
    """A task that a worker was executing by its last word."""

    id: str
    task: Optional[str]
    queue: str
    worker: str
    started: float


def counts_of(worker: str) -> str:
    """The key of what a worker has finished and failed."""
    return f"{scripts.OURS}counts:{worker}"


def _executing_of(worker: str) -> str:
    return f"{scripts.OURS}executing:{worker}"


def begun_by(link: RedisLink, workers: Iterable[str]) -> list[Begun]:
    """What these workers execute, in the order in which it was begun."""
    names = sorted(set(workers))
    told = link.ask_all([("HGETALL", _executing_of(name)) for name in names])
    found = []
    for name, tasks in zip(names, told):
        for known, raw in tasks.items():
            queue, task, started = json.loads(raw)
            found.append(Begun(text(known), task, str(queue), name, float(started)))
    return sorted(found, key=lambda begun: begun.started)


def begun_by_living(link: RedisLink) -> list[Begun]:
    """What those workers execute that are connected, whether they listen or not; nothing where that can't be seen."""
    (clients,) = link.ask_each([("CLIENT LIST",)])
    names = [] if isinstance(clients, Exception) else [client.get("name", "") for client in clients]
    return begun_by(link, [name[len(_LIVING) :] for name in names if name.startswith(_LIVING)])


def forget(link: RedisLink, workers: Collection[str]) -> None:
    """Take what workers have told off the books that are proven dead, once it has been dealt with."""
    names = sorted(workers)
    if names:
        link.ask("DEL", *map(_executing_of, names))
