# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that takes a step and never answers, as one does that is frozen: every playbook ends, and names it.

Frozen in the middle of a step are the hosts of test_kill_anywhere.py and test_host_faults.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.ground import HOSTS, VARIABLES, Ground
from tests.faults.table import Run, Table

pytestmark = pytest.mark.timeout(600)
# More than a step of the other host takes on a busy machine.
STEP_SECONDS = 15
FROZEN, OTHER = HOSTS[1], HOSTS[0]
SAID = f"{FROZEN} has given no answer for {STEP_SECONDS} s"


@pytest.fixture
def frozen(tmp_path: Path) -> tuple[str, str]:
    """The options with which one host never answers: its interpreter reads nothing and says nothing."""
    interpreter, inventory = tmp_path / "interpreter", tmp_path / "inventory.json"
    interpreter.write_text("#!/bin/sh\nexec sleep 120\n", encoding="ascii")
    interpreter.chmod(0o755)
    hosts = {FROZEN: {"ansible_python_interpreter": str(interpreter)}}
    inventory.write_text(json.dumps({"all": {"hosts": hosts}}), encoding="utf-8")
    return "-i", str(inventory)


def test_status_ends_and_names_it(ground: Ground, table: Table, frozen: tuple[str, str]) -> None:
    shown = ground.play("status", *frozen, pool_step_timeout=STEP_SECONDS)
    print(shown.output)
    assert shown.wait() != 0
    assert f"No answer from {FROZEN}." in shown.output
    assert f"! {FROZEN}: unreachable: {SAID}" in shown.output
    assert f"! {OTHER}" not in shown.output
    table.runs.append(Run("host never answers", "status"))


@pytest.mark.thorough
def test_a_lease_outlives_the_longest_step_of_another_host(ground: Ground) -> None:
    """Otherwise a run that has given a host up would have lost the others."""
    canary = VARIABLES["pool_health"]["canary_timeout"]
    before = ground.lengths()
    ground.require("deploy", **ground.build(), pool_lease_timeout=1, pool_step_timeout=40)
    leases = [event["seconds"] for event in ground.events(OTHER, before[OTHER]) if event["event"] == "lease_granted"]
    assert leases == [40 + canary]
    ground.wait_settled(ground.grace_seconds)


@pytest.mark.thorough
def test_a_deploy_is_not_begun(ground: Ground, table: Table, frozen: tuple[str, str]) -> None:
    before = ground.lengths()
    refused = ground.play("deploy", *frozen, **ground.build(), pool_step_timeout=STEP_SECONDS)
    assert refused.wait() != 0
    assert f"The rollout was not begun. {FROZEN}: unreachable: {SAID}" in refused.output
    assert ground.lengths() == before
    table.runs.append(Run("host never answers", "deploy"))


def test_a_rollback_goes_on_without_it(ground: Ground, table: Table, frozen: tuple[str, str]) -> None:
    home = ground.current()
    ground.require("deploy", **ground.build())
    new, before = ground.current(), ground.lengths()
    rollback = ground.play("rollback", *frozen, pool_step_timeout=STEP_SECONDS)
    print(rollback.output)
    assert rollback.wait() != 0
    assert f"{FROZEN}: unreachable: {SAID}" in rollback.output
    assert f"{FROZEN} was not asked: it had given no answer" in rollback.output
    ground.wait_settled(ground.grace_seconds)
    assert {name: ground.host(name).state().current for name in HOSTS} == {OTHER: home, FROZEN: new}
    assert ground.lengths()[FROZEN] == before[FROZEN]
    ground.require("rollback")
    ground.wait_settled(ground.grace_seconds)
    assert ground.current() == home
    table.runs.append(Run("host never answers", "rollback"))
