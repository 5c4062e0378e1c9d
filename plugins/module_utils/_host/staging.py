# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Staging: what a release needs on a host, checked and then stored, with nothing that runs being touched."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Optional

from .._rollout.errors import BadInput, HostUnfit, ReleaseRefused
from .._rollout.gates import require_unretired
from .._rollout.hook_steps import AFTER_STAGE, BEFORE_STAGE, DONE
from .._rollout.hooks import plan_hooks
from .._rollout.plans import Action
from .._rollout.pool_state import BAD, STAGED, UNFINISHED, PoolState
from .._rollout.rules import require_target
from .._rollout.stranding import names_of, require_known
from .files import read_if_there
from .hooks import run_hook
from .host import Host
from .info import describe_host
from .layout import Spec
from .manifest import cannot_run, declared, schedule_changes, unknown_tasks
from .store import Content, check_user

_SPARE_BYTES = 64 * 2**20


def plan_host(
    host: Host,
    spec: Spec,
    *,
    program_digest: str,
    broker_url: str,
    needed_bytes: int,
    wish: str = "",
    once: bool = False,
) -> dict[str, Any]:
    """Check that the release can be brought to this host, changing nothing; what there is and what staging would do.

    :param program_digest: SHA-256 of the host program that belongs to this version of the collection.
    :param once: whether hooks that are meant for one host run on this one.
    :raises HostUnfit: no privilege, no room, a root that can't be used, no supervisor.
    :raises BadInput: a user that can't own workers.
    :returns: also ``refused``: why the release can't be deployed here, as it is quarantined, or "".
    """
    host.check_paths()
    check_user(spec.user)
    _check_conf_dir(host)
    supervisor = host.supervisor.check()
    state = host.state()
    actions = stage_actions(host, state, spec, program_digest, broker_url, once)
    if any(action["action"] == "build" for action in actions):
        host.check_space(needed_bytes + _SPARE_BYTES)
    return {
        "changed": bool(actions),
        "actions": actions,
        "release": spec.id,
        "refused": _refusal(state, spec.id),
        "tells_tasks": bool(spec.manifest),
        "queues": spec.queues,
        "supervisor": supervisor,
        "pool_state": describe_host(host, verify=True, wish=wish),
    }


def _refusal(state: PoolState, release: str) -> str:
    """Told, not raised: a rollout that was interrupted has to be finished all the same."""
    if state.state_of(release) != BAD:
        return ""
    try:
        require_target(state, release)
    except ReleaseRefused as error:
        return str(error)
    return ""


def stage_actions(
    host: Host, state: PoolState, spec: Spec, program_digest: str, broker_url: str, once: bool
) -> list[Action]:
    """What staging does; an empty list when all is stored already, byte for byte."""

    def of_step(step: str) -> list[Action]:
        return plan_hooks(spec.id, spec.hooks, step, once=once, ran=state.ran.get(spec.id, ()))

    actions: list[Action] = []
    if host.program_digest() != program_digest:
        actions.append({"action": "install_program"})
    if not host.knows_broker(spec.broker, broker_url):
        actions.append({"action": "remember_broker", "broker": spec.broker})
    status = state.state_of(spec.id)
    if status in (None, UNFINISHED) or host.store.problems(spec.id, state.releases[spec.id].seal):
        stored = [{"action": "build", "release": spec.id}, {"action": "seal", "release": spec.id}]
        actions += [*of_step(BEFORE_STAGE), *stored, *of_step(AFTER_STAGE)]
    elif status == STAGED:
        # Whoever stored it may have died before they had run.
        actions += of_step(AFTER_STAGE)
    return actions


