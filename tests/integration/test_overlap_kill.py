# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the reaper has killed when its time was up is named, and taken back by the next deploy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.demo.evidence import versions
from tests.demo.playbooks import Played, play
from tests.demo.stand import QUEUE, Stand, a_stand
from tests.support.bench import task_id
from tests.support.ledger_tasks import STARTED
from tests.support.servers import wait_for

pytestmark = pytest.mark.timeout(600)
SECONDS = 30.0
NUMBER = 1


@pytest.fixture
def stand() -> Iterator[Stand]:
    """Three hosts, a broker, and a build of the app."""
    with a_stand() as started:
        started.build("good")
        yield started


def deploy(stand: Stand, folder: Path, name: str, version: str, policy: str) -> Played:
    """All hosts at once, with hardly any time for what is left."""
    variables: dict[str, Any] = {
        "pool_version": version,
        "pool_source": {"directory": str(stand.folder / "builds" / "good")},
        "pool_waves": ["100%"],
        "pool_health": {"bake": 1, "canary_timeout": 20},
        "pool_drain": {"timeout": 1, "on_timeout": policy},
    }
    return play(stand, folder, name, "deploy", **variables)


@pytest.mark.thorough
def test_a_task_that_was_killed_after_the_run_is_named_and_runs_again(stand: Stand, tmp_path: Path) -> None:
    assert deploy(stand, tmp_path, "first", "1", "abort").status == 0
    stand.bench.enqueue(QUEUE, NUMBER, 600.0, task="letters.send")
    with redis.Redis.from_url(stand.ledger_url) as notes:
        wait_for("the task is begun", lambda: notes.hget(STARTED, NUMBER) == b"1", SECONDS)
        second = deploy(stand, tmp_path, "second", "2", "requeue")
        assert second.status == 0
        wait_for("one release runs everywhere", lambda: _releases(stand) == {"2"}, SECONDS)
        status = play(stand, tmp_path, "status", "status").output
        assert f"with {task_id(NUMBER)}; the next deploy takes its tasks back" in status
        again = deploy(stand, tmp_path, "again", "2", "requeue")
        assert again.status == 0
        assert "nothing to do" in again.output
        assert task_id(NUMBER) in again.output
        wait_for("the task is begun anew", lambda: notes.hget(STARTED, NUMBER) == b"2", SECONDS)
    assert "killed at" not in play(stand, tmp_path, "status-after", "status").output
    assert set(deploy(stand, tmp_path, "still", "2", "requeue").changed.values()) == {0}


def _releases(stand: Stand) -> set[str]:
    """The versions that run on any host."""
    return set(versions(stand))
