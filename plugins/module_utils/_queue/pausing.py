# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have a pause reach every worker."""

from __future__ import annotations

from collections import Counter

from .._rollout.errors import DrainTimeout
from .engine import Engine, Wait, WorkerSeen


def settle(engine: Engine, wait: Wait, seconds: float) -> None:
    """Wait until no worker takes a task any more.

    An idle worker looks at the pause only after its next task. A canary is sent to it, so that this one is not a real
    task; canaries that nobody takes are withdrawn.

    :param wait: asks a predicate again and again until it holds or a deadline has passed.
    :param seconds: how long that wait is.
    :raises DrainTimeout: some workers still may take one, or have one; names them.
    """
    restless: list[WorkerSeen] = []
    sent: dict[str, list[str]] = {}

    def is_settled() -> bool:
        restless[:] = [worker for worker in engine.workers() if worker.state != "suspended"]
        idle = Counter(worker.queues[0] for worker in restless if worker.state != "busy" and worker.queues)
        for queue, count in idle.items():
            waiting = [canary for canary in engine.canaries(sent.get(queue, [])) if canary.state == "waiting"]
            if count > len(waiting):
                ids = engine.send_canary(queue, engine.default_canary, count - len(waiting), int(seconds) + 60)
                sent.setdefault(queue, []).extend(ids)
        return not restless

    try:
        wait(is_settled)
    finally:
        for queue, ids in sent.items():
            engine.withdraw(queue, ids)
    if restless:
        names = ", ".join(f"{worker.name} ({worker.state})" for worker in restless)
        raise DrainTimeout(
            f"After {seconds:.0f} s {len(restless)} worker(s) had not come to rest under the pause: {names}.",
            left="The pause stays until it expires or is resumed; no task was touched.",
            next_step="Wait longer, or drain these workers.",
            workers=[worker.name for worker in restless],
        )
