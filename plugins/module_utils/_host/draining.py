# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Quiet, then wait until nothing is proven to be executing, by one deadline, then the policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .._rollout.errors import DrainTimeout, StaleToken
from .._rollout.names import worker_prefix
from .._rollout.plans import ABORT, KILL, LEAVE, REQUEUE
from .._rollout.rules import describe_owner
from . import asking
from .clock import Deadline, until, uptime
from .commands import kill_process
from .host import Host
from .layout import Part

_KILL_SECONDS = 15.0


@dataclass
class Drained:
    """How a drain ended.

    ``outcome``: ``clean`` (all ended by themselves), ``left`` (some go on), ``killed``, ``aborted``, ``superseded``, or
    ``draining`` (the reaper waits for them). ``running`` lists the workers that had a task then: ``{worker, pids,
    seconds}``, the last being how long its youngest process (RQ: the one that executes the task) has run.
    """

    release: str
    outcome: str
    waited: float
    running: list[dict[str, Any]] = field(default_factory=list)


def still_running(host: Host, release: str) -> list[dict[str, Any]]:
    """The workers of a release that have a live process, as the processes themselves tell it."""
    workers: dict[str, dict[str, Any]] = {}
    mains = {main.pid: main.index for main in host.supervisor.processes(release, Part.WORKERS) if main.pid}
    for process in host.running(Part.WORKERS).get(release, []):
        name = process.worker
        if name is None:
            index = mains.get(process.pid, mains.get(process.parent, 0))
            name = f"{worker_prefix(host.pool.name, release, host.pool.host, index)}/{process.pid}"
        seconds = round(uptime() - process.started, 1)
        entry = workers.setdefault(name, {"worker": name, "pids": [], "seconds": seconds})
        entry["pids"].append(process.pid)
        entry["seconds"] = min(entry["seconds"], seconds)
    return list(workers.values())


def drain(host: Host, release: str, token: int, seconds: float, policy: str) -> Drained:
    """Bring the workers of a release to rest; its scheduler goes on.

    :param seconds: how long its tasks may take to end.
    :param policy: what becomes of tasks that take longer: ``abort`` (the release is started again), ``leave`` (they go
        on), ``kill`` (what the engine does with a killed task), ``requeue`` (killed; the caller puts the tasks back).
    :raises DrainTimeout: with ``abort``, naming each worker that still has a task.
    :raises StaleToken: a rollback has asked for the host meanwhile, and gets it.
    """
    host.note("drain_started", token, release=release, seconds=seconds, policy=policy)
    deadline = Deadline(seconds)
    host.supervisor.quiet(release, Part.WORKERS)
    asked: list[dict[str, Any]] = []

    def over() -> bool:
        asked[:] = asking.pressing(host)
        return bool(asked) or comes_to_rest(host, release, Part.WORKERS)

    deadline.wait_until(over)
    running = still_running(host, release)
    result = Drained(release, "clean" if not running else "left", round(seconds - deadline.left, 1), running)
    if running and asked:
        result.outcome = "superseded"
    elif running and policy in (KILL, REQUEUE):
        kill(host, release, Part.WORKERS)
        result.outcome = "killed"
    elif running and policy == ABORT:
        result.outcome = "aborted"
    if result.outcome in ("aborted", "superseded") and release == host.state().current:
        host.supervisor.start(release)
    host.note(
        "drain_ended", token, release=release, outcome=result.outcome, waited=result.waited, running=result.running
    )
    if result.outcome == "superseded":
        raise _superseded(host, result, asked[0])
    if result.outcome == "aborted":
        raise _aborted(host, result, seconds)
    return result


def _superseded(host: Host, result: Drained, request: dict[str, Any]) -> StaleToken:
    who = describe_owner(request["owner"])
    return StaleToken(
        f"The drain of {result.release} was given up after {result.waited:.0f} s: {who} rolls this host back.",
        left=f"Nothing was killed; {_goes_on(host, result.release)}",
        next_step="See who is at work with: ansible-playbook backstep.workers.status",
        running=result.running,
    )


def _aborted(host: Host, result: Drained, seconds: float) -> DrainTimeout:
    running = result.running
    names = ", ".join(f"{worker['worker']} (for {worker['seconds']:.0f} s)" for worker in running)
    return DrainTimeout(
        f"After {seconds:.0f} s {len(running)} worker(s) of {result.release} still had a task: {names}.",
        left=f"Nothing was killed; {_goes_on(host, result.release)}",
        next_step="Give pool_drain.timeout more seconds, use pool_mode: overlap, or choose pool_drain.on_timeout: "
        f"{REQUEUE}, {KILL} or {LEAVE}.",
        running=running,
    )


def _goes_on(host: Host, release: str) -> str:
    return f"{release} takes tasks again." if release == host.state().current else f"{release} ends when its tasks do."


def comes_to_rest(host: Host, release: str, part: Part) -> bool:
    """Whether it is at rest; a process that has died by itself just then is about to be started again: asked again."""
    if any(main.wanted for main in host.supervisor.processes(release, part)):
        host.supervisor.quiet(release, part)
    return _at_rest(host, release, part)


def _at_rest(host: Host, release: str, part: Part) -> bool:
    """Nothing of that part lives: by the process table and by the supervisor, both."""
    if host.running(part).get(release):
        return False
    return not any(main.pid or main.wanted for main in host.supervisor.processes(release, part))


def kill(host: Host, release: str, part: Part) -> None:
    """Kill every process of a part of a release, which was told to end.

    :raises DrainTimeout: some outlive it.
    """
    # The eldest first: a main process that outlives its child may tell the broker that the child's task has ended.
    for process in host.running(part).get(release, []):
        kill_process(process.pid)
    if not until(_KILL_SECONDS, lambda: _at_rest(host, release, part)):
        raise DrainTimeout(
            f"Processes of {release} outlive SIGKILL by {_KILL_SECONDS:.0f} s (a hung disk or network mount?).",
            left="They were asked to stop and killed.",
            next_step="Look at them with: ps -eo pid,stat,wchan,args",
            running=still_running(host, release),
        )
