# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The scheduler of a pool on real hosts with systemd, moved by the playbooks: RQ's own, on one of two hosts.

The tests share one pool; each of them leaves it on a good release.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.pool import Pool, on_last_good, prepared_pool
from tests.support.schedulers import at_work, watched
from tools.common import wait_for

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]
SCHEDULE = Path(__file__).resolve().parent / "files" / "schedule.py"
WORDS = ("cron", "schedule.py")
PERIOD = 10
SECONDS = 60
# In the environment of everything that the pool runs, which this machine sees as well.
MARK = f"STAND={uuid.uuid4()}"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Two worker hosts on release 1.0, with a scheduler on the first one, and a broker."""
    folder = tmp_path_factory.mktemp("pool")
    name, value = MARK.split("=")
    variables: dict[str, Any] = {
        "pool_health": {"bake": 2, "canary_timeout": 15},
        "pool_processes": 1,
        "pool_env": {"LEDGER_URL": "{{ broker }}/15", "REPORTS": "reports", name: value},
        "pool_scheduler": scheduler("{{ groups.workers | first }}"),
    }
    with prepared_pool(2, folder, **variables) as prepared:
        shutil.copy(SCHEDULE, folder / "builds" / "good")
        assert prepared.play("deploy").status == 0
        yield prepared


def scheduler(host: str, file: str = "schedule.py") -> dict[str, Any]:
    """The scheduler as the role takes it."""
    return {"command": ["{app}/venv/bin/rq", "cron", "{app}/" + file], "host": host, "period": PERIOD}


def not_scheduled_by(release: str) -> str | None:
    """None once the scheduler of this release, and no other, is at work."""
    found = list(at_work(MARK, WORDS).values())
    return None if found == [release] else f"{found} at work"


def wait_scheduled_by(release: str) -> None:
    """Wait until the scheduler of this release, and no other, is at work."""
    wait_for(f"{release} to schedule", lambda: not_scheduled_by(release), timeout=SECONDS)


@pytest.mark.thorough
def test_it_goes_and_comes_back_with_the_release(pool: Pool) -> None:
    first = on_last_good(pool)
    wait_scheduled_by(first)
    with watched(MARK, *WORDS) as seen:
        assert pool.play("deploy", pool_version="2.0").status == 0
        second = on_last_good(pool)
        wait_scheduled_by(second)
        assert pool.play("rollback").status == 0
        wait_scheduled_by(first)
    assert (seen.most, seen.releases) == (1, [first, second, first])
    assert seen.gap < PERIOD
    status = pool.play("status").output
    assert f"scheduler: that of {first} on {pool.workers[0].name}" in status
    assert "!" not in status.partition("PLAY RECAP")[0].partition(f"Pool {pool.name}\n")[2]
    other = pool.program(pool.workers[1], "status").output
    assert f"scheduler none here; it belongs on {pool.workers[0].name}" in other


@pytest.mark.thorough
def test_one_that_crashes_at_its_start_takes_every_host_back(pool: Pool) -> None:
    good = on_last_good(pool)
    host = pool.workers[0].name
    played = pool.play("deploy", pool_version="2.1", pool_scheduler=scheduler(host, "absent.py"))
    assert played.status != 0
    assert "the scheduler has died and was started again" in played.output
    assert on_last_good(pool) == good
    wait_scheduled_by(good)


@pytest.mark.thorough
def test_it_does_not_move_in_one_rollout_and_only_to_a_host_of_the_pool(pool: Pool) -> None:
    first, other = (host.name for host in pool.workers)
    before = at_work(MARK, WORDS)
    played = pool.play("deploy", pool_version="2.2", pool_scheduler=scheduler(other))
    assert played.status != 0
    assert f"has it on {first}" in played.output
    played = pool.play("deploy", pool_version="2.2", pool_scheduler=scheduler("elsewhere"))
    assert played.status != 0
    assert "names the host 'elsewhere', which the pool doesn't have" in played.output
    assert at_work(MARK, WORDS) == before, "nothing was touched"


@pytest.mark.thorough
def test_a_reboot_in_the_middle_comes_up_with_the_last_good_one_alone(pool: Pool) -> None:
    good = on_last_good(pool)
    host = pool.workers[0]
    slow = {"pool_health": {"bake": 60, "canary_timeout": 5}, "pool_confirm_timeout": 600, "pool_waves": ["100%"]}
    with pool.under_way("deploy", pool_version="3.0", **slow) as deploy:

        def not_switched() -> str | None:
            found = list(at_work(MARK, WORDS).values())
            switched = pool.view(host).events[-1] == "switched"
            return None if switched and [name.startswith("3.0-") for name in found] == [True] else f"{found} at work"

        wait_for("the scheduler of 3.0 to be at work", not_switched, timeout=SECONDS)
        with watched(MARK, *WORDS) as seen:
            host.kill()
            host.power_on()
            wait_scheduled_by(good)
        assert seen.most == 1
        assert deploy.wait(3 * SECONDS) != 0
    wait_for("the hosts to settle", lambda: _unsettled(pool, good), timeout=SECONDS)
    wait_scheduled_by(good)


def _unsettled(pool: Pool, release: str) -> str | None:
    found = [pool.view(host).releases for host in pool.workers]
    return None if found == [{release: 1}] * len(found) else str(found)
