# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``pool_min_consuming`` keeps so many workers on each queue at every moment, as the broker sees it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine

from tests.demo.evidence import live_workers
from tests.demo.playbooks import Played, play
from tests.demo.stand import HOSTS, PROCESSES, QUEUE, Stand, a_stand

pytestmark = pytest.mark.timeout(600)
LEAST = 4


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Three hosts with two workers each, on release 1."""
    with a_stand() as started:
        started.build("good")
        first = deploy(started, tmp_path_factory.mktemp("first"), "1", pool_min_consuming=LEAST)
        assert first.status == 0, "a first deploy takes nothing away"
        assert "wave 1 of 1" in first.output
        yield started


def deploy(stand: Stand, folder: Path, version: str, **variables: Any) -> Played:
    """All hosts in one wave, unless something cuts it."""
    source = {"directory": str(stand.folder / "builds" / "good")}
    health = {"bake": 1, "canary_timeout": 20}
    given = {"pool_waves": ["100%"], "pool_mode": "replace", "pool_health": health, "pool_confirm_timeout": 300}
    settings = {**given, **variables}
    return play(stand, folder, f"deploy-{version}", "deploy", pool_version=version, pool_source=source, **settings)


@contextmanager
def watched(stand: Stand) -> Iterator[list[int]]:
    """How many workers consume the queue, as the broker sees it, again and again while the block runs."""
    seen: list[int] = []
    over = threading.Event()

    def watch() -> None:
        with open_engine("rq", stand.broker_url, 5.0) as engine:
            while not over.is_set():
                workers = engine.workers()
                seen.append(sum(QUEUE in each.queues and each.state in ("idle", "busy") for each in workers))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@pytest.mark.thorough
def test_so_many_workers_consume_at_every_moment(stand: Stand, tmp_path: Path) -> None:
    with watched(stand) as seen:
        assert deploy(stand, tmp_path, "2").status == 0
    assert min(seen) < LEAST, "without it, all are away at once, and this watch sees it"
    with watched(stand) as seen:
        played = deploy(stand, tmp_path, "3", pool_mode="replace", pool_min_consuming="60%")
    assert played.status == 0
    assert "wave 3 of 3" in played.output
    assert min(seen) >= LEAST


@pytest.mark.thorough
def test_what_cannot_be_held_is_refused_before_anything_is_touched(stand: Stand, tmp_path: Path) -> None:
    before = set(live_workers(stand))
    played = deploy(stand, tmp_path, "9", pool_min_consuming=len(HOSTS) * PROCESSES - 1)
    assert played.status != 0
    assert "while w1 is switched, 4 workers consume queue letters, and 5 have to" in played.output
    assert "Nothing was changed." in played.output
    assert set(live_workers(stand)) == before
