# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the events of a rollout say about time: the phases of each host, and how long the pool took for what. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

Event = Mapping[str, Any]

STAGE = "stage"
SWITCH = "switch"
PROVE = "prove"
CONFIRM = "confirm"
GO_BACK = "go back"
PROVE_BACK = "prove the way back"
PHASES = (STAGE, SWITCH, PROVE, CONFIRM, GO_BACK, PROVE_BACK)

# Which event begins a phase, and which phase it has to follow (None: any). What begins a phase ends the one before it.
_BEGINS: dict[str, tuple[str, Optional[str]]] = {
    "stage_started": (STAGE, None),
    "switch_started": (SWITCH, None),
    "switched": (PROVE, None),
    # On the way back `confirm_started` is part of its last phase, which ends with `rolled_back`.
    "confirm_started": (CONFIRM, PROVE),
    "rollback_started": (GO_BACK, None),
    "restored": (PROVE_BACK, None),
}
_ENDS = frozenset(("staged", "confirmed", "rolled_back"))

# A clock that differs by less decides nothing that a person reads off a report.
_SKEW_SECONDS = 1.0


def phases(events: Iterable[Event]) -> list[dict[str, Any]]:
    """The phases of one host in order: ``{phase, began, ended}``, epoch seconds by the host's clock.

    :param events: of one host and one rollout, in the order of its journal.
    :returns: ``ended`` is None for a phase whose end the journal doesn't have.
    """
    found: list[dict[str, Any]] = []
    for event in events:
        last = found[-1] if found and found[-1]["ended"] is None else None
        begins, after = _BEGINS.get(event["event"], ("", None))
        if begins and after and (last is None or last["phase"] != after):
            begins = ""
        if last and (begins or event["event"] in _ENDS):
            last["ended"] = event["time"]
        if begins:
            found.append({"phase": begins, "began": event["time"], "ended": None})
    return found


def aligned(events: Iterable[Event], off: Mapping[str, float]) -> list[dict[str, Any]]:
    """Events of several hosts with their times by the controller's clock, as far as it is known how a host's differs.

    :param off: by host, as ``skew`` gives it.
    """
    return [{**event, "time": event["time"] - off.get(event["host"], 0.0)} for event in events]


def times(events: Sequence[Event], noticed: Optional[float]) -> dict[str, Optional[float]]:
    """How long the pool took, in seconds; None for what did not happen or was not recorded.

    ``detect``: from the first host's switch until the controller had a verdict that isn't good. ``decide``: from then
    until the first host began to go back. ``restore``: from then until the last good release ran again on the last
    host that went back. ``all``: from the first event to the last. A rollback that a person asks for detects nothing.

    :param noticed: when the controller had that verdict, epoch seconds; None when only the journals are known.
    """
    switched = _first(events, "switched")
    went_back = _first(events, "rollback_started")
    restored = _last(events, "restored")
    seen = [event["time"] for event in events]
    return {
        "began": min(seen, default=None),
        "noticed": noticed,
        "detect": _span(switched, noticed),
        "decide": _span(noticed, went_back),
        "detect_and_decide": _span(switched, went_back),
        "restore": _span(went_back, restored),
        "all": _span(min(seen, default=None), max(seen, default=None)),
    }


def _first(events: Sequence[Event], name: str) -> Optional[float]:
    return min((event["time"] for event in events if event["event"] == name), default=None)


def _last(events: Sequence[Event], name: str) -> Optional[float]:
    return max((event["time"] for event in events if event["event"] == name), default=None)


def _span(began: Optional[float], ended: Optional[float]) -> Optional[float]:
    """Seconds from one moment to a later one. Clocks that differ can make it negative: then it is not known."""
    if began is None or ended is None or ended < began:
        return None
    return round(ended - began, 3)


def skew(clocks: Mapping[str, float], asked: Optional[float], answered: float) -> dict[str, float]:
    """By how many seconds at least a host's clock is ahead (positive) or behind; only what is more than a second.

    :param clocks: each host's clock, read at some moment between ``asked`` and ``answered``.
    :param asked: the controller's clock before the first host was asked, epoch seconds; None: not known.
    :param answered: the controller's clock after the last one had answered.
    """
    found = {}
    for host, clock in clocks.items():
        off = clock - answered if clock > answered else min(0.0, clock - asked) if asked is not None else 0.0
        if abs(off) > _SKEW_SECONDS:
            found[host] = round(off, 3)
    return found
