# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a release works: what the host and the broker saw, judged. Pure.

Missing evidence makes a probe unknown, never good. Bad beats unknown, unknown beats good.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from .rates import Tally, compare

GOOD = "good"
BAD = "bad"
UNKNOWN = "unknown"
_SEVERITY = {GOOD: 0, UNKNOWN: 1, BAD: 2}
PROBES = ("alive", "version", "queues", "canary", "failures")


@dataclass(frozen=True)
class Probe:
    """One observation that proves, or disproves, that a release works."""

    name: str
    outcome: str
    reason: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """``good``, ``bad`` or ``unknown``, one sentence for a person, and what it rests on."""

    verdict: str
    reason: str
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True)
class WorkerEvidence:
    """A worker of the release on this host, as the broker knows it."""

    name: str
    pid: Optional[int]
    queues: tuple[str, ...]
    finished: int
    failed: Optional[int]
    """``None`` when the engine doesn't count failed tasks."""
    canaries_finished: int
    canaries_failed: int
    executing: Optional[str] = None
    """Id of the task that it executes."""
    parked: bool = False
    """Whether it has parked tasks that it doesn't know."""

    @property
    def proven(self) -> bool:
        """Whether it has finished a task."""
        return self.finished + self.canaries_finished > 0


@dataclass(frozen=True)
class BrokerEvidence:
    """What the broker told about this release on this host."""

    workers: tuple[WorkerEvidence, ...] = ()
    error: str = ""
    """Why it could not be asked, or "" when it could."""
    paused: str = ""
    """Who has paused the queues, or "" when nobody has."""
    waited: float = 0.0
    """Seconds that the workers were given."""


@dataclass(frozen=True)
class Limits:
    """What is demanded of a release."""

    release: str
    queues: tuple[tuple[str, ...], ...]
    """For each kind of process the queues that it has to listen to, in order."""
    baseline: Optional[Tally] = None
    failure_margin: float = 0.1
    failure_min_tasks: int = 5
    must_know: bool = False
    """Whether tasks that its workers park, as they don't know them, speak against it: not on a way back."""


def judge(host: Optional[Mapping[str, Any]], broker: Optional[BrokerEvidence], limits: Limits) -> Verdict:
    """The verdict on a release on one host.

    :param host: what the host saw (``release_info`` with ``watch``); empty or ``None`` when it could not be asked. With
        ``unreachable`` (why the host doesn't reach the broker) its workers' silence or death is not held against them.
    :param broker: what the broker told; ``None`` when it was not asked.
    """
    probes = (
        _alive(host),
        _version(host, limits.release),
        _queues(host, broker, limits),
        _canary(host, broker),
        _failures(broker, limits),
    )
    return Verdict(*_worst((probe.outcome, f"{probe.name}: {probe.reason}") for probe in probes), probes)


