# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every Molecule scenario passes, one after the other."""

from __future__ import annotations

import pytest

from tests.support.environment import ansible_environment
from tools.common import CHECKOUT, VENV, run

SCENARIOS = sorted(path.parent.name for path in CHECKOUT.glob("molecule/*/molecule.yml"))
# What differs between engines is in tests/conformance.
SHORT = ("deploy_fail_rollback",)

# One that only the broker sees through; the demo has others, and `make faults` all of them.
BAD_KINDS = "wrong-queue"


@pytest.mark.molecule
@pytest.mark.timeout(1300)
@pytest.mark.parametrize(
    "scenario", [pytest.param(name, marks=[] if name in SHORT else pytest.mark.thorough) for name in SCENARIOS]
)
def test_scenario_passes(scenario: str, pytestconfig: pytest.Config) -> None:
    environment = {**ansible_environment(), "NO_COLOR": "1", "COLUMNS": "150"}
    if not pytestconfig.getoption("faults_all"):
        environment["BACKSTEP_BAD_KINDS"] = BAD_KINDS
    command = [VENV / "bin" / "molecule", "test", "--scenario-name", scenario]
    done = run(command, timeout=1200, check=False, env=environment)
    print(done.stdout)
    assert done.returncode == 0
