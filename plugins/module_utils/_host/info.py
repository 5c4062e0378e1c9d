# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host can tell of a pool: its releases, what runs as the processes report it, and evidence over a time."""

from __future__ import annotations

from typing import Any, Optional

from .._rollout import schedulers
from .._rollout.barriers import describe
from .._rollout.errors import BackstepError, NoGoodRelease, StepOutOfOrder
from .._rollout.hook_steps import AFTER_CONFIRM
from .._rollout.hooks import is_once, name_of, pending
from .._rollout.names import worker_prefix
from .._rollout.observing import of_last_rollout
from .._rollout.pool_state import DEPLOY, GOOD, STUCK, Draining, PoolState
from .._rollout.rules import Moment, is_live, rollback_target
from .._waiting.deadline import Deadline
from .clock import moment, uptime
from .draining import still_running
from .host import Host
from .layout import SCHEDULER_INDEX, Part
from .processes import start_of
from .supervisors.base import MainProcess

RUNNING = "running"
_PRUNE_SECONDS = 5.0
# How a rollout ends on a host.
_ENDS = ("confirmed", "rolled_back", "rollback_failed", "guard_fired")


def describe_host(host: Host, *, events: int = 0, verify: bool = False, wish: str = "") -> dict[str, Any]:
    """The pool on this host as plain JSON.

    :param events: how many of the journal's last events to return.
    :param verify: also check every good release against its seal, and the units of the current one.
    :param wish: the release that a rollback would be asked for, or "".
    """
    journal, torn = host.journal.read()
    # Once: the reaper may write between two readings.
    state = host.state()
    now = moment()
    lease = state.lease
    runs = host.scheduler()
    back = where_back(host, state, wish, verify)
    return {
        "pool": host.pool.name,
        "host": host.pool.host,
        "supervisor": host.pool.supervisor,
        "current": state.current,
        "current_state": state.state_of(state.current),
        "since": state.releases[state.current].since if state.current in state.releases else None,
        "running": {name: len(found) for name, found in sorted(host.running(Part.WORKERS).items())},
        "scheduler": _scheduler(state, runs),
        "processes": workers(host, state.current) if state.current else [],
        "link": host.link(),
        "draining": [_draining(host, entry) for entry in state.draining.values()],
        "reaped": [vars(reaped) for reaped in state.reaped.values()],
        "releases": [vars(release) for release in state.releases.values()],
        "good": state.good_releases(),
        "rollout": {**vars(state.rollout), "open": state.rollout.open} if state.rollout else None,
        "guard_armed": host.supervisor.guard_armed() if state.rollout and state.rollout.open else False,
        "guard_seconds_left": _guard_seconds_left(state, now),
        "lease": {**vars(lease), "expires_in": round(lease.expires - now.up, 1)}
        if lease and is_live(lease, now)
        else None,
        "hooks_pending": hooks_pending(state),
        "drill": state.drill,
        "last_token": state.last_token,
        "last_owner": lease.owner if lease else None,
        "last_lease": {"token": lease.token, "kind": lease.kind} if lease else None,
        "notices": list(state.notices.values()),
        "barriers": {release: vars(barrier) for release, barrier in state.barriers.items() if barrier.behind},
        "rollback": back,
        # The current one is where a deploy that fails goes back to.
        "tells_tasks": any(_tells_tasks(host, release) for release in (state.current, back["target"]) if release),
        "queues": _flat(_queues(host, state.current)),
        "back_queues": _flat(_queues(host, back["target"])),
        "problems": [
            *schedulers.problems(state, host.pool.host, runs[0] if runs else None),
            *problems(host, state, verify),
        ],
        "torn_bytes": torn,
        "clock": now.time,
        "last_events": {event["event"]: event["time"] for event in journal if event["event"] in _ENDS},
        "events": of_last_rollout(journal, events),
    }


def _guard_seconds_left(state: PoolState, now: Moment) -> Optional[float]:
    """Until the guard takes this host back; None while nothing waits for a confirmation, or since a reboot."""
    rollout = state.rollout
    if not rollout or not rollout.open or rollout.deadline is None or rollout.boot != now.boot:
        return None
    return round(rollout.deadline - now.up, 1)


