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
from tests.faults.kills import FAULTS, PLAYS, Case, observed, run_case
from tests.faults.table import Table

# Events that no undisturbed play writes, and where they are brought about instead.
ELSEWHERE = {
    "barrier_held": "tests/integration/test_supervisord_barrier.py",
    "hook_started": "tests/integration/test_supervisord_hooks.py",
    "hook_ended": "tests/integration/test_supervisord_hooks.py",
    "drain_overran": "tests/integration/test_supervisord_reaper.py",
    "guard_fired": "each case that waits; tests/integration/test_supervisord_guard.py",
    "reaped": "tests/integration/test_supervisord_reaper.py",
    "rollback_failed": "tests/integration/test_supervisord_stuck.py",
    "scheduler_handed_over": "tests/integration/test_supervisord_scheduler.py",
    "torn_line": "tests/unit/test_journal.py, tests/faults/test_host_resources.py",
}


@pytest.mark.timeout(0)
def test_kill_anywhere(logs: Path, table: Table, pytestconfig: pytest.Config) -> None:
    chance = random.Random(table.seed)
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
        chance.shuffle(cases)
        cases = [case for case in cases if pytestconfig.getoption("faults_only") in str(case)]
        for case in cases[:at_most]:
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
