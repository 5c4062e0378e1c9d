# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have each worker of a release on one host finish a task, and tell what was seen on the way."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

from .._rollout.errors import BrokerRefused, BrokerUnreachable
from .._rollout.verdict import BrokerEvidence, WorkerEvidence
from .engine import CANARY_PREFIX, PARKED, Engine, Wait, WorkerSeen

_LIVES_ON_SECONDS = 60


@dataclass(frozen=True)
class Trial:
    """What is to be proven, where."""

    pool: str
    release: str
    host: str
    queues: tuple[tuple[str, ...], ...]
    processes: Sequence[Mapping[str, Any]]
    """As the host reports them; empty when it reports nothing."""
    canary: str
    """A task's name."""
    seconds: float
    """How long the workers have."""
    must_know: bool = False
    """Whether to ask who has parked tasks: a walk through what is parked, of no use where it speaks against nobody."""


@dataclass
class Proof:
    """The course of one trial."""

    engine: Engine
    trial: Trial
    observe: Optional[Callable[[Optional[Sequence[WorkerSeen]]], None]] = None
    """Told at each look who is registered; None where the broker gave no answer."""
    seen: list[WorkerSeen] = field(default_factory=list)
    paused: str = ""
    error: str = ""
    sent: int = 0
    _outstanding: dict[str, str] = field(default_factory=dict)
    """Canary id to its queue."""
    _finished: Counter[str] = field(default_factory=Counter)
    _failed: Counter[str] = field(default_factory=Counter)
    _parking: set[str] = field(default_factory=set)
    """Who has parked tasks."""
    _once_finished: set[str] = field(default_factory=set)
    """Workers that were seen to have finished something. It may have been the canary of another host's trial on the
    same queue, which that trial takes out of the counts again."""

    def run(self, wait: Wait) -> BrokerEvidence:
        """Observe, and send canaries to whom no task comes by itself, until all is proven or the wait ends.

        :param wait: asks a predicate again and again until it holds or a deadline has passed.
        """
        began = time.monotonic()
        try:
            wait(self._is_decided)
        finally:
            self._clean_up()
        return BrokerEvidence(
            workers=tuple(self._evidence(worker) for worker in self.seen),
            error=self.error,
            paused=self.paused,
            waited=time.monotonic() - began,
        )

    def _is_decided(self) -> bool:
        """Look once; whether looking on could change nothing."""
        try:
            self._note_canaries()
            self._look()
            state = self.engine.pause_state()
        except BrokerUnreachable as error:
            self.error = str(error)  # it may come back before the deadline
            self._tell(None)
            return False
        except BrokerRefused as error:
            self.error = str(error)
            return True
        self.error = ""
        self.paused = (state.owner or "a person") if state.paused else ""
        if self._failed or any(worker.queues not in self.trial.queues for worker in self.seen):
            return True
        unproven = [worker for worker in self.seen if not self._evidence(worker).proven]
        if len(self.seen) >= max(1, len(self.trial.processes)) and (not unproven or self.paused):
            return True
        if not self.paused:
            self._send(unproven)
        return False

    def _send(self, unproven: Sequence[WorkerSeen]) -> None:
        """Keep one canary on its way per idle worker without proof: others may take it, and then another follows."""
        idle = Counter(worker.queues[0] for worker in unproven if not _real_task(worker))
        under_way = Counter(self._outstanding.values())
        for queue, count in idle.items():
            missing = count - under_way[queue]
            if missing > 0:
                lifetime = int(self.trial.seconds) + _LIVES_ON_SECONDS
                sent = self.engine.send_canary(queue, self.trial.canary, missing, lifetime)
                self._outstanding.update(dict.fromkeys(sent, queue))
                self.sent += missing

    def _note_canaries(self) -> None:
        names = {worker.name for worker in self.seen}
        for outcome in self.engine.canaries(list(self._outstanding)):
            if outcome.state in ("waiting", "executing"):
                continue
            self.engine.withdraw(self._outstanding.pop(outcome.id), [outcome.id])
            if outcome.worker in names:
                self._finished[outcome.worker] += outcome.state == "finished"
                if outcome.state == "failed":
                    self._failed[outcome.worker] += 1

    def _look(self) -> None:
        workers = self.engine.workers()
        self.seen = [worker for worker in workers if belongs(worker, self.trial)]
        self._tell(workers)
        self._once_finished |= {worker.name for worker in self.seen if worker.finished}

    def _tell(self, workers: Optional[Sequence[WorkerSeen]]) -> None:
        if self.observe:
            self.observe(workers)

    def _clean_up(self) -> None:
        """Withdraw every canary, and look once more at counts that contain none."""
        try:
            self._note_canaries()
            for canary, queue in self._outstanding.items():
                self.engine.withdraw(queue, [canary])
            self._look()
            if self.trial.must_know and self.engine.capabilities.unknown_task == PARKED:
                self._parking = self.engine.parked_by([queue for group in self.trial.queues for queue in group])
        except (BrokerUnreachable, BrokerRefused) as error:
            self.error = self.error or str(error)  # the canaries dissolve by themselves

    def _evidence(self, worker: WorkerSeen) -> WorkerEvidence:
        others_canary = worker.name in self._once_finished and not worker.finished
        return WorkerEvidence(
            name=worker.name,
            pid=worker.pid,
            queues=worker.queues,
            finished=worker.finished,
            failed=worker.failed,
            canaries_finished=self._finished[worker.name] + others_canary,
            canaries_failed=self._failed[worker.name],
            executing=_real_task(worker),
            parked=worker.name in self._parking,
        )


def belongs(worker: WorkerSeen, trial: Trial) -> bool:
    """Whether a registered worker is one of the trial's processes.

    What the host reports decides, since a crashed process stays registered for a while; without a report, the name.
    """
    if trial.processes:
        here = worker.parsed.host == trial.host if worker.parsed else worker.hostname == trial.host
        return any(
            worker.name == process.get("worker") or (here and worker.pid == process.get("pid"))
            for process in trial.processes
        )
    named = worker.parsed
    return named is not None and (named.pool, named.release, named.host) == (trial.pool, trial.release, trial.host)


def _real_task(worker: WorkerSeen) -> Optional[str]:
    task = worker.current_task
    return task if task and not task.startswith(CANARY_PREFIX) else None