def _scheduler(state: PoolState, runs: Optional[tuple[str, int]]) -> Optional[dict[str, Any]]:
    """The release whose scheduler runs here, and where one should; None where there is nothing of either.

    :returns: ``{release, pid, host, period}``; ``release`` and ``pid`` are None while none runs here, ``host`` and
        ``period`` (seconds) those of the current release, None if that has no scheduler.
    """
    current = state.releases.get(state.current or "")
    wanted = current.scheduler if current else {}
    if not runs and not wanted:
        return None
    release, pid = runs or (None, None)
    return {"release": release, "pid": pid, "host": wanted.get("host"), "period": wanted.get("period")}


def _draining(host: Host, entry: Draining) -> dict[str, Any]:
    """A release that was left with tasks to end: since when, until when in peace, and who has one."""
    now = moment()
    left = round(entry.deadline - now.up, 1) if entry.boot == now.boot else None
    kept = {"release": entry.release, "since": entry.since, "policy": entry.policy, "seconds_left": left}
    return {**kept, "running": still_running(host, entry.release)}


def hooks_pending(state: PoolState) -> list[dict[str, Any]]:
    """The hooks after the confirmation of the current release that have not run well yet."""
    if not state.current or state.arrived_by != DEPLOY or state.state_of(state.current) != GOOD:
        return []
    return pending(state, state.current, AFTER_CONFIRM, once=is_once(state, state.current))


def where_back(host: Host, state: PoolState, wish: str, verify: bool) -> dict[str, Any]:
    """Where a rollback would take this host: ``{target, needed, problem, barrier}``.

    ``problem`` is "" when it could, ``barrier`` is None unless a release on the way can't be undone.
    """
    rollout = state.rollout
    try:
        target = rollback_target(state, wish)
    except NoGoodRelease as error:
        return {"target": None, "needed": False, "problem": error.message, "barrier": None}
    except BackstepError as error:
        return {"target": None, "needed": True, "problem": error.message, "barrier": None}
    needed = bool(rollout and rollout.open) or state.current != target
    problem = host.target_problem(state, target) if verify and target else ""
    return {"target": target, "needed": needed, "problem": problem, "barrier": describe(state, target)}


def _queues(host: Host, release: Optional[str]) -> list[list[str]]:
    """The queues of each kind of worker process of a release; none when it can't be read, which others tell."""
    try:
        return host.store.spec(release).queues if release else []
    except BackstepError:
        return []


def _flat(groups: list[list[str]]) -> list[str]:
    return list(dict.fromkeys(queue for group in groups for queue in group))


def _tells_tasks(host: Host, release: str) -> bool:
    """Whether a release can be asked which tasks it can run."""
    try:
        sealed = host.store.manifest(release)
        return sealed.get("problem", "nobody asked") == "" or bool(sealed.get("versions"))
    except BackstepError:
        return False


def problems(host: Host, state: PoolState, verify: bool) -> list[str]:
    """What a person should know: a link or units that differ from the journal, stored releases that can't be used."""
    found = []
    if host.link() != state.current:
        found.append(f"current points to {host.link()}, the journal says {state.current}")
    if state.rollout and state.rollout.phase == STUCK:
        found.append(
            f"needs a person, unless {state.rollout.safe} stays up after all: the way back to it has failed: "
            f"{state.rollout.reason}"
        )
    elif state.rollout and state.rollout.open:
        found.append(f"rollout {state.rollout.token} is not finished ({state.rollout.phase.replace('_', ' ')})")
        if state.rollout.held:
            found.append(f"the way back is barred ({state.rollout.held} can't be undone): a person has to decide")
    elif state.current and state.current not in host.running(Part.WORKERS):
        found.append(f"no worker of {state.current} runs")
    found += [f"{name_of(hook)} has not run well" for hook in hooks_pending(state)]
    if not verify:
        return found
    for release in state.good_releases():
        problem = host.target_problem(state, release)
        if problem and not _was_pruned(host, release):
            found.append(problem)
        elif release == state.current:
            found += [f"unit {name} differs from the sealed one" for name in host.drift(release)]
    return found


def _was_pruned(host: Host, release: str) -> bool:
    """Whether somebody has pruned it since the journal was read: that is noted after its files are gone."""
    try:
        with host.locked(_PRUNE_SECONDS):
            return release not in host.state().releases
    except StepOutOfOrder:
        return False


def workers(host: Host, release: str, part: Part = Part.WORKERS) -> list[dict[str, Any]]:
    """The workers of a release: ``{index, worker, pid, state, uptime, restarts, reports, finishing}``.

    ``uptime`` is in seconds. ``reports`` is the release that the process itself belongs to, None when there is no
    process. ``finishing`` tells
    that it was asked to stop and still has a task.
    """
    reported = {process.pid: process for found in host.running().values() for process in found}
    return [_worker(host, release, main, reported) for main in host.supervisor.processes(release, part)]


