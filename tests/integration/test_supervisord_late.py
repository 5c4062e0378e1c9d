# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A step that stood still with its host, and goes on when the host does: its guard has the last word."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host.clock import uptime
from ansible_collections.backstep.workers.plugins.module_utils._host.steps import Steps
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import StaleToken, StepOutOfOrder

from tests.integration.local_pool import TERMS, LocalPool
from tests.support.servers import wait_for

# More than it takes to come from the switch to the middle of the confirmation.
SECONDS = 20.0


def switched(pool: LocalPool, lease_seconds: float) -> tuple[str, str]:
    """A pool on its first release that was switched to a second one."""
    first = pool.deploy("1.0")
    pool.lease(seconds=lease_seconds)
    second = pool.stage("2.0")
    pool.switch(second, confirm_seconds=SECONDS)
    pool.wait_running(second)
    return first, second


def goes_on(pool: LocalPool, release: str, until: float) -> None:
    """Confirm, as a step does that holds the host's lock and stands still until a moment of the host's clock."""
    host = pool.open()
    with host.locked():
        wait_for("the time has come", lambda: uptime() > until, SECONDS + 10.0)
        Steps(host, pool.token, replace(TERMS, once=True)).confirm(release)


def test_a_confirmation_that_stood_still_past_its_guard_s_time_makes_nothing_good(pool: LocalPool) -> None:
    first, second = switched(pool, lease_seconds=600.0)
    deadline = pool.open().state().rollout.deadline  # type: ignore[union-attr]
    assert deadline
    with pytest.raises(StepOutOfOrder, match="its guard's time came"):
        goes_on(pool, second, deadline)
    wait_for("the guard has taken the host back", lambda: pool.open().state().current == first, SECONDS)
    pool.wait_only(first, SECONDS)
    assert pool.events().count("confirmed") == 1, "that of the first release"


def test_nor_does_one_whose_lease_has_run_out(pool: LocalPool) -> None:
    first, second = switched(pool, lease_seconds=600.0)
    pool.open().note("lease_released", pool.token)
    with pytest.raises(StaleToken, match="its lease was given back"):
        goes_on(pool, second, 0.0)
    wait_for("the guard has taken the host back", lambda: pool.open().state().current == first, SECONDS + 20.0)
    pool.wait_only(first, SECONDS)