def _worst(found: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """The worst outcome, and the reasons of all that have it."""
    outcomes = list(found)
    if not outcomes:
        return UNKNOWN, "nothing was observed"
    worst = max((outcome for outcome, _reason in outcomes), key=lambda outcome: _SEVERITY[outcome])
    if worst == GOOD:
        return GOOD, "everything that was asked for has been observed"
    return worst, "; ".join(reason for outcome, reason in outcomes if outcome == worst)


def _alive(host: Optional[Mapping[str, Any]]) -> Probe:
    if not host:
        return Probe("alive", UNKNOWN, "the host told nothing")
    processes = host.get("processes") or []
    facts = {"bake": host.get("bake"), "processes": len(processes)}
    problems = [str(problem) for problem in host.get("problems") or []] or [
        f"process {process.get('index')} is {process.get('state')}"
        for process in processes
        if process.get("state") != "running"
    ]
    if problems:
        more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
        return _blamed("alive", host, f"{problems[0]}{more}", {**facts, "problems": problems})
    if host.get("outcome") == "failed":
        return _blamed("alive", host, "the host's watch ended with 'failed'", facts)
    if host.get("outcome") != "ok":
        return Probe("alive", UNKNOWN, f"the host's watch ended with '{host.get('outcome')}'", facts)
    if not processes:
        return _blamed("alive", host, "the host runs no process of it", facts)
    return Probe("alive", GOOD, f"{len(processes)} processes ran for {host.get('bake')} s", facts)


def _blamed(name: str, host: Optional[Mapping[str, Any]], reason: str, facts: Mapping[str, Any]) -> Probe:
    """What speaks against a release, unless its host is gone or cut off from the broker: then it says nothing of it."""
    cut_off = (host or {}).get("unreachable")
    if cut_off:
        return Probe(name, UNKNOWN, f"{reason}; but this host doesn't reach the broker: {cut_off}", facts)
    return Probe(name, BAD if host else UNKNOWN, reason, facts)


def _version(host: Optional[Mapping[str, Any]], release: str) -> Probe:
    processes = (host or {}).get("processes") or []
    if not processes:
        return Probe("version", UNKNOWN, "no process told what it runs")
    reports = {str(process.get("index")): process.get("reports") for process in processes}
    wrong = [f"process {index} runs {found}" for index, found in reports.items() if found and found != release]
    if wrong:
        return Probe("version", BAD, f"{', '.join(wrong)} instead of {release}", {"reports": reports})
    silent = [index for index, found in reports.items() if not found]
    if silent:
        return Probe("version", UNKNOWN, f"no report of process {', '.join(silent)}", {"reports": reports})
    return Probe("version", GOOD, f"every process runs {release}", {"reports": reports})


def _queues(host: Optional[Mapping[str, Any]], broker: Optional[BrokerEvidence], limits: Limits) -> Probe:
    silence = _silence(broker)
    if broker is None or silence:
        return Probe("queues", UNKNOWN, silence)
    facts = {worker.name: list(worker.queues) for worker in broker.workers}
    wrong = [
        f"{worker.name} listens to {','.join(worker.queues) or 'nothing'}"
        for worker in broker.workers
        if worker.queues not in limits.queues
    ]
    expected = " or ".join(",".join(queues) for queues in limits.queues)
    if wrong:
        return Probe("queues", BAD, f"{'; '.join(wrong)} instead of {expected}", facts)
    absent = _absent((host or {}).get("processes") or [], broker.workers, limits)
    if absent and broker.paused:
        return Probe("queues", UNKNOWN, f"{absent}; the queues are paused by {broker.paused}", facts)
    if absent:
        return _blamed("queues", host, absent, facts)
    return Probe("queues", GOOD, f"{len(facts)} workers listen to {expected}", facts)


def _absent(processes: Sequence[Mapping[str, Any]], workers: Sequence[WorkerEvidence], limits: Limits) -> str:
    """Which process has not registered, or which queues nobody listens to; "" when there is none."""
    names = {worker.name for worker in workers}
    pids = {worker.pid for worker in workers}
    missing = [
        str(process.get("index"))
        for process in processes
        if process.get("worker") not in names and process.get("pid") not in pids
    ]
    if missing:
        return f"process {', '.join(missing)} has not registered with the broker"
    deserted = [",".join(queues) for queues in limits.queues if queues not in {w.queues for w in workers}]
    return f"no worker of it on this host listens to {'; '.join(deserted)}" if deserted else ""


def _canary(host: Optional[Mapping[str, Any]], broker: Optional[BrokerEvidence]) -> Probe:
    silence = _silence(broker)
    if broker is None or silence:
        return Probe("canary", UNKNOWN, silence)
    facts = {worker.name: worker.finished + worker.canaries_finished for worker in broker.workers}
    failing = [worker.name for worker in broker.workers if worker.canaries_failed]
    if failing:
        return Probe("canary", BAD, f"the canary task failed on {', '.join(failing)}", facts)
    unproven = [worker for worker in broker.workers if not worker.proven]
    if unproven or not facts:
        outcome, reason = _why_unproven(broker, unproven)
        return _blamed("canary", host, reason, facts) if outcome == BAD else Probe("canary", outcome, reason, facts)
    return Probe("canary", GOOD, f"each of {len(facts)} workers has finished a task", facts)


def _why_unproven(broker: BrokerEvidence, unproven: Sequence[WorkerEvidence]) -> tuple[str, str]:
    if broker.paused:
        return UNKNOWN, f"the queues are paused by {broker.paused}, so it could not be tried"
    if not unproven:
        return BAD, "no worker of it on this host has registered"
    idle = [worker.name for worker in unproven if not worker.executing]
    if idle:
        return BAD, f"{', '.join(idle)} finished nothing in {broker.waited:.0f} s"
    busy = ", ".join(f"{worker.name} ({worker.executing})" for worker in unproven)
    return UNKNOWN, f"still executing a first task after {broker.waited:.0f} s: {busy}"


def _failures(broker: Optional[BrokerEvidence], limits: Limits) -> Probe:
    silence = _silence(broker)
    if broker is None or silence:
        return Probe("failures", UNKNOWN, silence)
    parking = [worker.name for worker in broker.workers if worker.parked]
    if parking and limits.must_know:
        what = f"tasks that {limits.release} doesn't know or can't read"
        return Probe("failures", BAD, f"{', '.join(parking)} parked {what}")
    finished, failed = sum(w.finished for w in broker.workers), [w.failed for w in broker.workers]
    counted = [count for count in failed if count is not None]
    if len(counted) < len(failed):
        # Never told by this engine: that is no silence of these workers, and the canary has an end of its own.
        reason = "this engine doesn't count failed tasks; the canary decides"
        return Probe("failures", GOOD, reason, {"finished": finished, "failed": None})
    new = Tally(finished, sum(counted))
    found = compare(new, limits.baseline, limits.failure_margin, limits.failure_min_tasks)
    facts = {"finished": new.finished, "failed": new.failed}
    return Probe("failures", BAD if found.worse else GOOD, found.reason, facts)


def _silence(broker: Optional[BrokerEvidence]) -> str:
    """Why the broker proves nothing, or "" when it does."""
    return "the broker was not asked" if broker is None else broker.error
