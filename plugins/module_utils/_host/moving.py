# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules ask of a host, each as one call that checks the right to act, acts (or plans), and reports."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Optional

from .._rollout import barriers, rules
from .._rollout.errors import LeaseHeld
from .._rollout.pool_state import DEPLOY, ROLLBACK
from .clock import moment
from .draining import StillDraining, drain, still_running
from .holding import require_way
from .host import Host
from .layout import Part
from .leasing import take
from .steps import Steps
from .terms import WHOLE, Slice, Terms


def _report(
    host: Host, steps: Steps, actions: list[dict[str, Any]], before: Optional[str], after: Optional[str]
) -> dict[str, Any]:
    result = {
        "changed": bool(actions),
        "actions": actions,
        "release": after or "",
        "before": before or "",
        "drained": [asdict(drained) for drained in steps.drained],
        "evidence": steps.evidence,
        "hooks": steps.hooked,
        "diff": {"before": f"release: {before or '-'}\n", "after": f"release: {after or '-'}\n"},
    }
    if steps.handed_over:
        killed = [f"The scheduler {name} didn't end in time and was killed." for name in steps.handed_over.killed]
        result.update(scheduler=asdict(steps.handed_over), warnings=killed)
    return result


def switch_host(
    host: Host,
    terms: Terms,
    *,
    release: str,
    wish: str,
    rollout: int,
    owner: Optional[dict[str, Any]],
    adopt: str,
    lease_seconds: float,
    verdict: str,
    reason: str,
    check_mode: bool,
    cross_barrier: bool = False,
    barrier: str = "",
    given_hooks: Optional[dict[str, list[dict[str, Any]]]] = None,
    scheduler: Optional[dict[str, Any]] = None,
) -> dict[str, Any]:
    """Move the host to ``release``, or back when that is ``previous``; see the module ``release_switch``."""
    steps = Steps(host, rollout, terms)
    going_back = release == rules.PREVIOUS
    if check_mode:
        state = host.state()
        target = rules.rollback_target(state, wish) if going_back else release
        if going_back:
            barriers.require_crossing(state, target, cross_barrier)
        else:
            state.as_if_staged(release, barrier=barrier.strip(), hooks=given_hooks or {}, scheduler=scheduler or {})
        actions = steps.plan_back(state, target) if going_back else steps.plan_switch(state, release)
        left = steps.left(state, target) or "" if going_back else ""
        return {**_report(host, steps, actions, state.current, target), "left": left}
    if owner and going_back and not terms.part.goes_on:
        take(host, moment(), rollout=rollout, kind=ROLLBACK, owner=owner, seconds=lease_seconds, adopt=adopt)
    with host.locked():
        state = host.require(rollout)
        try:
            if not going_back:
                return _report(host, steps, steps.switch(release), state.current, release)
            # Under the lease of a deploy nobody has asked for the release before: the deploy itself gives up.
            gives_up = state.lease is not None and state.lease.kind == DEPLOY and not wish
            target = rules.found_on(state, rollout) if gives_up else rules.rollback_target(state, wish)
            require_way(host, state, target, rollout, cross_barrier)
            actions = steps.back(state, target, verdict=verdict, reason=reason)
        except StillDraining as drains:
            return {"changed": True, "still": drains.progress, "hooks": steps.hooked}
        return {**_report(host, steps, actions, state.current, target), "left": steps.left(state, target) or ""}


def confirm_host(
    host: Host, terms: Terms, *, release: str, rollout: int, check_mode: bool, left: str = ""
) -> dict[str, Any]:
    """Confirm what this rollout has brought the host to; see the module ``release_confirm``.

    :param left: the release that a way back has left, for check mode, in which the journal doesn't have it.
    """
    steps = Steps(host, rollout, terms)
    target = release or None
    state = host.state()
    if check_mode:
        settled = state.current == target and not (state.rollout and state.rollout.open)
        actions = [] if settled else steps.plan_confirm(state, target, left or None)
        return _report(host, steps, actions, state.current, target)
    with host.locked():
        host.require(rollout)
        return _report(host, steps, steps.confirm(target), state.current, target)


def drain_host(
    host: Host, *, release: str, rollout: int, seconds: float, policy: str, check_mode: bool, part: Slice = WHOLE
) -> dict[str, Any]:
    """Bring the workers of a release to rest; see the module ``worker_drain``."""
    state = _may_act(host, rollout)
    release = release or state.current or ""
    busy = still_running(host, release) if release else []
    workers = host.supervisor.processes(release, Part.WORKERS) if release else []
    wanted = any(main.wanted or main.pid for main in workers)
    actions = [{"action": "drain", "release": release, "seconds": seconds, "policy": policy}] if busy or wanted else []
    result: dict[str, Any] = {"changed": bool(actions), "actions": actions, "release": release}
    if not actions and not part.goes_on:
        return {**result, "outcome": "clean", "waited": 0.0, "running": []}
    if check_mode:
        return {**result, "outcome": "unchecked", "waited": 0.0, "running": busy}
    with host.locked():
        try:
            drained = asdict(drain(host, release, rollout or state.last_token, seconds, policy, part))
        except StillDraining as drains:
            return {**result, "still": drains.progress}
    return {**result, **drained}


def resume_host(host: Host, *, release: str, rollout: int, check_mode: bool) -> dict[str, Any]:
    """Have the workers of a release take tasks again."""
    state = _may_act(host, rollout)
    release = release or state.current or ""
    workers = host.supervisor.processes(release, Part.WORKERS) if release else []
    stopped = any(not main.wanted for main in workers)
    actions = [{"action": "start", "release": release}] if stopped else []
    if actions and not check_mode:
        with host.locked():
            host.install_units(host.store.spec(release))
            host.supervisor.start(release)
    return {"changed": bool(actions), "actions": actions, "release": release}


def _may_act(host: Host, rollout: int) -> Any:
    """The state, if this rollout (0: no rollout, a person) may act on the host now."""
    if rollout:
        return host.require(rollout)
    state = host.state()
    lease = state.lease
    if lease and rules.is_live(lease, moment()):
        raise LeaseHeld(
            f"{rules.describe_owner(lease.owner)} holds this host for a {lease.kind}.",
            left="Nothing was changed on this host.",
            next_step="Wait until it is over.",
        )
    return state
