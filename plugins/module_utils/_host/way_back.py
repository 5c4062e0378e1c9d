# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way back that needs nobody: what the guard does, and what a person does on the host alone."""

from __future__ import annotations

from typing import Optional

from .._rollout import schedulers
from .._rollout.barriers import require_crossing
from .._rollout.errors import HookFailed, RollbackBarrier, RollbackFailed, StepOutOfOrder
from .._rollout.hook_steps import AFTER_ROLLBACK, BEFORE_ROLLBACK, DONE
from .._rollout.hooks import seconds_of, sentence
from .._rollout.pool_state import DEPLOY, ROLLBACK, STUCK, PoolState, Rollout
from .._rollout.rules import describe_owner, is_live, rollback_target
from . import asking
from .clock import moment, persist
from .holding import require_way
from .host import Host
from .info import RUNNING, workers
from .reaping import see_to_it
from .steps import Steps
from .terms import Terms

_DRAIN_SECONDS = 60.0
_WAIT_FOR_STEP_SECONDS = 120.0
_LOOK_SECONDS = 1.0
# The next guard waits for the lock of this host until whoever goes back now has finished, or has died.
_TAKE_OVER_SECONDS = 1.0
# How long all workers of the last good release have to have been up before a way back that has failed is gone on with:
# longer than a worker that has lost its broker is seen to run between two starts.
_STEADY_SECONDS = 10.0


def _is_due(host: Host, boot: bool) -> bool:
    """Whether there is something to do for the guard now, even if it is only to say that nothing is."""
    state = host.state()
    rollout = state.rollout
    if rollout is None or not rollout.open or rollout.held:
        return True
    return _works_again(host, state) if _is_stuck(rollout, boot) else _time_is_up(rollout, boot)


def _time_is_up(rollout: Rollout, boot: bool) -> bool:
    now = moment()
    if boot or rollout.boot != now.boot:
        return True
    return rollout.deadline is None or now.up >= rollout.deadline


def _is_stuck(rollout: Rollout, boot: bool) -> bool:
    """Whether the way back has failed. It is tried anew when the host has come up anew."""
    return rollout.phase == STUCK and not boot and rollout.boot == moment().boot


def _works_again(host: Host, state: PoolState) -> bool:
    """Whether what a way back that has failed leads to stays up by now, and nobody is at work here."""
    rollout = state.rollout
    if rollout is None or not rollout.target or is_live(state.lease, moment()):
        return False
    seen = workers(host, rollout.target)
    return bool(seen) and all(
        worker["state"] == RUNNING and worker["reports"] == rollout.target and worker["uptime"] >= _STEADY_SECONDS
        for worker in seen
    )


def guard(host: Host, *, boot: bool = False, wait: bool = False) -> str:
    """Take the host back if its rollout was not confirmed in time; a sentence that says what was done.

    A way back that fails is not tried again, as what consumes would be disturbed each time. But once the release that
    it leads to stays up after all (its broker can be reached again), the host goes on to it.

    :param boot: the host has just come up: an open rollout is over.
    :param wait: stay until there is no rollout left to guard, and try again what could not be done.
    :raises BackstepError: it could not be done; whoever has started the guard starts it again in a while.
    """
    if not wait:
        return _fire(host, boot)
    said = ""
    come_up = boot

    def settled() -> bool:
        nonlocal said, come_up
        if not _is_due(host, come_up):
            return False
        try:
            said = _fire(host, come_up)
        except RollbackFailed:
            come_up = False
            raise
        rollout = host.state().rollout
        return rollout is None or not rollout.open or bool(rollout.held)

    persist(settled, poll=_LOOK_SECONDS)
    return said


def _fire(host: Host, boot: bool) -> str:
    with host.locked(_WAIT_FOR_STEP_SECONDS):
        state = host.state()
        rollout = state.rollout
        if rollout is None or not rollout.open:
            return _let_go(host, state)
        if rollout.held:
            return f"This host needs a person: the way back is barred, as {rollout.held} can't be undone"
        why = "it was not confirmed in time"
        if _is_stuck(rollout, boot):
            if not _works_again(host, state):
                return f"This host needs a person: {rollout.reason}"
            why = f"{rollout.target} stays up now"
        elif not _time_is_up(rollout, boot):
            # Whoever gave it more time may have died before there was another guard.
            host.supervisor.arm_guard(rollout.token, (rollout.deadline or 0.0) - moment().up)
            return "The rollout's time is not up yet: another guard waits."
        elif boot or rollout.boot != moment().boot:
            why = "the host came up in the middle of it"
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
        _require_no_move(state, target)
        # A number of its own: whoever was at work here is refused from now on.
        token = state.last_token + 1
        host.note("lease_granted", token, kind=ROLLBACK, owner=owner, seconds=0)
        return _go_back(host, host.state(), target, token, reason, verdict="bad")


def _require_no_move(state: PoolState, target: Optional[str]) -> None:
    """Refuse a way back after which the scheduler would run on another host: this one can't see that it ends there.

    :raises StepOutOfOrder: says where it may still run.
    """
    wished = state.releases[target].scheduler.get("host") if target in state.releases else None
    for release in schedulers.may_run(state):
        host = state.releases[release].scheduler["host"]
        if wished and host != wished:
            raise StepOutOfOrder(
                f"The scheduler of {release} is on {host}, that of {target} on {wished}: for a while both would run.",
                left="Nothing was changed.",
                next_step="Go to a release that has no scheduler first.",
            )


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
