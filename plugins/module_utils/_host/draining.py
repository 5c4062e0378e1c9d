# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Quiet, then wait until nothing is proven to be executing, by one deadline, then the policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from .._rollout.errors import DrainTimeout, StaleToken
from .._rollout.names import worker_prefix
from .._rollout.plans import ABORT, KILL, LEAVE, REQUEUE
from .._rollout.pool_state import Event
from .._rollout.rules import describe_owner
from .._rollout.state import last_of
from .._waiting.deadline import Deadline, until
from . import asking
from .clock import moment, uptime
from .commands import kill_process
from .host import Host
from .layout import Part
from .terms import WHOLE, Slice

_KILL_SECONDS = 15.0
# Workers without a task have ended by then: from here on it can be told how quickly tasks end.
_IDLE_SECONDS = 2.0


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


class StillDraining(Exception):
    """No failure: the part of a drain that was asked for is over, and the drain is not. Nothing was given up.

    ``progress``: ``release``, ``waited`` and ``left`` (seconds since it began, and until its deadline), ``running`` as
    in ``Drained``, and ``counts``: how many workers there were before, as ``[waited, count]``.
    """

    def __init__(self, progress: dict[str, Any]) -> None:
        super().__init__(f"{progress['release']} still drains.")
        self.progress = progress


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


def drain(host: Host, release: str, token: int, seconds: float, policy: str, part: Slice = WHOLE) -> Drained:
    """Bring the workers of a release to rest; its scheduler goes on.

    :param seconds: how long its tasks may take to end.
    :param policy: what becomes of tasks that take longer: ``abort`` (the release is started again), ``leave`` (they go
        on), ``kill`` (what the engine does with a killed task), ``requeue`` (killed; the caller puts the tasks back).
    :param part: of the drain, which has one deadline however many parts it has.
    :raises DrainTimeout: with ``abort``, naming each worker that still has a task.
    :raises StaleToken: a rollback has asked for the host meanwhile, and gets it.
    :raises StillDraining: this part is over before the drain is.
    """
    begun = _begun(host, release, token) if part.goes_on else None
    if begun and begun["event"] == "drain_ended":
        return Drained(release, begun["outcome"], begun["waited"], begun["running"])
    if begun is None:
        begun = host.note("drain_started", token, release=release, seconds=seconds, policy=policy)
    seconds = float(begun["seconds"])
    deadline = Deadline(max(0.0, seconds - (uptime() - begun["up"])))
    host.supervisor.quiet(release, Part.WORKERS)
    asked, counts = _wait(host, release, deadline, seconds, part)
    running = still_running(host, release)
    waited = round(seconds - deadline.left, 1)
    if running and not asked and part.seconds and deadline.left:
        left = round(deadline.left, 1)
        raise StillDraining({"release": release, "waited": waited, "left": left, "running": running, "counts": counts})
    result = Drained(release, "clean" if not running else "left", waited, running)
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


def _begun(host: Host, release: str, token: int) -> Optional[Event]:
    """The last that the journal has of this drain; None when it knows nothing of it, or the host was started since."""
    found = last_of(host.journal.read()[0], ("drain_started", "drain_ended"), release, token)
    return found if found and found["boot"] == moment().boot else None


def _wait(
    host: Host, release: str, deadline: Deadline, seconds: float, part: Slice
) -> tuple[list[dict[str, Any]], list[list[float]]]:
    """Wait until it is at rest, or a time is up, or somebody asks for the host: the request, or none; and counts."""
    enough = Deadline(part.seconds) if part.seconds else None
    asked: list[dict[str, Any]] = []
    counts: list[list[float]] = []

    def over() -> bool:
        asked[:] = asking.pressing(host)
        waited = round(seconds - deadline.left, 1)
        if enough and not part.goes_on and not counts and waited >= _IDLE_SECONDS:
            counts.append([waited, len(still_running(host, release))])
        return bool(asked) or comes_to_rest(host, release, Part.WORKERS) or bool(enough and not enough.left)

    deadline.wait_until(over)
    return asked, counts


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
