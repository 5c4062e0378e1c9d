# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollout does to the queues is one unit: noted with its inverse before it is done, and ended as a whole. Pure.

How it ends is decided by nothing but where the pool stands afterwards. So whoever comes next decides as the run would
have done that has died in between.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Optional

from .answers import Answer, failure_of
from .errors import BadInput, BrokerRefused

PARK = "park"
GATE = "gate"
PAUSE = "pause"
ROUTE = "route"

KEPT = "kept"
UNDONE = "undone"
OPEN = "open"


@dataclass(frozen=True)
class Unit:
    """One way of a pool: a rollout's there, or its way back."""

    pool: str
    rollout: int
    leaves: tuple[str, ...]
    """The releases that it leaves; "" for none at all."""
    leads_to: tuple[str, ...]


@dataclass(frozen=True)
class Effect:
    """One thing that was done to the queues, or was about to be."""

    unit: Unit
    kind: str
    what: str
    """What it was done to: a task's name, a queue, or whoever it was done for."""
    inverse: Mapping[str, Any]
    """All that undoing it takes."""
    at: float
    """When it was noted (epoch seconds, by the clock of who noted it)."""

    @property
    def key(self) -> str:
        """Its line in the book of effects. What is done again in the same unit keeps its first inverse."""
        unit = self.unit
        return "/".join([unit.pool, str(unit.rollout), ",".join(unit.leads_to), self.kind, self.what])

    @property
    def line(self) -> str:
        """As it stands there."""
        return json.dumps(asdict(self), sort_keys=True)


def parse(book: Mapping[str, str]) -> list[Effect]:
    """The effects of a book, the newest first.

    :raises BrokerRefused: a line that no Backstep of this version has written.
    """
    found = []
    for key, line in book.items():
        try:
            told = json.loads(line)
            unit = unit_of(told.pop("unit"))
            found.append(Effect(unit=unit, **told))
        except (ValueError, TypeError, KeyError, BadInput):
            raise BrokerRefused(
                f"What a rollout has done to the queues can't be read: {key}.",
                left="Nothing was undone.",
                next_step="Use the version of Backstep that has written it.",
            ) from None
    return sorted(found, key=lambda effect: effect.at, reverse=True)


def unit_of(told: Mapping[str, Any]) -> Unit:
    """A unit from plain data.

    :raises BadInput: it lacks something.
    """
    try:
        ways = {way: tuple(str(release or "") for release in told[way]) for way in ("leaves", "leads_to")}
        return Unit(str(told["pool"]), int(told["rollout"]), **ways)
    except (KeyError, TypeError, ValueError):
        raise BadInput(
            "A rollout is named by its pool, its number (rollout), and lists of releases (leaves, leads_to).",
            left="Nothing was changed.",
        ) from None


def fate(unit: Unit, stands: Mapping[str, Optional[str]]) -> str:
    """How a unit ends.

    :param stands: the release that each host of the pool is on, "" for none; ``None`` where that isn't known.
    :returns: ``undone`` if the whole pool is where the unit began, ``kept`` if the whole pool is elsewhere, ``open``
        while hosts differ, or aren't known.
    """
    places: Collection[Optional[str]] = set(stands.values())
    if len(places) != 1 or None in places:
        return OPEN
    (place,) = places
    return UNDONE if place in unit.leaves and place not in unit.leads_to else KEPT


def stands(answers: Mapping[str, Optional[Answer]]) -> dict[str, Optional[str]]:
    """Where each host of a pool is, as ``fate`` wants it: one in the midst of a rollout isn't anywhere yet."""
    found: dict[str, Optional[str]] = {}
    for host, answer in answers.items():
        state = {} if answer is None or failure_of(answer, "pool_state") else answer["pool_state"]
        is_settled = state and not (state.get("rollout") or {}).get("open")
        found[host] = (state["current"] or "") if is_settled else None
    return found
