# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Handing over the scheduler on this host: never two that run, by the kernel's lock, and none only for a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Optional

from .._rollout.names import worker_prefix
from .._rollout.schedulers import nothing_is_due, seconds_to_hand_over
from .._waiting.deadline import Deadline
from .clock import moment, uptime
from .draining import comes_to_rest, kill
from .host import Host
from .layout import SCHEDULER_INDEX, Part


@dataclass
class HandedOver:
    """How a scheduler was handed over.

    ``release`` is the one whose scheduler should run now (None: none any more), ``runs`` whether it is the one that
    holds the lock. ``killed`` names those that didn't end in time, ``waited`` is in seconds.
    """

    release: Optional[str]
    runs: bool
    waited: float
    killed: list[str] = field(default_factory=list)


def hand_over(host: Host, target: Optional[str], others: Sequence[str], period: float, token: int) -> HandedOver:
    """Have the scheduler of ``target`` run and those of ``others`` end; killed when half of the time is up.

    That the target's doesn't come up is for whoever watches it to say, and for the verdict.

    :param target: its units are installed; None when no scheduler is to run any more.
    :param period: the shortest period of the schedule in seconds, which bounds the time in which none runs.
    :raises DrainTimeout: a scheduler outlives being killed.
    """
    began = uptime()
    if target and _runs_one_of(host, others):
        Deadline(seconds_to_hand_over(period)).wait_until(lambda: nothing_is_due(moment().time, period))
    deadline = Deadline(seconds_to_hand_over(period))
    if target:
        # First, as it waits for the lock by itself: it runs in the moment in which the old one has ended.
        host.supervisor.start_stopped(target, Part.SCHEDULER)
    Deadline(deadline.seconds / 2).wait_until(lambda: not _still_run(host, others))
    killed = []
    for release in _still_run(host, others):
        killed += _names(host, release)
        kill(host, release, Part.SCHEDULER)
    runs = target is not None and deadline.wait_until(lambda: _comes_up(host, target))
    result = HandedOver(target, runs, round(uptime() - began, 1), killed)
    host.note("scheduler_handed_over", token, release=target, runs=runs, waited=result.waited, killed=killed)
    return result


def _runs_one_of(host: Host, releases: Sequence[str]) -> bool:
    running = host.scheduler()
    return running is not None and running[0] in releases


def _still_run(host: Host, releases: Sequence[str]) -> list[str]:
    """Those of these releases whose scheduler has not come to rest; each is told to."""
    return [release for release in releases if not comes_to_rest(host, release, Part.SCHEDULER)]


def _comes_up(host: Host, release: str) -> bool:
    """Whether the scheduler of this release runs; one that was still ending is started as soon as it has."""
    if any(not main.wanted for main in host.supervisor.processes(release, Part.SCHEDULER)):
        host.supervisor.start_stopped(release, Part.SCHEDULER)
    running = host.scheduler()
    return running is not None and running[0] == release


def _names(host: Host, release: str) -> list[str]:
    prefix = worker_prefix(host.pool.name, release, host.pool.host, SCHEDULER_INDEX)
    mains = host.supervisor.processes(release, Part.SCHEDULER)
    return [f"{prefix}/{main.pid}" for main in mains if main.pid]
