# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How long a host may take for the answer to a step, and an end to waiting for one that gives none."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Callable

from ansible_collections.backstep.workers.plugins.module_utils._hook_args import hooks_of
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import RECOVER_SECONDS
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput, HostSilent
from ansible_collections.backstep.workers.plugins.module_utils._rollout.hook_steps import (
    AFTER_ROLLBACK,
    AFTER_STAGE,
    BEFORE_ROLLBACK,
    BEFORE_STAGE,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.hooks import Hooks, seconds_of
from ansible_collections.backstep.workers.plugins.module_utils._rollout.plans import REPLACE
from ansible_collections.backstep.workers.plugins.module_utils._rollout.schedulers import seconds_at_most
from ansible_collections.backstep.workers.plugins.module_utils._scheduler_args import scheduler_of

# Beyond what the step itself may wait.
STEP_SECONDS = 120.0
_DRAIN_SECONDS = 300.0
_CANARY_SECONDS = 30.0
_BUILD_SECONDS = 900.0
# Bytes a second: a source that takes longer than this to arrive counts as not arriving.
_SLOWEST = 2**20
# A controller that stood still itself, and has the answer by then, loses no more than one of so many slices of time.
_SLICES = 10
# A connection may be in the middle of closing itself, and wait in vain there too.
_AGAIN_SECONDS = 1.0


class NoAnswer(BaseException):
    """The time is up. Nothing that a connection catches, lest it tries again."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``NoAnswer`` in the block when it takes longer than ``seconds``; 0 is for ever.

    The keyword ``timeout`` of a task won't do: its failure goes past ``failed_when``, and what Ansible cleans up after
    it waits for the same host again. A time limit of Ansible's own that is nearer is left alone.
    """
    left = signal.getitimer(signal.ITIMER_REAL)[0]
    if seconds in (0, math.inf) or 0 < left <= seconds:
        yield
        return

    slices = _SLICES

    def slice_is_over(_number: int, _frame: Any) -> None:
        nonlocal slices
        slices -= 1
        if slices <= 0:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS, _AGAIN_SECONDS)
            raise NoAnswer

    began = time.monotonic()
    before = signal.signal(signal.SIGALRM, slice_is_over)
    signal.setitimer(signal.ITIMER_REAL, seconds / _SLICES, seconds / _SLICES)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - began)))


def known_seconds(module: str, args: Mapping[str, Any], size: int = 0) -> float:
    """How many seconds a step may wait for by itself, from its own options; what they lack is as in the modules.

    :param module: its name, without the collection's.
    :param size: how many bytes are sent along.
    """
    waits: dict[str, Callable[[], float]] = {
        "release": lambda: _staging(args) + size / _SLOWEST,
        "release_info": lambda: _number(args.get("seconds"), 0.0),
        "release_hooks": lambda: _hooks(args, str(args.get("step"))),
        "release_switch": lambda: (_drain(args) if args.get("mode") == REPLACE else 0.0) + _hand_over(args),
        # As long as there are tasks to move; only what a run does by itself is bounded.
        "task_move": lambda: RECOVER_SECONDS if args.get("operation") == "recover" else math.inf,
        "queue_route": lambda: math.inf if args.get("state") == "absent" else _number(args.get("measure"), 0.0),
        "rollout_verdict": lambda: _number(_part(args, "health").get("canary_timeout"), _CANARY_SECONDS),
        "worker_drain": lambda: _drain(args),
    }
    own = waits[module]() if module in waits else 0.0
    # Only the steps at the broker have such an option.
    return own + _number(args.get("timeout"), 0.0)


def way_back_seconds(
    hooks: Hooks, states: Iterable[Mapping[str, Any]], scheduler: Mapping[str, Any] | None = None
) -> float:
    """How many seconds hooks and scheduler of a way back may take on a host: of what is deployed, or of what is there.

    :param states: what the hosts have told of themselves.
    """
    stored = [release for state in states for release in state.get("releases") or []]
    hooked = [
        seconds_of(each, BEFORE_ROLLBACK, AFTER_ROLLBACK) for each in [hooks, *(r.get("hooks") or {} for r in stored)]
    ]
    handed = [seconds_at_most(each) for each in [scheduler or {}, *(r.get("scheduler") or {} for r in stored)]]
    return max(hooked) + max(handed)


def _staging(args: Mapping[str, Any]) -> float:
    builds = len(args.get("build") or []) * _number(args.get("build_timeout"), _BUILD_SECONDS)
    return builds + _hooks(args, BEFORE_STAGE, AFTER_STAGE)


def _drain(args: Mapping[str, Any]) -> float:
    return _number(_part(args, "drain").get("timeout"), _DRAIN_SECONDS)


def _hand_over(args: Mapping[str, Any]) -> float:
    try:
        return seconds_at_most(scheduler_of(dict(_part(args, "scheduler"))))
    except BadInput:
        return 0.0  # the step itself will refuse it


def _hooks(args: Mapping[str, Any], *steps: str) -> float:
    try:
        return seconds_of(hooks_of(dict(_part(args, "hooks"))), *steps)
    except BadInput:
        return 0.0  # the step itself will refuse them


def _part(args: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = args.get(name)
    return found if isinstance(found, Mapping) else {}


def _number(given: Any, default: float) -> float:
    try:
        return max(0.0, float(default if given is None else given))
    except (TypeError, ValueError):
        return default  # the step itself will refuse it


class SilentHosts:
    """The hosts that have given no answer in this run, each in a file, as every step has a process of its own.

    A host that was given up isn't asked again, which would take as long for each step. Nothing but time rests on it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "backstep-silent"

    def _path(self, host: str) -> Path:
        return self._folder / hashlib.sha256(host.encode("utf-8")).hexdigest()

    def seconds(self, host: str) -> float:
        """For how long it has given none, 0 when it was never given up."""
        try:
            return float(self._path(host).read_text(encoding="ascii"))
        except FileNotFoundError:
            return 0.0

    def add(self, host: str, seconds: float) -> None:
        """Give a host up."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._path(host).write_text(str(seconds), encoding="ascii")


def gave_no_answer(host: str, seconds: float) -> HostSilent:
    """A host that was asked and hasn't answered."""
    return HostSilent(
        f"{host} has given no answer for {seconds:.0f} s and is not asked again by this run.",
        left="A step that has begun there goes on once the host does; unless it is confirmed, its guard takes it back.",
        next_step="Look at the host, then at: ansible-playbook backstep.workers.status",
    )


def not_asked(host: str, seconds: float) -> HostSilent:
    """A host that had not answered before."""
    return HostSilent(f"{host} was not asked: it had given no answer for {seconds:.0f} s to a step before.")


def let_go_of_clients() -> None:
    """End what a connection has started on this machine, such as an ``ssh`` that waits: this process's own group."""
    if os.getpgrp() != os.getpid():
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)
