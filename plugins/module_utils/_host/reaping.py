# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reaper: lets a release go once its last task has ended, with no play that waits for it."""

from __future__ import annotations

from typing import Callable

from .._rollout.pool_state import Draining, PoolState
from .._rollout.reaping import Seen, plan_reap
from .clock import moment, persist
from .draining import Drained, kill, still_running
from .host import Host
from .layout import Part
from .supervisors.base import REAPER

_LOOK_SECONDS = 1.0


def reap(host: Host, *, wait: bool = False) -> str:
    """Let releases go whose tasks have ended; a sentence that says what drains on.

    :param wait: stay until nothing drains any more.
    """
    if wait:
        persist(lambda: _is_over(host), poll=_LOOK_SECONDS)
    else:
        with host.locked():
            see_to_it(host)
    left = ", ".join(sorted(host.state().draining))
    return f"Still draining: {left}." if left else "Nothing drains."


def _is_over(host: Host) -> bool:
    """Look once."""
    state = host.state()
    if state.draining and not plan_reap(state, look(host, state), moment()):
        return False
    with host.locked():
        see_to_it(host)
        return not host.state().draining


def look(host: Host, state: PoolState) -> dict[str, Seen]:
    """How each draining release is now, and each other one that runs."""
    running = host.running()
    seen = {release: Seen(alive=True, wanted=False) for release in running}
    for release in state.draining:
        mains = host.supervisor.processes(release)
        alive = release in running or any(main.pid for main in mains)
        seen[release] = Seen(alive, wanted=any(main.wanted for main in mains))
    return seen


def see_to_it(host: Host) -> None:
    """Let go what can go now, and have the reaper wait for the rest. The caller holds the host's lock."""
    state = host.state()
    for action in plan_reap(state, look(host, state), moment()):
        _ACTS[action["action"]](host, state, action["release"])
    draining = host.state().draining
    armed = host.supervisor.chore_armed(REAPER)
    if draining and not armed:
        host.supervisor.arm_chore(REAPER, state.last_token, None)
    elif armed and not draining:
        host.supervisor.disarm_chore(REAPER)


def how_it_drains(host: Host, release: str) -> Drained:
    """How a release that was left does: ``draining`` while something of it runs."""
    state = host.state()
    if release in state.draining:
        return Drained(release, "draining", _waited(state.draining[release]), still_running(host, release))
    reaped = state.reaped.get(release)
    if reaped is None:
        # What a drill leaves is pruned in the moment in which it has ended, unless somebody was killed.
        return Drained(release, "clean", 0.0, [])
    return Drained(release, reaped.outcome, 0.0, reaped.running)


def _waited(entry: Draining) -> float:
    return round(max(0.0, moment().time - entry.since), 1)


def _quiet(host: Host, _state: PoolState, release: str) -> None:
    host.supervisor.quiet(release)


def _kill(host: Host, state: PoolState, release: str) -> None:
    entry = state.draining[release]
    if not entry.overran:
        # Before it acts: whoever finishes this after us has to name them all the same.
        running = still_running(host, release)
        host.note("drain_overran", entry.token, release=release, policy=entry.policy, running=running)
    kill(host, release, Part.ALL)
    _remove_units(host, host.state(), release)


def _remove_units(host: Host, state: PoolState, release: str) -> None:
    entry = state.draining[release]
    host.remove_units(release)
    outcome = "killed" if entry.overran else "clean"
    host.note("reaped", entry.token, release=release, outcome=outcome, waited=_waited(entry), running=entry.overran)


def _prune(host: Host, state: PoolState, release: str) -> None:
    host.store.discard(release)
    host.note("pruned", state.last_token, release=release)


_ACTS: dict[str, Callable[[Host, PoolState, str], None]] = {
    "quiet": _quiet,
    "kill": _kill,
    "remove_units": _remove_units,
    "prune": _prune,
}
