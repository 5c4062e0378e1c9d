# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way back that needs nobody: what the guard does, and what a person does on the host alone."""

from __future__ import annotations

import sys
import time
from typing import Optional

from .._rollout.barriers import require_crossing
from .._rollout.errors import BackstepError, HookFailed, RollbackBarrier, RollbackFailed, StepOutOfOrder
from .._rollout.hook_steps import AFTER_ROLLBACK, BEFORE_ROLLBACK, DONE
from .._rollout.hooks import seconds_of, sentence
from .._rollout.rules import describe_owner, is_live, rollback_target
from .._rollout.state import DEPLOY, ROLLBACK, STUCK, PoolState, Rollout
from . import asking
from .clock import Deadline, moment
from .holding import require_way
from .host import Host
from .reaping import see_to_it
from .steps import Steps, Terms

_DRAIN_SECONDS = 60.0
_WAIT_FOR_STEP_SECONDS = 120.0
_LOOK_SECONDS = 3600.0
# Between two tries of a guard that could not act.
_AGAIN_SECONDS = 5.0
# The next guard waits for the lock of this host until whoever goes back now has finished, or has died.
_TAKE_OVER_SECONDS = 1.0


def _due(rollout: Rollout, boot: bool) -> bool:
    now = moment()
    if boot or rollout.boot != now.boot:
        return True
    return rollout.deadline is None or now.up >= rollout.deadline


def _given_up(rollout: Rollout, boot: bool) -> str:
    """Why the way back is not tried any more, or "". One that has failed is, when the host has come up anew."""
    if rollout.held:
        return f"the way back is barred, as {rollout.held} can't be undone"
    return rollout.reason if rollout.phase == STUCK and not boot and rollout.boot == moment().boot else ""


def guard(host: Host, *, boot: bool = False, wait: bool = False) -> str:
    """Take the host back if its rollout was not confirmed in time; a sentence that says what was done.

    :param boot: the host has just come up: an open rollout is over.
    :param wait: stay until the rollout is confirmed or due, and try again what could not be done (supervisord has
        no timers, and no time between two tries).
    :raises BackstepError: it could not be done; whoever has started the guard starts it again in a while.
    """

    def decided() -> bool:
        rollout = host.state().rollout
        return rollout is None or not rollout.open or bool(_given_up(rollout, boot)) or _due(rollout, boot)

    while wait:
        try:
            if Deadline(_LOOK_SECONDS).wait_until(decided, poll=0.5):
                return _fire(host, boot)
        except RollbackFailed as error:
            return str(error)
        except (BackstepError, OSError) as error:
            sys.stderr.write(f"backstep: {error}\n")
            time.sleep(_AGAIN_SECONDS)
    return _fire(host, boot)


def _fire(host: Host, boot: bool) -> str:
    with host.locked(_WAIT_FOR_STEP_SECONDS):
        state = host.state()
        rollout = state.rollout
        if rollout is None or not rollout.open:
            return _let_go(host, state)
        if _given_up(rollout, boot):
            return f"This host needs a person: {_given_up(rollout, boot)}"
        if not _due(rollout, boot):
            # Whoever gave it more time may have died before there was another guard.
            host.supervisor.arm_guard(rollout.token, (rollout.deadline or 0.0) - moment().up)
            return "The rollout's time is not up yet: another guard waits."
        why = (
            "the host came up in the middle of it"
            if boot or rollout.boot != moment().boot
            else "it was not confirmed in time"
        )
        host.note("guard_fired", rollout.token, reason=why)
        try:
            require_way(host, state, rollout.safe, rollout.token, cross=False)
            return _go_back(host, state, rollout.safe, rollout.token, f"guard: {why}")
        except (RollbackBarrier, HookFailed) as error:
            # Nothing that another try could change.
            return str(error)


def _let_go(host: Host, state: PoolState) -> str:
    """Finish a confirmation that was cut short: nothing but the current release may come up at boot."""
    left = [release for release in state.releases if release != state.current and host.supervisor.enabled(release)]
    why = f"a confirmation was cut short: {', '.join(left)} would still start at boot"
    if left:
        host.note("guard_fired", state.last_token, reason=why)
    for release in left:
        host.supervisor.disable(release)
        host.supervisor.quiet(release)
    see_to_it(host)
    host.supervisor.disarm_guard()
    return f"Finished it: {why}." if left else "No rollout is open."


def go_back_alone(host: Host, wish: str, reason: str, cross_barrier: bool = False) -> str:
    """A person's rollback on this host alone, with no controller; a sentence that says what was done.

    :raises RollbackBarrier: the way back leads past a release that can't be undone, and ``cross_barrier`` wasn't said.
    :raises StepOutOfOrder: a rollback is under way from a controller.
    """
    owner = {"user": "root", "controller": host.pool.host}
    request = {"token": host.state().last_token + 1, "kind": ROLLBACK, "owner": owner}
    with asking.asked_for(host, request), host.locked():
        state = host.state()
        now = moment()
        if state.lease and is_live(state.lease, now) and state.lease.kind != DEPLOY:
            raise StepOutOfOrder(
                f"{describe_owner(state.lease.owner)} is rolling this pool back.",
                left="Nothing was changed.",
                next_step="Wait for it, then look at: backstep status",
            )
        target = rollback_target(state, wish)
        open_rollout = state.rollout is not None and state.rollout.open
        if not open_rollout and state.current == target:
            return f"Already on the last good release {target}: nothing to do."
        require_crossing(state, target, cross_barrier)
        # A number of its own: whoever was at work here is refused from now on.
        token = state.last_token + 1
        host.note("lease_granted", token, kind=ROLLBACK, owner=owner, seconds=0)
        return _go_back(host, host.state(), target, token, reason, verdict="bad")


def _go_back(
    host: Host, state: PoolState, target: Optional[str], token: int, reason: str, verdict: str = "unknown"
) -> str:
    rollout = state.rollout
    mode = rollout.mode if rollout and rollout.open else Terms.mode
    left = state.releases.get(Steps.left(state, target) or "")
    hook_seconds = seconds_of(left.hooks, BEFORE_ROLLBACK, AFTER_ROLLBACK) if left else 0.0
    take_over = _TAKE_OVER_SECONDS + hook_seconds
    steps = Steps(host, token, Terms(mode=mode, drain_seconds=_DRAIN_SECONDS, confirm_seconds=take_over))
    steps.back(state, target, verdict=verdict, reason=reason)
    steps.confirm(target)
    failed = [sentence(hook) for hook in steps.hooked if hook["outcome"] != DONE]
    where = f"Back on {target or 'no release: nothing runs'} ({reason})"
    if failed:
        raise HookFailed(
            f"{where}, but {'; '.join(failed)}.",
            left=f"{target or 'Nothing'} runs.",
            next_step="Do by hand what is missing.",
        )
    return f"{where}."
