# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hooks: a release's own commands around the steps of a rollout. Which are to run, and what their end means. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Optional

from .errors import StepOutOfOrder
from .hook_steps import (
    AFTER_CONFIRM,
    AFTER_ROLLBACK,
    AFTER_SWITCH,
    BEFORE_CONFIRM,
    BEFORE_ROLLBACK,
    BEFORE_SWITCH,
    DONE,
    hook_mark,
)
from .plans import Action
from .pool_state import GOOD as GOOD_RELEASE
from .pool_state import SWITCHED, PoolState
from .verdict import BAD, GOOD, UNKNOWN

EVERY_HOST = "hosts"
ONE_HOST = "once"

FAILED = "failed"
TIMEOUT = "timeout"
NOT_RUN = "not_run"

Hooks = Mapping[str, Sequence[Mapping[str, Any]]]
Result = Mapping[str, Any]

_MOVING = (BEFORE_SWITCH, AFTER_SWITCH, BEFORE_CONFIRM)


def plan_hooks(release: str, hooks: Hooks, step: str, *, once: bool, ran: Collection[str] = ()) -> list[Action]:
    """The hooks of a step that are to be run on this host, in their order.

    :param once: whether this is the host on which hooks that are meant for one host run.
    :param ran: those that have run well already (see ``hook_mark``).
    """
    return [
        {
            "action": "hook",
            "release": release,
            "step": step,
            "number": number,
            **{key: hook[key] for key in ("command", "timeout", "chdir")},
        }
        for number, hook in enumerate(hooks.get(step, ()), 1)
        if (once or hook["where"] == EVERY_HOST) and hook_mark(step, number) not in ran
    ]


def pending(state: PoolState, release: str, step: str, *, once: bool) -> list[Action]:
    """The hooks of a release that this rollout has yet to run for a step, from the switch on.

    None for a host that is on the release already: there is no switch to run them for.
    """
    known = state.releases.get(release)
    here = not (state.rollout and state.rollout.open) and state.current == release
    if known is None or (step in _MOVING and here and known.state == GOOD_RELEASE):
        return []
    return plan_hooks(release, known.hooks, step, once=once, ran=state.ran.get(release, ()))


def pending_rollback(state: PoolState, left: Optional[str], target: Optional[str], step: str) -> list[Action]:
    """The hooks that the release that is left has for the way back."""
    known = state.releases.get(left) if left else None
    if known is None or left == target:
        return []
    return plan_hooks(known.id, known.hooks, step, once=is_once(state, known.id), ran=state.ran.get(known.id, ()))


def is_once(state: PoolState, release: str) -> bool:
    """Whether this is the host that runs a release's hooks for one host, as its own journal has it."""
    rollout = state.rollout
    return bool(rollout and rollout.once and release in (rollout.target, rollout.origin))


def require_step(state: PoolState, token: int, release: str, step: str) -> None:
    """Refuse hooks out of order.

    :raises StepOutOfOrder: this rollout has not brought the host to where they belong.
    """
    rollout = state.rollout
    settled = state.current == release and not (rollout and rollout.open) and state.state_of(release) == GOOD_RELEASE
    switched = rollout and (rollout.phase, rollout.target, rollout.token) == (SWITCHED, release, token)
    fits = {
        BEFORE_SWITCH: release in state.releases,
        AFTER_SWITCH: switched or settled,
        BEFORE_CONFIRM: switched or settled,
        AFTER_CONFIRM: settled,
    }
    if not fits.get(step):
        raise StepOutOfOrder(
            f"The hooks {step} of {release} can't be run here now: rollout {token} finds this host on "
            f"{state.current or 'no release'}" + (f" ({rollout.phase.replace('_', ' ')})." if rollout else "."),
            left="None was run.",
            next_step="See what happened with: ansible-playbook backstep.workers.status",
        )


def require_ran(state: PoolState, release: str, steps: Sequence[str], *, once: bool) -> None:
    """Refuse a step whose hooks have not run well.

    :raises StepOutOfOrder: names them.
    """
    left = [name_of(action) for step in steps for action in pending(state, release, step, once=once)]
    if left:
        raise StepOutOfOrder(
            f"{', '.join(left)} of {release} has not run well on this host.",
            left="The step was not taken.",
            next_step="Run it first, as the role does (backstep.workers.release_hooks).",
        )


def name_of(hook: Result) -> str:
    """A hook as a person reads it."""
    return f"hook {hook['step']} {hook['number']} (`{' '.join(hook['command'])}`)"


def sentence(result: Result) -> str:
    """How a hook ended, for a person."""
    ends = {
        DONE: "went well",
        FAILED: f"ended with {result['code']}",
        TIMEOUT: f"was killed after {result['seconds']:.0f} s",
        NOT_RUN: "was not run to its end",
    }
    last = (result["output"].splitlines() or [""])[-1]
    return f"{name_of(result)} {ends[result['outcome']]}" + (f": {last}" if last else "")


def verdict_of(result: Result) -> str:
    """What a hook's end says of the rollout.

    Until the switch the release has not run, so nothing bad can be known of it. What comes after the verdict doesn't
    change it any more.
    """
    step, outcome = result["step"], result["outcome"]
    if outcome == DONE or step in (AFTER_CONFIRM, BEFORE_ROLLBACK, AFTER_ROLLBACK):
        return GOOD
    return BAD if outcome == FAILED and step in (AFTER_SWITCH, BEFORE_CONFIRM) else UNKNOWN


def seconds_of(hooks: Hooks, *steps: str) -> float:
    """How long the hooks of some steps may take on a host, one after the other."""
    return float(sum(hook["timeout"] for step in steps for hook in hooks.get(step, ())))
