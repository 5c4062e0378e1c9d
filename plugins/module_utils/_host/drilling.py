# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A drill on this host: what is staged for it, from what is stored already, and what is noted of it in the end."""

from __future__ import annotations

import stat
from dataclasses import replace
from typing import Any

from .._rollout.drills import KINDS
from .._rollout.errors import BadInput, DrillRefused
from .._rollout.reaping import in_use
from .files import walk
from .host import Host
from .layout import Spec
from .store import Content


def drilled(host: Host, given: Spec, content: Content, drill: dict[str, Any]) -> tuple[Spec, Content]:
    """The release ``of`` which a drill is made, byte for byte as it was sealed, under another id and made to fail.

    It has neither hooks nor a rollback barrier, and isn't asked for its tasks: those are the ones of ``of``.

    :param given: what the controller knows of it: id, version, identity, engine and broker.
    :param drill: ``kind``, ``of`` and ``seconds``, as in ``Spec``.
    :raises BadInput: another ``drill`` than that.
    :raises DrillRefused: it isn't stored here, or the pool has got another engine or broker since.
    :raises ReleaseDamaged: it isn't as it was sealed.
    """
    if set(drill) != {"kind", "of", "seconds"} or drill["kind"] not in KINDS:
        raise BadInput(f"drill is {drill!r}; it has to have kind, of and seconds.", left="Nothing was changed.")
    of = drill["of"]
    known = host.state().releases.get(of)
    if known is None:
        raise DrillRefused(f"This host has no release {of}.", left="Nothing was changed.")
    host.store.verify(of, known.seal)
    sealed = host.store.spec(of)
    for what, now, then in (("engine", given.engine, sealed.engine), ("broker", given.broker, sealed.broker)):
        if now != then:
            raise DrillRefused(
                f"The pool's {what} is {now} by its variables, and that of {of}, which runs, is {then}.",
                left="Nothing was changed.",
                next_step="Deploy first, or give the variables with which it was deployed.",
            )
    spec = replace(sealed, id=given.id, version=given.version, identity=given.identity, drill=dict(drill))
    spec = replace(spec, barrier="", hooks={}, manifest={})
    environment = host.store.environment(of)
    config = _config(host, of)
    return spec, replace(content, directory=str(host.layout.app(of)), config=config, environment=environment)


def _config(host: Host, release: str) -> dict[str, tuple[bytes, int]]:
    """The config files of a stored release, besides the environment; see ``Content``."""
    top = host.layout.config(release)
    files = [path for path in walk(top) if path.is_file() and path != top / "environment"]
    return {str(path.relative_to(top)): (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) for path in files}


def drop(host: Host, release: str, token: int) -> bool:
    """Remove what was stored for a drill, unless something of it is still about: then the reaper does so later.

    The caller holds the host's lock.
    """
    state = host.state()
    if not state.is_spent_drill(release) or release in in_use(state) or release in state.draining:
        return False
    if host.supervisor.installed(release) or host.running().get(release):
        return False
    host.store.discard(release)
    host.note("pruned", token, release=release)
    return True


def note_drill(
    host: Host, *, rollout: int, kind: str, ended: float, passed: bool, times: dict[str, Any], check_mode: bool
) -> dict[str, Any]:
    """Note how a drill has ended, once; see the module ``rollout_drill``.

    :param ended: epoch seconds, by the controller's clock.
    :param times: seconds, by name.
    """
    known = {"kind": kind, "token": rollout, "ended": ended, "passed": passed}
    state = host.state()
    noted = state.drill is not None and state.drill["token"] >= rollout
    actions = [] if noted else [{"action": "note_drill", "rollout": rollout}]
    if actions and not check_mode:
        with host.locked():
            host.note("drilled", rollout, kind=kind, ended=ended, passed=passed, times=times)
    return {"changed": bool(actions), "actions": actions, "drill": state.drill if noted else known}
