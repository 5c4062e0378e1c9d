# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict: good only when everything has been observed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout.rates import Tally
from ansible_collections.backstep.workers.plugins.module_utils._rollout.verdict import (
    PROBES,
    BrokerEvidence,
    Limits,
    Verdict,
    WorkerEvidence,
    judge,
)

RELEASE = "2.0-aaaaaaaa"
LIMITS = Limits(release=RELEASE, queues=(("mail",), ("high", "low")), baseline=Tally(1000, 5))


def process(index: int, **changed: Any) -> dict[str, Any]:
    worker = f"pool/{RELEASE}/w1/{index}/{100 + index}"
    return {
        "index": index, "worker": worker, "pid": 100 + index, "state": "running",
        "uptime": 10.0, "restarts": 0, "reports": RELEASE, **changed,
    }  # fmt: skip


def host(*processes: dict[str, Any], **changed: Any) -> dict[str, Any]:
    found = list(processes) or [process(1), process(2)]
    return {
        "host": "w1", "release": RELEASE, "bake": 10.0, "outcome": "ok", "problems": [], "processes": found, **changed
    }  # fmt: skip


def worker(index: int, queues: tuple[str, ...], **changed: Any) -> WorkerEvidence:
    evidence = WorkerEvidence(f"pool/{RELEASE}/w1/{index}/{100 + index}", 100 + index, queues, 1, 0, 0, 0)
    return replace(evidence, **changed)


SECOND = worker(2, ("high", "low"))


def broker(*workers: WorkerEvidence, **changed: Any) -> BrokerEvidence:
    return BrokerEvidence(workers=workers or (worker(1, ("mail",)), SECOND), waited=30.0, **changed)


def outcomes(verdict: Verdict) -> dict[str, str]:
    return {probe.name: probe.outcome for probe in verdict.probes}


def test_everything_observed_is_good() -> None:
    verdict = judge(host(), broker(), LIMITS)
    assert verdict.verdict == "good"
    assert outcomes(verdict) == dict.fromkeys(PROBES, "good")


@pytest.mark.parametrize(
    ("host_evidence", "broker_evidence", "unknown"),
    [
        (None, broker(), {"alive", "version"}),
        ({}, broker(), {"alive", "version"}),
        (host(), None, {"queues", "canary", "failures"}),
        (host(), BrokerEvidence(error="no answer"), {"queues", "canary", "failures"}),
        (host(process(1, reports=None), process(2)), broker(), {"version"}),
        (host(outcome="?"), broker(), {"alive"}),
        (host(), broker(worker(1, ("mail",), finished=0), SECOND, paused="a person"), {"canary"}),
        (host(), broker(worker(1, ("mail",), finished=0, executing="t-1"), SECOND), {"canary"}),
    ],
)
def test_missing_evidence_is_unknown(host_evidence: Any, broker_evidence: Any, unknown: set[str]) -> None:
    verdict = judge(host_evidence, broker_evidence, LIMITS)
    assert verdict.verdict == "unknown"
    assert {name for name, outcome in outcomes(verdict).items() if outcome == "unknown"} == unknown


@pytest.mark.parametrize(
    ("host_evidence", "broker_evidence", "probe", "reason"),
    [
        (host(outcome="failed", problems=["worker 1 has died"]), None, "alive", "worker 1 has died"),
        (host(outcome="failed"), None, "alive", "'failed'"),
        (host(process(1, state="exited"), process(2)), broker(), "alive", "process 1 is exited"),
        (host(process(1, reports="1.0-b"), process(2)), broker(), "version", "process 1 runs 1.0-b"),
        (host(), broker(worker(1, ("mial",)), SECOND), "queues", "listens to mial"),
        (host(), broker(worker(1, ("mail",)), worker(2, ("low", "high"))), "queues", "listens to low,high"),
        (host(), broker(worker(1, ("mail",))), "queues", "process 2 has not registered"),
        (host(), broker(worker(1, ("mail",)), worker(2, ("mail",))), "queues", "no worker of it on this host listens"),
        (host(), broker(worker(1, ("mail",), finished=0), SECOND), "canary", "finished nothing in 30 s"),
        (host(), broker(worker(1, ("mail",), canaries_failed=1), SECOND), "canary", "canary task failed"),
        (host(), broker(worker(1, ("mail",), failed=50), SECOND), "failures", "50 of its 52"),
    ],
)
def test_what_is_wrong_is_bad_and_named(host_evidence: Any, broker_evidence: Any, probe: str, reason: str) -> None:
    verdict = judge(host_evidence, broker_evidence, LIMITS)
    assert verdict.verdict == "bad"
    assert outcomes(verdict)[probe] == "bad"
    assert reason in verdict.reason


