# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may change a host, and in which order: lease rules and step rules. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from .errors import LeaseHeld, NoGoodRelease, ReleaseRefused, StaleToken, StepOutOfOrder
from .names import utc
from .pool_state import (
    BAD,
    CONFIRMED,
    GOING_BACK,
    GOOD,
    RESTORED,
    ROLLBACK,
    SWITCHED,
    SWITCHING,
    UNFINISHED,
    Lease,
    PoolState,
    Rollout,
)

# The word for where a rollback goes by itself, for whoever has to type something.
PREVIOUS = "previous"


@dataclass(frozen=True)
class Moment:
    """A host's own time: ``boot`` names the boot, ``up`` counts seconds since then, ``time`` is epoch seconds."""

    boot: str
    up: float
    time: float


def is_live(lease: Optional[Lease], now: Moment) -> bool:
    """Whether the lease still binds: not given back, of this boot, not expired by the host's own clock."""
    return lease is not None and not lease.released and lease.boot == now.boot and now.up < lease.expires


def describe_owner(owner: dict[str, Any]) -> str:
    """An owner as a person reads it: ``ana@ops1 (pid 4711)`` or ``ana (AWX job 7)``, and the alert it runs for."""
    who = f"{owner.get('user', '?')}@{owner.get('controller', '?')} (pid {owner.get('pid', '?')})"
    if owner.get("job"):
        who = f"{owner.get('user', '?')} (AWX job {owner['job']})"
    return f"{who} for alert {owner['alert']}" if owner.get("alert") else who


@dataclass(frozen=True)
class Grant:
    """The answer to a request for a lease. ``how`` is ``granted``, ``kept``, ``adopted`` or ``preempted``."""

    token: int
    how: str


def decide_grant(
    state: PoolState, now: Moment, *, token: int, kind: str, owner: dict[str, Any], adopt: str = ""
) -> Grant:
    """Decide on a request for the lease of a host.

    :param token: the number that the rollout wants to carry; must be larger than all the host has seen.
    :param kind: ``deploy`` or ``rollback``. A rollback pre-empts a deploy; nothing pre-empts a rollback.
    :param adopt: the ``run`` of an owner that the asker has proven dead, or "".
    :raises LeaseHeld: somebody else holds it.
    :raises StaleToken: the number is not larger than the last one seen.
    """
    lease = state.lease
    if lease and is_live(lease, now):
        # An owner that names no run can't be told from another one that names none.
        run = lease.owner.get("run")
        if run and run == owner.get("run"):
            return Grant(lease.token, "kept")
        if run and run == adopt:
            return Grant(_fresh(state, token), "adopted")
        if kind == ROLLBACK and lease.kind != ROLLBACK:
            return Grant(_fresh(state, token), "preempted")
        if token < lease.token:
            # Planned before that one, and late: it is over, whoever holds this host.
            _fresh(state, token)
        raise LeaseHeld(
            f"{describe_owner(lease.owner)} holds this host for a {lease.kind} since {utc(lease.granted)}; "
            f"the lease runs out in {lease.expires - now.up:.0f} s unless they go on.",
            left="Nothing was changed on this host.",
            next_step="Wait for it, or ask them. "
            + (
                "Then see where it has brought the pool: ansible-playbook backstep.workers.status"
                if lease.kind == ROLLBACK
                else "To take the pool back in spite of a deploy: ansible-playbook backstep.workers.rollback"
            ),
            owner=lease.owner,
            kind=lease.kind,
            token=lease.token,
            expires_in=round(lease.expires - now.up, 1),
        )
    return Grant(_fresh(state, token), "granted")


def pre_empts(state: PoolState, now: Moment, request: dict[str, Any]) -> bool:
    """Whether who asks for this host may have it at once, though somebody is in the middle of a drain.

    :param request: ``{token, kind, owner, adopt}``, as for ``decide_grant``.
    """
    going_back = state.rollout is not None and state.rollout.open and state.rollout.kind == ROLLBACK
    if request["kind"] != ROLLBACK or going_back:
        return False
    try:
        return decide_grant(state, now, **request).how != "kept"
    except (LeaseHeld, StaleToken):
        return False


