# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two controllers at one pool: exactly one proceeds, and nothing that a person types skips a safety step."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host.clock import moment
from ansible_collections.backstep.workers.plugins.module_utils._rollout.rules import is_live

from tests.faults.gate import BEFORE_NEXT, JUST_AFTER, Boundary, Gate
from tests.faults.ground import HOSTS, PLAY_SECONDS, Controller, Ground
from tests.faults.table import Run, Table
from tools.common import wait_for

pytestmark = pytest.mark.timeout(600)
# The least that the role takes for a lease is what a step may take until its host is given up.
STEP_SECONDS = 10
LEASE_SECONDS = 25
STALE = r"its lease has run out \d+ s ago.* was not confirmed: its guard takes it back to \S+ (within \d+ s|now)"
STALE_BUT_TAKEN = r"rollout \d+ of \S+ \(pid \d+\) \(deploy\) has superseded it"
OWNER = r"\S+@\S+ \(pid {pid}\)"


def wait_said(controller: Controller, text: str) -> None:
    """Wait until a playbook has come to a task."""
    wait_for(f"'{text}'", lambda: None if text in controller.output else controller.output[-300:], timeout=PLAY_SECONDS)


def on(ground: Ground, release: str) -> None:
    """Every host is settled on a release, and nothing is lost."""
    ground.wait_settled(ground.confirm_seconds + ground.grace_seconds)
    assert {name: ground.host(name).state().current for name in HOSTS} == dict.fromkeys(HOSTS, release)
    assert ground.complaints() == []


def enter(ground: Ground, table: Table, fault: str, step: str) -> None:
    """Into the report, with what the ledger says."""
    found = ground.take_balance()
    table.runs.append(Run(fault, step, len(found.lost), len(found.duplicated), len(found.announced)))
    assert found.balanced, found.counts()


@pytest.mark.thorough
def test_of_two_deploys_exactly_one_proceeds(ground: Ground, table: Table) -> None:
    with ground.production():
        first, second = ground.host(HOSTS[0]), ground.host(HOSTS[1])
        with first.locked(), second.locked():
            deploys = [ground.start("deploy", **ground.build()) for _number in range(2)]
            for deploy in deploys:
                wait_said(deploy, "[backstep.workers.pool : Take the lease")
        statuses = [deploy.wait() for deploy in deploys]
        won, lost = deploys if statuses[0] == 0 else reversed(deploys)
        print(lost.output)
        assert sorted(status == 0 for status in statuses) == [False, True], statuses
        assert re.search(OWNER.format(pid=won.process.pid) + " holds this host for a deploy since 20", lost.output)
        assert "next:" in lost.output or "Wait for it" in lost.output
        current = ground.current()
        assert current in won.output
        on(ground, current)
    enter(ground, table, "two controllers", "two deploys")


def test_a_rollback_pre_empts_a_deploy_which_says_that_it_was_superseded(ground: Ground, table: Table) -> None:
    home = ground.current()
    with ground.production():
        with Gate(ground.journal(HOSTS[0])) as gate:
            deploy = ground.start(
                "deploy", **ground.build(), pool_health={"bake": 15, "canary_timeout": 5}, pool_waves=["100%"]
            )
            assert gate.wait_for(Boundary(HOSTS[0], "switched", 1, JUST_AFTER), PLAY_SECONDS, deploy.running)
        wait_said(deploy, "Watch wave")
        rollback = ground.require("rollback")
        assert deploy.wait() != 0
        assert "Pool letters was superseded" in deploy.output
        why = rf"rollout \d+ of {OWNER.format(pid=rollback.process.pid)} \(rollback\) has superseded it"
        assert re.search(rf"Pool letters was superseded: [^.]*\. Why: {why}", deploy.output)
        on(ground, home)
    enter(ground, table, "two controllers", "rollback during a deploy")


@pytest.mark.thorough
def test_of_two_rollbacks_exactly_one_proceeds(ground: Ground, table: Table) -> None:
    home = ground.current()
    ground.require("deploy", **ground.build())
    with ground.production():
        first, second = ground.host(HOSTS[0]), ground.host(HOSTS[1])
        with first.locked(), second.locked():
            rollbacks = [ground.start("rollback") for _number in range(2)]
            for rollback in rollbacks:
                wait_said(rollback, "[backstep.workers.pool : Take the first host's lease")
        statuses = [rollback.wait() for rollback in rollbacks]
        won, lost = rollbacks if statuses[0] == 0 else reversed(rollbacks)
        print(lost.output)
        assert sorted(status == 0 for status in statuses) == [False, True], statuses
        assert re.search(OWNER.format(pid=won.process.pid) + " holds this host for a rollback since 20", lost.output)
        assert "Nothing was changed on this host." in lost.output
        assert "[backstep.workers.pool : Go back]" not in lost.output
        on(ground, home)
    enter(ground, table, "two controllers", "two rollbacks")


