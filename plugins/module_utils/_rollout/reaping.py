# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the reaper does about releases that were left with tasks to end. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from .plans import KILL, REQUEUE, Action, to_prune
from .pool_state import Draining, PoolState
from .rules import Moment, is_live


@dataclass(frozen=True)
class Seen:
    """A release at one moment: whether a process of it lives, and whether its supervisor keeps its workers up."""

    alive: bool
    wanted: bool


def in_use(state: PoolState) -> set[Optional[str]]:
    """The releases that nobody but a rollout may touch: where the host is, and both ends of an open rollout."""
    rollout = state.rollout
    ends = {rollout.origin, rollout.target, rollout.safe} if rollout and rollout.open else set()
    return {state.current, *ends}


def plan_reap(state: PoolState, seen: Mapping[str, Seen], now: Moment) -> list[Action]:
    """What to do now; an empty list while tasks go on that may go on.

    :param seen: how each draining release, and any other that runs, is at this moment.
    """
    actions: list[Action] = []
    kept = in_use(state)
    for entry in state.draining.values():
        if entry.release in kept:
            continue
        look = seen[entry.release]
        if look.wanted:
            # A worker that has died by itself just when it was told to stop is about to be started again.
            actions.append({"action": "quiet", "release": entry.release})
        elif not look.alive:
            actions.append({"action": "remove_units", "release": entry.release})
        elif entry.policy in (KILL, REQUEUE) and _is_over(entry, now):
            actions.append({"action": "kill", "release": entry.release})
    gone = [action["release"] for action in actions if action["action"] == "remove_units"]
    running = [release for release, look in seen.items() if look.alive and release not in gone]
    return actions + [{"action": "prune", "release": release} for release in _spare(state, gone, running, now)]


def _is_over(entry: Draining, now: Moment) -> bool:
    """Never for what has been started since another boot: it has no task of before."""
    return entry.boot == now.boot and now.up >= entry.deadline


def _spare(state: PoolState, gone: list[str], running: list[str], now: Moment) -> list[str]:
    """What was kept only because it still ran. Never while somebody is at work, who may be about to switch to it."""
    if not gone or is_live(state.lease, now) or (state.rollout and state.rollout.open):
        return []
    keep = max(state.draining[release].keep for release in gone)
    draining = [release for release in state.draining if release not in gone]
    return to_prune(state, state.current, keep, [*draining, *running])
