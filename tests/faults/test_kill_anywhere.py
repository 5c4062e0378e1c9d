# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whoever is killed at whichever step: the hosts come back by themselves, and a second run finishes or undoes."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout.state import EVENTS

from tests.faults.gate import boundaries
from tests.faults.ground import HOSTS, a_ground
from tests.faults.kills import FAULTS, KILLED, PLAYS, Case, observed, run_case
from tests.faults.table import Table

# Events that no undisturbed play writes, and where they are brought about instead.
ELSEWHERE = {
    "barrier_held": "tests/integration/test_supervisord_barrier.py",
    "journal_cut": "tests/unit/test_journal.py, tests/unit/test_state_any_order.py",
    "so_far": "tests/unit/test_journal.py, tests/unit/test_state_any_order.py",
    "hook_started": "tests/integration/test_supervisord_hooks.py",
    "hook_ended": "tests/integration/test_supervisord_hooks.py",
    "drilled": "tests/integration/test_drill.py",
    "drain_overran": "tests/integration/test_supervisord_reaper.py",
    "guard_fired": "each case that waits; tests/integration/test_supervisord_guard.py",
    "reaped": "tests/integration/test_supervisord_reaper.py",
    "notified": "tests/integration/test_notifications.py",
    "rollback_failed": "tests/integration/test_supervisord_stuck.py",
    "scheduler_handed_over": "tests/integration/test_supervisord_scheduler.py",
    "torn_line": "tests/unit/test_journal.py, tests/faults/test_host_resources.py",
}
# That can run at the same time, each on hosts of its own.
PARTS = 2


def in_order(cases: list[Case], seed: int) -> list[Case]:
    """By chance, but that the controller is killed at every boundary before anything is tried a second time."""
    chance = random.Random(seed)
    chance.shuffle(cases)
    first = {(case.play, case.boundary): case for case in cases if case.fault == KILLED}
    return [*first.values(), *(case for case in cases if case not in first.values())]


@pytest.mark.timeout(0)
@pytest.mark.apart
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.thorough) for part in range(1, PARTS))])
def test_kill_anywhere(logs: Path, table: Table, pytestconfig: pytest.Config, part: int) -> None:
    end = time.monotonic() + pytestconfig.getoption("faults_seconds")
    at_most = pytestconfig.getoption("faults_cases")
    with ExitStack() as grounds:
        ground = grounds.enter_context(a_ground(logs))
        cases = []
        for play in PLAYS:
            events = observed(ground, play)
            cases += [
                Case(play, boundary, fault, wait)
                for boundary in boundaries(events)
                for fault in FAULTS
                for wait in (False, True)
            ]
        written = {event["event"] for name in HOSTS for event in ground.events(name)}
        nowhere = EVENTS.keys() - written - ELSEWHERE.keys()
        complaints = [f"neither a boundary nor named above: {sorted(nowhere)}"] if nowhere else []
        cases = [case for case in in_order(cases, table.seed) if pytestconfig.getoption("faults_only") in str(case)]
        ours = cases[part::PARTS]
        print(f"{len({(case.play, case.boundary) for case in ours})} boundaries, {len(ours)} cases")
        for case in ours[pytestconfig.getoption("faults_from") :][:at_most]:
            if time.monotonic() > end:
                break
            print(f"== {case}")
            run = run_case(ground, case)
            table.runs.append(run)
            print(f"   {run}")
            if run.complaints:
                complaints.append(f"{case}: {run.complaints}")
                grounds.close()
                ground = grounds.enter_context(a_ground(logs))
        assert not complaints, "\n".join(complaints)
