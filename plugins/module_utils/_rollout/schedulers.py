# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one process that runs a pool's schedule: when and how it is handed over from release to release. Pure.

It is part of the release, and runs on one host. On a host the kernel keeps it from running twice; between hosts nothing
does, so it never moves from one to another in one rollout.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Optional

from .errors import BadInput
from .plans import Action
from .pool_state import PoolState

# For how long a hand-over may wait, however long the period is.
_MOST_SECONDS = 60.0
# A schedule in the manner of cron acts on whole minutes.
_BEAT_SECONDS = 60.0
_BEFORE_BEAT, _AFTER_BEAT = 10.0, 1.0


def periods_here(state: PoolState, host: str) -> dict[str, float]:
    """The releases whose scheduler runs on this host, with their periods in seconds."""
    here = [release for release in state.releases.values() if release.scheduler.get("host") == host]
    return {release.id: float(release.scheduler["period"]) for release in here}


def plan_hand_over(target: Optional[str], others: Sequence[str], periods: Mapping[str, float]) -> list[Action]:
    """Have the scheduler of ``target`` run, if it has one here, and no other; an empty list where there is none.

    :param others: releases besides the target that run or are installed.
    :param periods: as ``periods_here`` gives them.
    """
    left = [release for release in others if release in periods]
    runs = target if target in periods else None
    if runs is None and not left:
        return []
    period = periods[runs] if runs else min(periods[release] for release in left)
    return [{"action": "hand_over_scheduler", "release": runs, "others": left, "period": period}]


def seconds_to_hand_over(period: float) -> float:
    """How long the old scheduler may take to end and the new one to start, together, in seconds."""
    return min(period, _MOST_SECONDS)


def seconds_at_most(scheduler: Mapping[str, Any]) -> float:
    """How long a hand-over to this scheduler may take, the wait for a moment for it included; 0 for none."""
    return 2 * seconds_to_hand_over(float(scheduler["period"])) if scheduler else 0.0


def nothing_is_due(time: float, period: float) -> bool:
    """Whether nothing is about to be due, by the clock on the wall: a hand-over in that very moment would skip it.

    :param time: epoch seconds.
    """
    beat = min(period, _BEAT_SECONDS)
    return min(_AFTER_BEAT, beat / 10) <= time % beat <= beat - min(_BEFORE_BEAT, beat / 2)


def may_run(state: PoolState) -> list[str]:
    """The releases whose scheduler may run now: the current one's, and while a rollout is open those of both ends."""
    rollout = state.rollout
    ends = [rollout.origin, rollout.target, rollout.safe] if rollout and rollout.open else []
    found = dict.fromkeys([state.current, *ends])
    return [release for release in found if release in state.releases and state.releases[release].scheduler]


def problems(state: PoolState, host: str, runs: Optional[str]) -> list[str]:
    """What is wrong with the scheduler of this host.

    :param runs: the release whose scheduler runs here, None when none does.
    """
    wanted = [release for release in may_run(state) if state.releases[release].scheduler["host"] == host]
    if runs is None:
        return [f"no scheduler runs: that of {' or '.join(wanted)} should"] if wanted else []
    if runs not in wanted:
        return [f"the scheduler of {runs} runs, and {' or '.join(wanted) or 'none'} should"]
    return []


def require_host(scheduler: Mapping[str, Any], hosts: Collection[str]) -> None:
    """Refuse a scheduler on a host that the pool doesn't have.

    :raises BadInput: names the pool's hosts.
    """
    if scheduler and scheduler["host"] not in hosts:
        names = ", ".join(sorted(hosts)[:8]) + (f" and {len(hosts) - 8} more" if len(hosts) > 8 else "")
        raise BadInput(
            f"pool_scheduler names the host '{scheduler['host']}', which the pool doesn't have.",
            left="Nothing was changed.",
            next_step=f"The pool's hosts are: {names}.",
        )


def _hosts_now(states: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Where schedulers run, or may do so, as the hosts' answers tell; with whose they are."""
    found: dict[str, str] = {}
    for host, state in states.items():
        rollout = state.get("rollout") or {}
        ends = (rollout["origin"], rollout["target"], rollout["safe"]) if rollout.get("open") else ()
        for release in state.get("releases") or []:
            if release["id"] in (state["current"], *ends) and release.get("scheduler"):
                found.setdefault(release["scheduler"]["host"], release["id"])
        runs = (state.get("scheduler") or {}).get("release")
        if runs:
            found.setdefault(host, runs)
    return found


def require_no_move(
    states: Mapping[str, Mapping[str, Any]], target: Optional[str], scheduler: Mapping[str, Any], then: str
) -> None:
    """Refuse a rollout in which the scheduler would begin on one host while it may still run on another.

    :param states: by host, ``pool_state`` of its answer.
    :param target: where the rollout goes.
    :param scheduler: the target's; empty when it has none.
    :param then: what to do after a deploy of a release without one.
    :raises BadInput: says between which hosts.
    """
    if not scheduler:
        return
    wished = scheduler["host"]
    for host, release in _hosts_now(states).items():
        if host != wished:
            raise BadInput(
                f"The scheduler would move: {release} has it on {host}, {target} on {wished}, and for a while it would "
                "run on both.",
                left="Nothing was changed.",
                next_step=f"Deploy once without pool_scheduler, then {then}.",
            )


def scheduler_of(states: Mapping[str, Mapping[str, Any]], release: Optional[str]) -> dict[str, Any]:
    """The scheduler of a stored release, as the hosts' answers tell it; empty when it has none."""
    for state in states.values():
        for known in state.get("releases") or []:
            if known["id"] == release:
                return dict(known.get("scheduler") or {})
    return {}


def has_own_scheduler(state: Mapping[str, Any]) -> bool:
    """Whether a host, by its ``pool_state``, runs the scheduler that its current release has there, or needs none."""
    scheduler = state.get("scheduler")
    return not scheduler or scheduler["host"] != state["host"] or scheduler["release"] == state["current"]


def pool_problems(states: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is wrong with the schedulers of all hosts together, beyond what each host says of itself.

    :param states: by host that has answered, its ``pool_state``.
    """
    schedulers = {host: state["scheduler"] for host, state in states.items() if state.get("scheduler")}
    runs = {host: scheduler["release"] for host, scheduler in schedulers.items() if scheduler["release"]}
    wanted = sorted({scheduler["host"] for scheduler in schedulers.values() if scheduler["host"]})
    found = [
        f"the scheduler belongs on {host}, which has not told whether it runs" for host in wanted if host not in states
    ]
    if len(runs) > 1:
        found.append("schedulers run on more than one host: " + ", ".join(f"{runs[host]} on {host}" for host in runs))
    return found