def _superseded_by(state: PoolState, token: int) -> str:
    """Who has come after rollout ``token``, or ""."""
    lease = state.lease
    if lease is None or lease.token <= token:
        return ""
    return f"rollout {lease.token} of {describe_owner(lease.owner)} ({lease.kind})"


def _fresh(state: PoolState, token: int) -> int:
    if token <= state.last_token:
        by = _superseded_by(state, token)
        raise StaleToken(
            f"Rollout number {token} is not newer than {state.last_token}, which this host has seen already"
            + (f": {by} has superseded it." if by else "."),
            left="Nothing was changed on this host.",
            next_step="See who is at work with: ansible-playbook backstep.workers.status"
            if by
            else "Run the playbook again: it reads the numbers anew.",
            superseded_by=by,
        )
    return token


def require_lease(state: PoolState, now: Moment, token: int) -> None:
    """Refuse a step whose token is not that of the live lease.

    :raises StaleToken: the lease was given to somebody else, given back, or has run out.
    """
    lease = state.lease
    if lease and lease.token == token and is_live(lease, now):
        return
    if lease is None:
        why = "nobody holds the lease of this host"
    elif lease.token > token:
        why = f"{_superseded_by(state, token)} has superseded it"
    elif lease.token < token:
        why = f"this host never granted it; it knows {lease.token}"
    elif lease.released:
        why = "its lease was given back"
    else:
        ago = f" {now.up - lease.expires:.0f} s ago" if lease.boot == now.boot else ", as the host was started anew"
        why = f"its lease has run out{ago}, and nobody has taken it since"
    raise StaleToken(
        f"Rollout {token} may not change this host: {why}.",
        left=f"Nothing was changed on this host by this step. {_where_it_stands(state, now)}",
        next_step="See who is at work with: ansible-playbook backstep.workers.status",
        superseded_by=_superseded_by(state, token),
    )


def _where_it_stands(state: PoolState, now: Moment) -> str:
    """Where a host is that a rollout has lost, and where it goes by itself."""
    rollout, here = state.rollout, f"It is on {state.current or 'no release'}"
    if rollout is None or not rollout.open:
        return f"{here}, and nothing is open on it."
    if rollout.phase not in (SWITCHING, SWITCHED):
        return f"{here}, and on its way back to {rollout.target or 'no release'}."
    left = rollout.deadline - now.up if rollout.deadline is not None and rollout.boot == now.boot else 0.0
    when = f"within {left:.0f} s" if left > 0 else "now"
    return f"{here} and was not confirmed: its guard takes it back to {rollout.safe or 'no release'} {when}."


def require_target(state: PoolState, release: str) -> None:
    """Refuse a release that may not be run: unknown, unfinished, or quarantined.

    :raises ReleaseRefused: always says which of these it is.
    """
    status = state.state_of(release)
    if status == BAD:
        reason = state.releases[release].reason
        raise ReleaseRefused(
            f"Release {release} is quarantined as bad" + (f": {reason}" if reason else "") + ".",
            left="Nothing was changed on this host.",
            next_step="Deploy a changed release: any change of code, config or environment makes a new one.",
        )
    if status is None or status == UNFINISHED:
        what = "is not on this host" if status is None else "was never finished on this host"
        raise ReleaseRefused(
            f"Release {release} {what}.",
            left="Nothing was changed on this host.",
            next_step="Stage it first: ansible-playbook backstep.workers.deploy",
        )


def require_switch(state: PoolState, release: str) -> None:
    """Whether a deploy may switch this host to ``release`` now.

    :raises StepOutOfOrder: a rollback is under way and has to be finished first.
    """
    require_target(state, release)
    rollout = state.rollout
    if rollout and rollout.phase in (GOING_BACK, RESTORED):
        raise StepOutOfOrder(
            f"This host is on its way back to {rollout.target or 'no release'} (rollout {rollout.token}).",
            left="Nothing was changed on this host.",
            next_step="Finish that first: ansible-playbook backstep.workers.rollback",
        )


