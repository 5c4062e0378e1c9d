# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Releases whose workers also listen to a queue for their version: deployed, replaced, and gone back to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine

from tests.demo.evidence import versions
from tests.demo.playbooks import play
from tests.demo.stand import HOSTS, QUEUE, Stand, a_stand
from tests.integration.test_stranded import SECONDS, deploy, make_build
from tests.support.servers import wait_for

# Each is special: Dramatiq's workers consume only what an actor declares; RQ's can lose a task that they take from one
# of several queues, so each queue has its own. RQ's are also in test_effects.
ENGINES = ("dramatiq", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("celery", "rq")))


@pytest.fixture(params=ENGINES)
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    """A broker, hosts, and a build of the app."""
    with a_stand(request.param) as started:
        make_build(started, "old")
        yield started


def listened(engine: Engine) -> list[tuple[str, ...]]:
    """What each worker listens to."""
    return sorted(worker.queues for worker in engine.workers())


def expected(stand: Stand, version: str) -> list[tuple[str, ...]]:
    tagged = f"{QUEUE}.for-{version}"
    if stand.engine == "rq":
        return [(QUEUE,), (QUEUE,), (tagged,), (tagged,)]
    return [(tagged, QUEUE), (tagged, QUEUE)]


def test_a_rollout_proves_the_queues_of_the_release_that_it_brings(stand: Stand, tmp_path: Path) -> None:
    with open_engine(stand.engine, stand.broker_url, 10.0) as engine:
        for version in ("1", "2"):
            assert deploy(stand, tmp_path, version, "old", pool_routes=True).status == 0
            wait_for("only it listens", lambda v=version: listened(engine) == expected(stand, v), SECONDS)  # type: ignore[misc]
        stand.bench.enqueue(f"{QUEUE}.for-2", 1, 0)
        wait_for("a task of its own is done", lambda: stand.bench.finished() == 1, SECONDS)
        # Nobody tells the way back which version that was.
        back = play(stand, tmp_path, "back", "rollback", pool_hosts=HOSTS[0])
        assert back.status == 0, back.output
        wait_for("only the old one listens", lambda: listened(engine) == expected(stand, "1"), SECONDS)
        assert set(versions(stand)) == {"1"}
        shown = play(stand, tmp_path, "status", "status", pool_hosts=HOSTS[0])
        assert f"{QUEUE}.for-1" in shown.output
        # What it holds for its version alone would be left to nobody.
        stand.bench.enqueue(f"{QUEUE}.for-1", 3, 0, delay=300)
        refused = deploy(stand, tmp_path, "3", "old")
        assert refused.status != 0
        assert f"{QUEUE}.for-1 (1 scheduled)" in refused.output
        assert "Take the routes to their version away" in refused.output