@pytest.mark.thorough
def test_nothing_pre_empts_a_rollback(ground: Ground, table: Table) -> None:
    home = ground.current()
    ground.require("deploy", **ground.build())
    with ground.production():
        with Gate(ground.journal(HOSTS[0])) as gate:
            rollback = ground.start("rollback")
            assert gate.wait_for(Boundary(HOSTS[0], "rollback_started", 1, BEFORE_NEXT), PLAY_SECONDS, rollback.running)
            for refused in (ground.play("deploy", **ground.build()), ground.play("rollback")):
                assert refused.wait() != 0
                assert re.search(OWNER.format(pid=rollback.process.pid) + " for a rollback", refused.output)
                assert "Nothing was changed." in refused.output
        assert rollback.wait() == 0
        on(ground, home)
    enter(ground, table, "two controllers", "deploy and rollback during a rollback")


def freeze(controller: Controller, number: signal.Signals) -> None:
    """SIGSTOP or SIGCONT to all of a controller; a step that is under way on a host goes on."""
    for pid in controller.own():
        os.kill(pid, number)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(True, id="another deploy in between", marks=pytest.mark.thorough),
        pytest.param(False, id="nobody in between", marks=pytest.mark.thorough),
    ],
)
def test_a_controller_that_wakes_up_late_is_refused_by_the_hosts(ground: Ground, table: Table, other: bool) -> None:
    home = ground.current()
    terms: dict[str, Any] = {
        "pool_step_timeout": STEP_SECONDS,
        "pool_lease_timeout": LEASE_SECONDS,
        "pool_waves": ["100%"],
    }
    with ground.production():
        with Gate(ground.journal(HOSTS[0])) as gate:
            late = ground.start("deploy", **ground.build(), **terms)
            assert gate.wait_for(Boundary(HOSTS[0], "switched", 1, JUST_AFTER), PLAY_SECONDS, late.running)
            freeze(late, signal.SIGSTOP)
        wait_for("the leases to run out", lambda: held(ground), timeout=LEASE_SECONDS + ground.grace_seconds)
        if other:
            ground.require("deploy", **ground.build())
            home = ground.current()
        freeze(late, signal.SIGCONT)
        assert late.wait() != 0
        print(late.output)
        assert re.search(STALE_BUT_TAKEN if other else STALE, late.output)
        on(ground, home)
    enter(ground, table, "controller frozen past its lease", "another in between" if other else "nobody in between")


def held(ground: Ground) -> str | None:
    """None once no host's lease is live."""
    live = [name for name in HOSTS if is_live(ground.host(name).state().lease, moment())]
    return f"held on {live}" if live else None


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--start-at-task", "Switch wave 1 of 2"), marks=pytest.mark.thorough),
        pytest.param(("--start-at-task", "Confirm the release"), marks=pytest.mark.thorough),
        pytest.param(("--limit", "w2"), marks=pytest.mark.thorough),
        ("--limit", "@retry"),
    ],
    ids=str,
)
def test_no_option_skips_a_safety_step(ground: Ground, table: Table, tmp_path: Path, options: tuple[str, str]) -> None:
    home, before = ground.current(), ground.lengths()
    if options[1] == "@retry":
        (tmp_path / "retry").write_text("w1\n", encoding="ascii")
        options = (options[0], f"@{tmp_path / 'retry'}")
    played = ground.play("deploy", *options, **ground.build())
    print(played.output)
    assert ground.lengths() == before
    # Ansible itself finds no task to start at, says so, and ends with 0.
    assert (played.wait() != 0) == (options[0] == "--limit")
    on(ground, home)
    table.runs.append(Run("option that would skip a step", options[0]))


def test_tags_leave_no_step_out(ground: Ground, table: Table) -> None:
    before = ground.lengths()
    ground.require("deploy", "--tags", "confirm", **ground.build())
    events = [event["event"] for event in ground.events(HOSTS[0], before[HOSTS[0]])]
    for event in ("lease_granted", "staged", "guard_armed", "switched", "confirmed"):
        assert event in events
    on(ground, ground.current())
    table.runs.append(Run("option that would skip a step", "--tags"))