def stage_host(
    host: Host,
    spec: Spec,
    content: Content,
    *,
    rollout: int,
    program: bytes,
    broker_url: str,
    once: bool = False,
    tasks: Sequence[Mapping[str, Any]] = (),
    retired: Collection[str] = (),
    now: Optional[float] = None,
) -> dict[str, Any]:
    """Store and seal the release; nothing that runs is touched. It stops at a hook that doesn't go well.

    :param program: the bytes of the host program.
    :param once: whether hooks that are meant for one host run on this one.
    :param tasks: what the queues hold, by name; see ``stranding``.
    :param retired: names that no task may have any more.
    :param now: the broker's clock (epoch seconds).
    :raises ReleaseDamaged: the release is stored, differs from its seal, and runs: it can't be built anew under it.
    :raises TasksStranded: it doesn't know some of ``tasks``.
    :raises GateRefused: it has a task of a retired name.
    """
    with host.locked():
        state = host.require(rollout)
        actions = stage_actions(host, state, spec, hashlib.sha256(program).hexdigest(), broker_url, once)
        hooked: list[dict[str, Any]] = []
        for number, action in enumerate(actions, 1):
            if action["action"] == "install_program":
                host.install_program(program)
            elif action["action"] == "remember_broker":
                host.remember_broker(spec.broker, broker_url)
            elif action["action"] == "build":
                _build(host, state, spec, content, rollout)
            elif action["action"] == "hook":
                staging = (spec, content.environment)
                hooked.append(run_hook(host, action, rollout, state.current, spec.id, staging))
                if hooked[-1]["outcome"] != DONE:
                    actions = actions[:number]
                    break
        told: dict[str, Any] = {"release": spec.id, "tasks": [], "problem": ""}
        if not hooked or hooked[-1]["outcome"] == DONE:
            told.update(_require_fit(host, spec.id, state.current, tasks, retired, now))
            told["schedules"] = schedule_changes(host, spec.id, state.current)
    ran = {"hooks": hooked, "unknown_tasks": told, "queues": spec.queues}
    return {"changed": bool(actions), "actions": actions, "release": spec.id, **ran}


def _require_fit(
    host: Host,
    release: str,
    current: Optional[str],
    tasks: Sequence[Mapping[str, Any]],
    retired: Collection[str],
    now: Optional[float],
) -> dict[str, Any]:
    """Refuse a stored release for the tasks that it knows, or doesn't; what is told of those that it doesn't."""
    foreign, _problem = unknown_tasks(host, release, retired) if retired else ([], "")
    require_unretired(release, () if foreign is None else set(retired).difference(foreign))
    unknown, changed, problem = cannot_run(host, release, names_of(tasks), [current] if current else [])
    require_known(release, tasks, unknown or (), now, changed)
    return {"tasks": unknown, "problem": problem}


def _build(host: Host, state: PoolState, spec: Spec, content: Content, rollout: int) -> None:
    if host.running().get(spec.id):
        host.store.verify(spec.id, state.releases[spec.id].seal)
    drill = {"drill": spec.drill["kind"]} if spec.drill else {}
    host.note("stage_started", rollout, release=spec.id, version=spec.version, **drill)
    units = host.supervisor.render(spec)
    seal = host.store.stage(spec, content, units, lambda: declared(host, spec, content.environment))
    scheduler = {name: spec.scheduler[name] for name in ("host", "period")} if spec.scheduler else {}
    sealed = {"seal": seal, "barrier": spec.barrier, "hooks": spec.hooks, "scheduler": scheduler}
    host.note("staged", rollout, release=spec.id, **sealed)


def _check_conf_dir(host: Host) -> None:
    directory = host.pool.conf_dir
    if not os.path.isdir(directory) or not os.access(directory, os.W_OK):
        raise HostUnfit(
            f"Units can't be installed: {directory} is not a directory that user {os.geteuid()} may write to.",
            left="Nothing was changed.",
            next_step="Run the play with become: true, or set pool_supervisor_conf_dir.",
        )


def read_program(path: str) -> bytes:
    """The host program as it was sent to this host.

    :raises BadInput: it isn't there.
    """
    from pathlib import Path

    raw = read_if_there(Path(path)) if path else None
    if raw is None:
        raise BadInput("The host program did not reach this host.", left="Nothing was changed.")
    return raw