def test_no_worker_at_all_is_bad() -> None:
    verdict = judge(host(), BrokerEvidence(waited=30.0), LIMITS)
    assert outcomes(verdict)["canary"] == "bad"
    assert outcomes(verdict)["queues"] == "bad"


def test_workers_that_are_gone_with_their_host_say_nothing_of_the_release() -> None:
    for evidence in (broker(), broker(worker(1, ("mail",), finished=0, canaries_finished=0))):
        assert judge({}, evidence, LIMITS).verdict == "unknown"


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (host(outcome="failed", problems=["worker 1 has died"]), BrokerEvidence(waited=30.0)),
        (host(outcome="failed"), BrokerEvidence(waited=30.0)),
        (host(processes=[]), BrokerEvidence(waited=30.0)),
        (host(), broker(worker(1, ("mail",), finished=0), SECOND)),
    ],
)
def test_what_becomes_of_workers_on_a_host_without_the_broker_says_nothing_of_the_release(
    seen: dict[str, Any], told: BrokerEvidence
) -> None:
    assert judge(seen, told, LIMITS).verdict == "bad"
    verdict = judge({**seen, "unreachable": "redis:6379: No route to host"}, told, LIMITS)
    assert verdict.verdict == "unknown"
    assert "but this host doesn't reach the broker: redis:6379: No route to host" in verdict.reason


def test_what_workers_did_all_the_same_counts_on_a_host_without_the_broker() -> None:
    alone = host(unreachable="redis:6379: No route to host")
    assert judge(alone, broker(), LIMITS).verdict == "good"
    assert judge(alone, broker(worker(1, ("mial",)), SECOND), LIMITS).verdict == "bad"
    assert judge(alone, broker(worker(1, ("mail",), canaries_failed=1), SECOND), LIMITS).verdict == "bad"


def test_workers_that_a_persons_pause_keeps_from_starting_are_unknown() -> None:
    found = outcomes(judge(host(), BrokerEvidence(waited=30.0, paused="a person"), LIMITS))
    assert (found["queues"], found["canary"]) == ("unknown", "unknown")


def test_a_host_that_runs_nothing_is_bad_even_when_it_says_ok() -> None:
    assert outcomes(judge(host(processes=[]), broker(), LIMITS))["alive"] == "bad"


def test_a_finished_canary_proves_a_worker_without_traffic() -> None:
    quiet = worker(1, ("mail",), finished=0, canaries_finished=1)
    assert judge(host(), broker(quiet, SECOND), LIMITS).verdict == "good"


def test_a_worker_of_the_users_own_naming_is_known_by_its_pid() -> None:
    named = worker(1, ("mail",), name="mail-worker-7")
    assert judge(host(), broker(named, SECOND), LIMITS).verdict == "good"


def test_bad_beats_unknown() -> None:
    assert judge(None, broker(worker(1, ("mial",))), LIMITS).verdict == "bad"


def test_a_release_has_to_know_its_tasks_unless_it_is_gone_back_to() -> None:
    parking = broker(worker(1, ("mail",), parked=True), SECOND)
    verdict = judge(host(), parking, replace(LIMITS, must_know=True))
    assert (verdict.verdict, outcomes(verdict)["failures"]) == ("bad", "bad")
    assert verdict.reason.endswith(f"101 parked tasks that {RELEASE} doesn't know or can't read")
    assert judge(host(), parking, LIMITS).verdict == "good"
    assert judge(host(), broker(), replace(LIMITS, must_know=True)).verdict == "good"


def test_an_engine_that_counts_no_failures_leaves_it_to_the_canary() -> None:
    uncounted = (worker(1, ("mail",), finished=10, failed=None), replace(SECOND, failed=None))
    verdict = judge(host(), broker(*uncounted), LIMITS)
    assert verdict.verdict == "good"
    (failures,) = [probe for probe in verdict.probes if probe.name == "failures"]
    assert (failures.outcome, failures.facts["failed"]) == ("good", None)
    assert "canary" in failures.reason
    failing = broker(*(replace(found, canaries_failed=1) for found in uncounted))
    assert judge(host(), failing, LIMITS).verdict == "bad"
