# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each step will do on a host, as data. Check mode shows it; the real run carries out the very same list. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Optional

from .pool_state import GOOD, PoolState

Action = dict[str, Any]

# How long a release that is brought back has to stay up before what else consumes is told to stop: most programs that
# can't start end sooner.
PROOF_SECONDS = 2.0

OVERLAP = "overlap"
REPLACE = "replace"

ABORT = "abort"
REQUEUE = "requeue"
KILL = "kill"
LEAVE = "leave"


def plan_switch(
    target: str,
    others: Sequence[str],
    safe: Optional[str],
    *,
    mode: str,
    seconds: float,
    policy: str,
    at_boot: bool = False,
    hand_over: Sequence[Action] = (),
) -> list[Action]:
    """Bring ``target`` up and the other releases to rest; the guard is armed before anything is touched.

    :param others: releases that run or are installed now, besides the target.
    :param safe: the release that the guard takes the host to, verified first; None on a host without a good one.
    :param seconds: the drain's deadline (``replace`` only: ``overlap`` drains after the release was confirmed).
    :param at_boot: whether the target starts at boot from the switch on, as what ran before can't any more.
    :param hand_over: what has the target's scheduler run and no other: until the target's workers are up, the old one
        goes on.
    """
    actions: list[Action] = [{"action": "verify", "release": release} for release in (target, safe) if release]
    actions.append({"action": "arm_guard", "release": safe})
    actions.append({"action": "install_units", "release": target})
    actions += _exchange(target, others, mode, seconds, policy)
    actions += hand_over
    actions.append({"action": "link", "release": target})
    if at_boot:
        actions.append({"action": "enable", "release": target})
        actions += [{"action": "disable", "release": release} for release in others]
    return actions


def plan_back(
    target: Optional[str],
    others: Sequence[str],
    *,
    mode: str,
    seconds: float,
    policy: str,
    hooks: Sequence[Action] = (),
    hand_over: Sequence[Action] = (),
) -> list[Action]:
    """Bring the last good release up again and the others to rest. With no target: bring all to rest.

    In ``overlap`` the others are told to stop only once the target has stayed up: if it can't, they go on.

    :param hooks: what the release that is left has to be done before.
    :param hand_over: as for ``plan_switch``.
    """
    actions: list[Action] = [{"action": "verify", "release": target}] if target else []
    # Also on the way to nothing: whoever goes there may die before it is confirmed.
    actions.append({"action": "arm_guard", "release": target})
    actions += hooks
    if target:
        actions.append({"action": "install_units", "release": target})
        # What a deploy would give up on is taken along on the way back: a pool is never left silent.
        effective = REQUEUE if policy == ABORT else policy
        proof = {"action": "prove_up", "release": target, "seconds": PROOF_SECONDS}
        actions += _exchange(target, others, mode, seconds, effective, [proof])
    else:
        actions += [{"action": "quiet", "release": release} for release in others]
    actions += hand_over
    actions.append({"action": "link", "release": target})
    return actions


def _exchange(
    target: str, others: Sequence[str], mode: str, seconds: float, policy: str, proof: Sequence[Action] = ()
) -> list[Action]:
    start: list[Action] = [{"action": "start", "release": target}, *proof]
    if mode == OVERLAP:
        return [*start, *({"action": "quiet", "release": release} for release in others)]
    drains = [{"action": "drain", "release": release, "seconds": seconds, "policy": policy} for release in others]
    return [*drains, *start]


def after_commit(policy: str) -> str:
    """After the commit there is nothing left to give up: tasks that outlast the deadline go on in peace."""
    return LEAVE if policy == ABORT else policy


def plan_confirm(
    target: Optional[str],
    others: Sequence[str],
    *,
    seconds: float,
    policy: str,
    prune: Iterable[str] = (),
    hooks: Sequence[Action] = (),
) -> list[Action]:
    """Make ``target`` what the host comes up with, from then on; then let the others go.

    ``commit`` is the point of no return: before it the guard takes the host back, after it the release is good.

    :param hooks: what the release that was left has to be done after a rollback.
    """
    # Before the commit: whoever dies in one of them is followed by somebody who still sees that it has to be run.
    actions: list[Action] = [*hooks]
    actions += [{"action": "enable", "release": target}] if target else []
    actions.append({"action": "commit", "release": target})
    # The guard stays until nothing else would come up at boot and the rest is the reaper's: it finishes this for
    # whoever dies here.
    actions += [{"action": "disable", "release": release} for release in others]
    policy = after_commit(policy)
    actions += [{"action": "reap", "release": release, "seconds": seconds, "policy": policy} for release in others]
    actions.append({"action": "disarm_guard"})
    actions += [{"action": "prune", "release": release} for release in prune]
    return actions


def to_prune(state: PoolState, target: Optional[str], keep: int, running: Iterable[str]) -> list[str]:
    """Which stored releases may go once ``target`` is good: never the last ``keep`` good ones, nor any that still runs.

    :param keep: good releases to keep besides the current one (at least 1: the way back is never destroyed).
    """
    good = [release for release in state.good_releases() if release != target]
    kept = {target, *good[: max(1, keep)], *running}
    newest_first = sorted(state.releases.values(), key=lambda release: release.since, reverse=True)
    spare = [release.id for release in newest_first if release.id not in kept]
    # Releases that never became good are evidence: as many of them stay as good ones do. What a drill leaves is none.
    evidence = [release for release in spare if state.state_of(release) != GOOD and not state.is_spent_drill(release)]
    evidence = evidence[: max(1, keep)]
    return [release for release in spare if release not in evidence]
