# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Taking and giving back the lease of a host."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Optional

from .._rollout.errors import HostUnfit
from .._rollout.pool_state import BAD, PoolState
from .._rollout.rules import Grant, Moment, decide_grant
from . import asking
from .clock import moment
from .drilling import drop
from .host import Host

_DAY_SECONDS = 86_400


def take(
    host: Host,
    now: Moment,
    *,
    rollout: int,
    kind: str,
    owner: dict[str, Any],
    seconds: float,
    adopt: str = "",
    check_mode: bool = False,
) -> Grant:
    """Ask for the lease; what was granted.

    :param seconds: how long it lasts after the last step under it.
    :raises LeaseHeld: somebody else holds it.
    """
    if check_mode:
        return decide_grant(host.state(), now, token=rollout, kind=kind, owner=owner, adopt=adopt)
    request: dict[str, Any] = {"token": rollout, "kind": kind, "owner": owner, "adopt": adopt}
    with asking.asked_for(host, request), host.locked():
        grant = decide_grant(host.state(), now, **request)
        if grant.how != "kept":
            host.remember_pool()
            host.note("lease_granted", grant.token, kind=kind, owner=owner, seconds=seconds, how=grant.how)
        return grant


def give_back(
    host: Host,
    rollout: int,
    owner: dict[str, Any],
    quarantine: str,
    reason: str,
    check_mode: bool,
    observed: Optional[dict[str, Any]] = None,
    prune: str = "",
) -> list[dict[str, Any]]:
    """Give the lease back if this rollout holds it, marking ``quarantine`` as bad first; what was done.

    :param owner: who was granted it: two runs that looked at the same time have given themselves the same number.
    :param observed: what the rollout has seen of the queues, for the report. A full disk keeps no lease from its end.
    :param prune: what was stored for a drill that is over, or "".

    A lease that has passed to somebody else by now is left to them.
    """
    if check_mode:
        # Nothing was granted that could be given back: shown is what the real run does.
        return _giving_back(host.state(), rollout, quarantine, prune)
    with host.locked():
        state = host.state()
        lease = state.lease
        if lease is None or lease.released or lease.token != rollout or lease.owner.get("run") != owner.get("run"):
            return []
        done = []
        if observed:
            with suppress(HostUnfit):
                host.note("observed", rollout, **observed)
        for action in _giving_back(state, rollout, quarantine, prune):
            if action["action"] == "quarantine":
                host.note("quarantined", rollout, release=quarantine, reason=reason)
            elif action["action"] == "prune":
                if not drop(host, action["release"], rollout):
                    continue
            else:
                host.note("lease_released", rollout)
            done.append(action)
        return done


def cut_journal(host: Host, days: float) -> None:
    """Have lines that are older go, if that is wanted (more than 0). A full disk puts it off until the next time."""
    if days > 0:
        now = moment()
        with host.locked(), suppress(OSError):
            host.journal.cut(now.time - days * _DAY_SECONDS, now)


def _giving_back(state: PoolState, rollout: int, quarantine: str, prune: str) -> list[dict[str, Any]]:
    actions: list[dict[str, Any]] = []
    if state.state_of(quarantine) not in (None, BAD) and state.current != quarantine:
        actions.append({"action": "quarantine", "release": quarantine})
    if prune:
        # Also what drills have left that were cut short, on hosts that this one didn't touch.
        spent = dict.fromkeys([prune, *filter(state.is_spent_drill, state.releases)])
        actions += [{"action": "prune", "release": release} for release in spent]
    return [*actions, {"action": "give_back", "rollout": rollout}]