def _worker(host: Host, release: str, main: MainProcess, reported: dict[int, Any]) -> dict[str, Any]:
    process = reported.get(main.pid or 0)
    birth = start_of(main.pid) if main.pid else None
    prefix = worker_prefix(host.pool.name, release, host.pool.host, main.index)
    return {
        "index": main.index,
        "worker": (process.worker if process else None) or f"{prefix}/{main.pid or 0}",
        "pid": main.pid or 0,
        "state": main.state,
        "uptime": round(uptime() - birth[1], 2) if birth else 0.0,
        "restarts": main.restarts,
        "reports": process.release if process else None,
        "finishing": bool(main.pid) and not main.wanted,
    }


def as_started(host: Host, release: str) -> dict[str, int]:
    """The main processes of a release as the open rollout has started them, or else as they are now."""
    rollout = host.state().rollout
    if rollout and rollout.open:
        return rollout.processes if rollout.target == release else {}
    return {str(main.index): main.pid or 0 for main in host.supervisor.processes(release)}


def watch(host: Host, release: str, seconds: float, expected: dict[str, int], part: Part = Part.ALL) -> dict[str, Any]:
    """Watch a release's processes until each has been up for ``seconds``, or until one has shown that it won't.

    A worker that was told to stop and then to start again finishes its task first; that counts as up. The scheduler has
    to be the one that runs here: one that waits for another to end doesn't count.

    :param expected: the main process of each as it was started; another one means that it has died since. 0 for
        one that was not up yet, or had a task to finish first.
    :returns: evidence: ``{host, release, bake, outcome, problems, processes, scheduler}``; ``outcome`` is ``ok`` or
        ``failed``, ``scheduler`` None where the release has none.
    """
    deadline = Deadline(seconds + 5.0)
    seen: list[dict[str, Any]] = []
    found: list[str] = []

    def settled() -> bool:
        seen[:] = workers(host, release, part)
        found[:] = _worker_problems(host, seen, release, expected)
        return bool(found) or not (young() or idle_scheduler())

    def young() -> list[dict[str, Any]]:
        # A supervisor may take a moment longer than asked for to call a process that is up running.
        return [
            worker
            for worker in seen
            if (worker["uptime"] < seconds or worker["state"] != RUNNING) and not worker["finishing"]
        ]

    def idle_scheduler() -> list[str]:
        here = any(worker["index"] == SCHEDULER_INDEX for worker in seen)
        runs = host.scheduler() if here else None
        return [f"the scheduler of {release} doesn't run"] if here and (runs is None or runs[0] != release) else []

    if not deadline.wait_until(settled, poll=0.25):
        found = [
            f"{_name(worker)} has been up for {worker['uptime']} s of {seconds}, and is {worker['state']}"
            for worker in young()
        ] + idle_scheduler()
    return {
        "host": host.pool.host,
        "release": release,
        "queues": _queues(host, release),
        "bake": seconds,
        "outcome": "failed" if found else "ok",
        "problems": found,
        "processes": [worker for worker in seen if worker["index"] != SCHEDULER_INDEX],
        "scheduler": next((worker for worker in seen if worker["index"] == SCHEDULER_INDEX), None),
    }


def _name(worker: dict[str, Any]) -> str:
    return "the scheduler" if worker["index"] == SCHEDULER_INDEX else f"worker {worker['index']}"


def _worker_problems(host: Host, seen: list[dict[str, Any]], release: str, expected: dict[str, int]) -> list[str]:
    found = []
    if {str(worker["index"]) for worker in seen} != set(expected):
        found.append(f"{len(seen)} of {len(expected)} processes are known to the supervisor")
    for worker in seen:
        started: Optional[int] = expected.get(str(worker["index"]))
        name = _name(worker)
        see = f"(see {host.supervisor.where_to_look(release, worker['index'])})"
        if worker["restarts"] or (started and worker["pid"] not in (0, started)):
            found.append(f"{name} has died and was started again {see}")
        elif not worker["pid"] and started != 0:
            found.append(f"{name} doesn't run, it is {worker['state']} {see}")
        elif worker["reports"] not in (release, None):
            found.append(f"{name} reports release {worker['reports']}")
    return found