def require_confirm(state: PoolState, token: int, release: Optional[str]) -> Optional[Rollout]:
    """Whether ``release`` may be confirmed by rollout ``token``.

    :returns: the rollout that is to be confirmed; None when there is nothing to do, as it has been confirmed already.
    :raises StepOutOfOrder: this rollout did not switch this host to that release, or the guard has taken it back.
    """
    rollout = state.rollout
    if rollout and rollout.token == token and rollout.target == release:
        if rollout.phase == SWITCHED and state.is_drill(release):
            raise StepOutOfOrder(
                f"{release} was made to fail for a drill, and it seems to work: it is never confirmed.",
                left="The guard is still armed.",
                next_step="The rollout takes every touched host back.",
            )
        if rollout.phase in (SWITCHED, RESTORED):
            return rollout
        if rollout.phase == CONFIRMED:
            return None
    idle = rollout is None or not rollout.open
    if idle and state.current == release and (release is None or state.state_of(release) == GOOD):
        return None
    what = "has not switched this host" if not rollout else f"finds this host {rollout.phase.replace('_', ' ')}"
    raise StepOutOfOrder(
        f"Rollout {token} {what}, so {release} can't be confirmed here.",
        left=f"This host stays on {state.current or 'no release'}.",
        next_step="See what happened with: ansible-playbook backstep.workers.status",
    )


def require_under_way(state: PoolState, token: int, phase: str, target: Optional[str]) -> None:
    """Refuse to go on with a step that somebody else has ended meanwhile, such as the guard.

    :raises StepOutOfOrder: this rollout is no longer in the middle of it.
    """
    rollout = state.rollout
    if rollout is None or (rollout.token, rollout.phase, rollout.target) != (token, phase, target):
        raise StepOutOfOrder(
            f"This host is no longer on its way to {target or 'no release'}: somebody else has moved it meanwhile.",
            left="Nothing was changed on this host by this call.",
            next_step="See what happened with: ansible-playbook backstep.workers.status",
        )


def require_in_time(state: PoolState, now: Moment, release: str) -> None:
    """Whether ``release`` may still be made good: a host that stood still meanwhile may be its guard's by now.

    :raises StepOutOfOrder: the guard's time has come.
    """
    deadline = state.rollout.deadline if state.rollout else None
    if deadline is not None and now.up >= deadline:
        raise StepOutOfOrder(
            f"{release} is not confirmed: its guard's time came {now.up - deadline:.0f} s ago.",
            left="The guard takes this host back.",
            next_step="See what happened with: ansible-playbook backstep.workers.status",
        )


def last_good(state: PoolState) -> Optional[str]:
    """The release that the guard of the next switch takes this host to, or None."""
    good = state.good_releases()
    return good[0] if good else None


def found_on(state: PoolState, token: int) -> Optional[str]:
    """Where rollout ``token``, a deploy that gives up, takes this host: to the release that it found it on.

    A host that it has not switched, as far as the journal knows, stays where it is.
    """
    rollout = state.rollout
    if rollout and (rollout.open or rollout.token == token):
        return rollout.safe
    return state.current


def rollback_target(state: PoolState, wish: str = "") -> Optional[str]:
    """Where a rollback takes this host; equal to ``state.current`` with no open rollout when there is nothing to do.

    Without a wish, or with ``previous``: out of an open rollout to its safe release; a host that a rollback has brought
    to a good release stays there (rolling back twice never lands on a worse place); else to the good release before the
    current one.
    ``None`` only for a host whose first rollout is open: back to nothing running.

    :raises NoGoodRelease: there is nothing to go back to.
    :raises ReleaseRefused: the wish is not a good release of this host.
    """
    if wish and wish != PREVIOUS:
        require_target(state, wish)
        if state.state_of(wish) != GOOD:
            raise ReleaseRefused(
                f"Release {wish} was never confirmed as good on this host (it is {state.state_of(wish)}).",
                left="Nothing was changed on this host.",
                next_step=f"Choose one of: {', '.join(state.good_releases()) or 'none is good'}.",
            )
        return wish
    if state.rollout and state.rollout.open:
        return state.rollout.safe
    good = state.good_releases()
    if good and (state.current != good[0] or state.arrived_by == ROLLBACK):
        return good[0]
    if len(good) > 1:
        return good[1]
    raise NoGoodRelease(
        f"There is no good release to go back to: {state.current} is the only one that was ever confirmed."
        if state.current
        else "There is no good release to go back to: nothing was ever confirmed on this host.",
        left="Nothing was changed on this host.",
        next_step="Deploy a good one: ansible-playbook backstep.workers.deploy -e pool_version=...",
    )
