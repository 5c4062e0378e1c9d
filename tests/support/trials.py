# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts workers on trial as a rollout does, without a host."""

from __future__ import annotations

from typing import Any

from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.proving import Proof, Trial
from ansible_collections.backstep.workers.plugins.module_utils._rollout.verdict import BrokerEvidence, Limits, judge

from tests.support.servers import waiting

RELEASE = "2.0-bbbbbbbb"
PREFIX = f"mail/{RELEASE}/w1"


def process(name: str) -> dict[str, Any]:
    """What a host reports of a worker."""
    return {
        "index": int(name.split("/")[3]), "worker": name, "pid": int(name.split("/")[4]), "state": "running",
        "uptime": 5.0, "restarts": 0, "reports": RELEASE,
    }  # fmt: skip


def trial(
    engine: Engine, *names: str, canary: str = "", seconds: float = 15.0, must_know: bool = False
) -> tuple[Proof, str]:
    """Put the workers on trial; the proof and the verdict."""
    processes = [process(name) for name in names]
    subject = Trial("mail", RELEASE, "w1", (("mail",),), processes, canary or engine.default_canary, seconds, must_know)
    proof = Proof(engine, subject)
    seen: BrokerEvidence = proof.run(waiting(seconds))
    host = {"outcome": "ok", "bake": 5.0, "problems": [], "processes": processes}
    return proof, judge(host, seen, Limits(release=RELEASE, queues=(("mail",),), must_know=must_know)).verdict
