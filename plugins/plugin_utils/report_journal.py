# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The report of the last rollout from the hosts' journals alone, when the run that made it is long gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from ansible_collections.backstep.workers.plugins.module_utils._rollout.answers import failure_of
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput
from ansible_collections.backstep.workers.plugins.module_utils._rollout.observing import BEGINNINGS
from ansible_collections.backstep.workers.plugins.module_utils._rollout.pool_state import DEPLOY, ROLLBACK
from ansible_collections.backstep.workers.plugins.module_utils._rollout.verdict import BAD, GOOD, UNKNOWN

from .report import Journals, observed

Event = Mapping[str, Any]

# What moves a host; a rollout of which a host has only these and nothing that ends it is open there.
_MOVES = ("switch_started", "rollback_started")
_ENDS = ("confirmed", "rolled_back")


def data_from_journals(
    pool: str, journals: Journals, broker: Mapping[str, Any], asked: Optional[float]
) -> dict[str, Any]:
    """What ``report.report_data`` gives, as far as journals know it.

    :param journals: each host's answer to ``release_info`` with ``events``.
    :param asked: the controller's clock before the hosts were asked.
    :raises BadInput: no journal has a rollout.
    """
    states = {host: (answer or {}).get("pool_state") for host, answer in journals.items()}
    rollout = _last_rollout([state["events"] for state in states.values() if state])
    mine = {host: _of(state["events"], rollout) if state else [] for host, state in states.items()}
    every = [event for events in mine.values() for event in events]
    hosts = {host: _entry(journals[host], states[host], mine[host]) for host in journals}
    moves = {host: next((event for event in mine[host] if event["event"] in _MOVES), None) for host in journals}
    kind = _first(every, "lease_granted").get("kind") or _kind_of(moves)
    ended = _ended(hosts, every)
    return {
        "kind": kind,
        "release": _release(every, kind),
        # A host that gave no journal is left out: not known isn't nothing.
        "before": {host: _before(moves[host], state) for host, state in states.items() if state},
        "back_to": {host: move.get("safe", move["target"]) for host, move in moves.items() if move},
        "waves": [],
        "owner": {key: (_first(every, "lease_granted").get("owner") or {}).get(key) for key in ("user", "controller")},
        "ended": ended,
        "ok": ended == ("rolled_back" if kind == ROLLBACK else "deployed"),
        "reasons": "; ".join(dict.fromkeys(event["reason"] for event in every if event["event"] == "rollback_started")),
        "hosts": hosts,
        "recovered": [],
        "hooks": [{"host": host, **event} for host in mine for event in mine[host] if event["event"] == "hook_ended"],
        **observed(pool, rollout, journals, broker, noticed=None, asked=asked),
    }


def _last_rollout(journals: Sequence[Sequence[Event]]) -> int:
    tokens = [event["token"] for events in journals for event in events if event["event"] in BEGINNINGS]
    if not tokens:
        raise BadInput("There is nothing to report: no host has a rollout in its journal.", left="Nothing was written.")
    return int(max(tokens))


def _of(events: Sequence[Event], rollout: int) -> list[Event]:
    return [event for event in events if event["token"] == rollout]


def _first(events: Sequence[Event], name: str) -> Event:
    return next((event for event in events if event["event"] == name), {})


def _kind_of(moves: Mapping[str, Optional[Event]]) -> str:
    return ROLLBACK if any(move and move["event"] == "rollback_started" for move in moves.values()) else DEPLOY


def _release(events: Sequence[Event], kind: str) -> Optional[str]:
    """Where the rollout was to bring the pool."""
    if kind == ROLLBACK:
        return _first(events, "rollback_started").get("target")
    release: Optional[str] = _first(events, "switch_started").get("target") or _first(events, "stage_started").get(
        "release"
    )
    return release


def _before(move: Optional[Event], state: Optional[Mapping[str, Any]]) -> Optional[str]:
    if move:
        origin: Optional[str] = move["origin"]
        return origin
    return state["current"] if state else None


def _entry(
    answer: Optional[Mapping[str, Any]], state: Optional[Mapping[str, Any]], events: Sequence[Event]
) -> dict[str, Any]:
    """One host: where it is now, its verdict and why, and why it is an exception, if it is one."""
    touched = any(event["event"] in _MOVES for event in events)
    back = _first(events, "rollback_started")
    exception = failure_of(answer, "pool_state")
    if touched and not any(event["event"] in _ENDS for event in events):
        exception = f"the rollout has not ended here: the last event is {events[-1]['event'].replace('_', ' ')}"
    verdict = UNKNOWN
    if back:
        verdict = BAD if back["verdict"] == BAD else UNKNOWN
    elif any(event["event"] == "confirmed" for event in events):
        verdict = GOOD
    return {
        "now": state["current"] if state and not exception else None,
        "exception": exception,
        "touched": touched,
        "steps": {},
        "verdict": verdict,
        "reason": back.get("reason", ""),
    }


def _ended(hosts: Mapping[str, Mapping[str, Any]], events: Sequence[Event]) -> str:
    ends = {event["event"] for event in events if event["event"] in _ENDS}
    if any(entry["exception"] for entry in hosts.values()) or len(ends) == len(_ENDS):
        return "mixed"
    if not ends:
        return "stopped"
    return "deployed" if ends == {"confirmed"} else "rolled_back"
