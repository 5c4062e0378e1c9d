# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running a release's hooks on a host: as the pool's user, with its environment, by a deadline, in the journal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

from .._rollout import hooks
from .._rollout.errors import BackstepError
from .._rollout.hook_steps import BEFORE_STAGE, BEFORE_SWITCH, DONE
from .._rollout.masking import hide
from .._rollout.plans import Action
from .._rollout.pool_state import PoolState
from .._rollout.rules import require_switch
from .._waiting.deadline import Deadline
from . import asking
from .clock import moment, uptime
from .commands import ENDED, NOT_RUN, Outcome, kill_process, plain_environment, run_group
from .host import Host
from .layout import Spec, fill_in, worker_environment
from .processes import HOOK_MARK, hooks_of_pool

_LINES = 10
_LETTERS = 2000
_END_SECONDS = 15.0
_LEAST_SECONDS = 1.0


@dataclass(frozen=True)
class Subject:
    """Whose hooks these are: a release, its ``pool_env`` (may hold secrets), and between which releases the host is."""

    spec: Spec
    environment: dict[str, str]
    origin: Optional[str]
    target: Optional[str]


def run_hooks(
    host: Host, actions: Sequence[Action], token: int, origin: Optional[str], target: Optional[str]
) -> list[dict[str, Any]]:
    """Run the hooks of a step that others wait for, up to the first that doesn't go well; how each ended."""
    results: list[dict[str, Any]] = []
    for action in actions:
        results.append(run_hook(host, action, token, origin, target))
        if results[-1]["outcome"] != DONE:
            break
    return results


def run_hook(
    host: Host,
    action: Action,
    token: int,
    origin: Optional[str],
    target: Optional[str],
    staging: Optional[tuple[Spec, dict[str, str]]] = None,
) -> dict[str, Any]:
    """Run one hook; how it ended. That it failed is data, never an exception.

    :param staging: the spec and environment of a release that may not be stored yet.
    """
    end_orphans(host, token)
    what = {key: action[key] for key in ("release", "step", "number", "command")}
    host.note("hook_started", token, **what)
    began = uptime()
    try:
        spec = staging[0] if staging else host.store.spec(action["release"])
        environment = staging[1] if staging else host.store.environment(action["release"])
        subject = Subject(spec, environment, origin, target)
        found, said = _run(host, action, token, subject)
    except BackstepError as error:
        found, said = Outcome(127, "", "", NOT_RUN), error.message
    except (OSError, KeyError) as error:
        found, said = Outcome(127, "", "", NOT_RUN), f"it can't be run: {error}"
    by_itself = DONE if found.code == 0 else hooks.FAILED
    ended = {
        "outcome": by_itself if found.how == ENDED else found.how,
        "code": found.code,
        "seconds": round(uptime() - began, 2),
        "output": said,
    }
    host.note("hook_ended", token, **what, **ended)
    return {**what, **ended}


def _run(host: Host, action: Action, token: int, subject: Subject) -> tuple[Outcome, str]:
    spec, layout = subject.spec, host.layout
    url = host.broker_url(spec.broker) or ""
    queues = [queue for group in spec.queues for queue in group]
    known = worker_environment(spec, host.pool, layout, 0, queues)
    del known["BACKSTEP_WORKER"]
    environment = {
        **plain_environment(spec.user),
        "USER": spec.user,
        "LOGNAME": spec.user,
        **({spec.broker_variable: url} if url else {}),
        **subject.environment,
        **known,
        "BACKSTEP_FROM": subject.origin or "",
        "BACKSTEP_TO": subject.target or "",
        "BACKSTEP_HOST": host.pool.host,
        "BACKSTEP_STEP": action["step"],
        "BACKSTEP_ROLLOUT": str(token),
        HOOK_MARK: f"{token}-{action['step']}-{action['number']}",
    }
    home = layout.root if action["step"] == BEFORE_STAGE else layout.app(spec.id)
    found = run_group(
        [fill_in(word, spec.id, layout) for word in action["command"]],
        timeout=_seconds(host.state(), action, token),
        directory=os.path.join(home, fill_in(action["chdir"], spec.id, layout)),
        user=spec.user,
        environment=environment,
        give_up=lambda: bool(asking.pressing(host)),
    )
    said = hide(f"{found.out}\n{found.err}", [*subject.environment.values(), url])
    return found, "\n".join(said.strip().splitlines()[-_LINES:])[-_LETTERS:]


def _seconds(state: PoolState, action: Action, token: int) -> float:
    """How long a hook may take: never past the guard's deadline, as the guard could not do its work meanwhile."""
    rollout = state.rollout
    if not (rollout and rollout.open and rollout.token == token and rollout.deadline):
        return float(action["timeout"])
    return min(float(action["timeout"]), max(_LEAST_SECONDS, rollout.deadline - moment().up))


def end_orphans(host: Host, token: int) -> None:
    """End a hook whose runner has died before it, so that it doesn't go on beside what comes now."""
    started = host.state().hooking
    if started is None:
        return

    def all_gone() -> bool:
        left = hooks_of_pool(host.layout.root)
        for pid in left:
            kill_process(pid)
        return not left

    gone = Deadline(_END_SECONDS).wait_until(all_gone)
    said = "whoever ran it has died" if gone else "whoever ran it has died, and it outlives SIGKILL"
    what = {key: started[key] for key in ("release", "step", "number", "command")}
    host.note("hook_ended", token, **what, outcome=hooks.NOT_RUN, code=0, seconds=0.0, output=said)


def hook_host(
    host: Host,
    *,
    release: str,
    step: str,
    rollout: int,
    once: bool,
    given: dict[str, list[dict[str, Any]]],
    check_mode: bool,
) -> dict[str, Any]:
    """Run what a release has for a step from the switch on; see the module ``release_hooks``.

    :param given: its hooks, for check mode, in which it may not be stored yet.
    """
    if check_mode:
        state = host.state().as_if_staged(release, hooks=given)
        actions = hooks.pending(state, release, step, once=once)
        return {"changed": bool(actions), "actions": actions, "release": release, "hooks": []}
    with host.locked():
        state = host.require(rollout)
        if step == BEFORE_SWITCH:
            require_switch(state, release)
        hooks.require_step(state, rollout, release, step)
        actions = hooks.pending(state, release, step, once=once)
        origin = state.rollout.origin if state.rollout and state.rollout.target == release else state.current
        results = run_hooks(host, actions, rollout, origin, release)
    return {"changed": bool(results), "actions": actions[: len(results)], "release": release, "hooks": results}
