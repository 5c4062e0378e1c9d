# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rollback barriers: releases that declare that they can't be undone, and who may go back past them. Pure.

A barrier counts once its release was switched to: before, nothing was done that would have to be undone.
"""

from __future__ import annotations

from typing import Any, Optional

from .errors import RollbackBarrier
from .pool_state import ROLLBACK, PoolState

CROSS = (
    "To go back all the same: ansible-playbook backstep.workers.rollback -e pool_cross_barrier=true "
    "(on a host alone: backstep rollback --cross-barrier)."
)


def barred_by(state: PoolState, target: Optional[str]) -> Optional[str]:
    """The release whose barrier lies between here and ``target``, the latest; None when the way is free.

    A way back that is under way already was asked for: it is never stopped half way.
    """
    if state.rollout and state.rollout.open and state.rollout.kind == ROLLBACK:
        return None
    found = [release for release, barrier in state.barriers.items() if target in barrier.behind]
    return found[-1] if found else None


def holds_at_boot(state: PoolState, target: str) -> bool:
    """Whether ``target``, once switched to, has to start at boot before it is confirmed: nothing else may any more."""
    release = state.releases.get(target)
    good = state.good_releases()
    safe = good[0] if good else None
    return bool(safe and safe != target and ((release and release.barrier) or barred_by(state, safe)))


def describe(state: PoolState, target: Optional[str]) -> Optional[dict[str, Any]]:
    """The barrier on the way to ``target`` as plain JSON, None when the way is free.

    :returns: ``{release, reason, keep}``: whose it is, why, and the version of the release that could be kept instead
        by deploying it again ("" when it is good already).
    """
    barrier = barred_by(state, target)
    if barrier is None:
        return None
    rollout = state.rollout
    unconfirmed = rollout.target if rollout and rollout.open else None
    known = state.releases.get(unconfirmed) if unconfirmed else None
    return {"release": barrier, "reason": state.barriers[barrier].reason, "keep": known.version if known else ""}


def refusal(barrier: dict[str, Any], target: Optional[str], left: str, **details: Any) -> RollbackBarrier:
    """What is said to whoever wants to go back past a barrier without saying so.

    :param barrier: as ``describe`` gives it.
    :param left: what was left as it was.
    """
    keep = (
        f" To keep {barrier['keep']} instead, mend what is wrong and run: ansible-playbook backstep.workers.deploy "
        f"-e pool_version={barrier['keep']}, which proves it again and confirms it."
        if barrier["keep"]
        else ""
    )
    return RollbackBarrier(
        f"The way back to {target} is barred: {barrier['release']} can't be undone ({barrier['reason']}).",
        left=left,
        next_step=CROSS + keep,
        release=barrier["release"],
        **details,
    )


def require_crossing(state: PoolState, target: Optional[str], cross: bool) -> None:
    """Refuse a way back past a barrier that nobody has asked to cross.

    :raises RollbackBarrier: says whose barrier it is, why, and what to type.
    """
    barrier = describe(state, target)
    if barrier and not cross:
        raise refusal(barrier, target, f"This host stays on {state.current}, which goes on consuming.")
