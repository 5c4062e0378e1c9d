# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether an alert takes a pool back, from what each host has answered. Pure.

Alerts come late, many times over, and from machines: an alert takes a pool back only out of the release that it is
about, only while that release is new, and never in the way of a person. In all other cases nothing happens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Optional

from .answers import Answer, failure_of, require_answers
from .errors import BadInput, HostUnfit
from .fleet import FleetPlan
from .masking import mask
from .names import utc
from .pool_state import BAD, ROLLBACK
from .rules import describe_owner

# How far (seconds) the clock of who raises alerts may be from those of the hosts and of the controller.
CLOCK_SECONDS = 60.0
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True)
class Alert:
    """An alert about a release: ``id`` is the same each time that it is sent, ``at`` (epoch seconds) when it began."""

    id: str
    release: str
    at: float
    reason: str

    @property
    def sentence(self) -> str:
        """The alert as the reason of a rollback."""
        return f"alert {self.id}" + (f": {self.reason}" if self.reason else "")


def alert_of(given: Mapping[str, Any]) -> Optional[Alert]:
    """The alert that a run was given, or None.

    :param given: ``id``, ``release``, ``at`` (epoch seconds, or as ``2026-11-22T03:00:00Z``) and ``reason``.
    :raises BadInput: something is missing, or ``at`` is no time.
    """
    if not given:
        return None
    missing = [name for name in ("id", "release", "at") if given.get(name) in (None, "")]
    if missing:
        raise _useless(f"lacks {', '.join(missing)}")
    reason = " ".join(str(given.get("reason") or "").split())
    return Alert(str(given["id"]), str(given["release"]), _moment(given["at"]), mask(reason))


def _useless(why: str) -> BadInput:
    return BadInput(
        f"pool_alert {why}.",
        left="Nothing was changed.",
        next_step="Give it an id, the release that it is about, and at: when it began, in epoch seconds.",
    )


def _moment(given: Any) -> float:
    found = _TIME.fullmatch(str(given))
    if found:
        zone = "+00:00" if found[3] == "Z" else found[3]
        return datetime.fromisoformat(f"{found[1]}{zone}").timestamp() + float(f"0.{found[2] or 0}")
    try:
        at = float(given)
    except (TypeError, ValueError):
        at = math.nan
    if not math.isfinite(at):
        raise _useless(f"has an at that is no time ({given})")
    return at


def why_not(
    alert: Alert, answers: Mapping[str, Optional[Answer]], dead_runs: Collection[str], window: float, now: float
) -> str:
    """Why an alert doesn't take the pool back, as the end of a sentence; "" when it does.

    :param answers: what each host has answered to ``release_info``.
    :param dead_runs: the runs that hold leases and are known to be dead.
    :param window: for how many seconds after a release became the current one alerts may take the pool out of it.
    :param now: epoch seconds by the controller's clock, by which ``alert.at`` is judged, too.
    :raises BadInput: it is from the future.
    :raises HostUnfit: no host has answered, or it would take the pool nowhere as far as the others know.
    """
    if alert.at > now + CLOCK_SECONDS:
        raise _useless(f"began {alert.at - now:.0f} s from now by this controller's clock")
    states = _states(answers)
    if not states:
        require_answers(answers, "pool_state")
    on_it = {host: state for host, state in states.items() if _has(state, alert.release)}
    # Each host's clock is read against itself, so that it doesn't matter when hosts' clocks differ.
    began = [now - (state["clock"] - _since(state)) for state in on_it.values()]
    why = _held(states, dead_runs) or _elsewhere(alert, states, on_it) or _put_there(alert, on_it)
    why = why or _not_in_time(alert, began, window, now)
    silent = {host: failure_of(answer, "pool_state") for host, answer in answers.items() if host not in states}
    if why and silent:
        told = "; ".join(f"{host}: {said}" for host, said in silent.items())
        raise HostUnfit(
            f"It could not be found out whether alert {alert.id} takes the pool back. As far as the hosts answer, "
            f"{why}. {told}",
            left="Nothing was changed.",
            next_step="See where every host is with: ansible-playbook backstep.workers.status",
            hosts=sorted(silent),
        )
    return why


def stay(answers: Mapping[str, Optional[Answer]]) -> FleetPlan:
    """The plan of a run that does nothing."""
    states = _states(answers)
    before = {host: state["current"] for host, state in states.items()}
    return FleetPlan("rollback", 0, None, [], list(states), [], {}, before, dict(before))


def _states(answers: Mapping[str, Optional[Answer]]) -> dict[str, Mapping[str, Any]]:
    told = {host: answer for host, answer in answers.items() if answer and not failure_of(answer, "pool_state")}
    return {host: answer["pool_state"] for host, answer in told.items()}


def _open(state: Mapping[str, Any]) -> Optional[Mapping[str, Any]]:
    rollout: Optional[Mapping[str, Any]] = state.get("rollout")
    return rollout if rollout and rollout["open"] else None


def _has(state: Mapping[str, Any], release: str) -> bool:
    """Whether a host is on a release, or between two of which this is the one that it goes to."""
    between = _open(state)
    return bool((between["target"] if between else state["current"]) == release)


def _since(state: Mapping[str, Any]) -> float:
    """When the host went there, by its own clock."""
    between = _open(state)
    return float(between["started"] if between else state["since"])


def _held(states: Mapping[str, Mapping[str, Any]], dead_runs: Collection[str]) -> str:
    """Who is at work on the pool. Also where they move it out of this very release, it is theirs to say so."""
    leases = [state["lease"] for state in states.values() if state.get("lease")]
    living = [lease for lease in leases if lease["owner"].get("run") not in dead_runs]
    for lease in living:
        who = describe_owner(lease["owner"])
        if lease["kind"] == ROLLBACK:
            return f"{who} is rolling it back already"
        return f"{who} is at work on it with a {lease['kind']}, since {utc(lease['granted'])}"
    return ""


def _elsewhere(alert: Alert, states: Mapping[str, Any], on_it: Collection[str]) -> str:
    if on_it:
        return ""
    for state in states.values():
        rollout = state.get("rollout") or {}
        if rollout.get("kind") == ROLLBACK and rollout["origin"] == alert.release:
            how = "is on its way back" if rollout["open"] else "went back"
            return f"it {how} from {alert.release} already ({rollout['reason']})"
        for release in state["releases"]:
            if (release["id"], release["state"]) == (alert.release, BAD):
                return f"it has left {alert.release} already, which is marked as bad ({release['reason']})"
    names = sorted({str(state["current"] or "no release") for state in states.values()})
    return f"it is on {', '.join(names)}"


def _put_there(alert: Alert, on_it: Mapping[str, Mapping[str, Any]]) -> str:
    for state in on_it.values():
        rollout = state.get("rollout") or {}
        if rollout.get("kind") == ROLLBACK:
            return f"a rollback has brought it to {alert.release} ({rollout['reason']})"
    return ""


def _not_in_time(alert: Alert, began: Collection[float], window: float, now: float) -> str:
    """Hosts that were added later don't make a release new: what counts is when the first one went to it."""
    first = min(began)
    if now - first > window:
        return (
            f"{alert.release} has been there since {utc(first)}, and alerts take the pool back for {window:.0f} s only "
            "(pool_watch_window)"
        )
    if alert.at < first - CLOCK_SECONDS:
        return f"the alert began at {utc(alert.at)}, and {alert.release} is there since {utc(first)} only"
    return ""
