# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Release A is good; then each bad build of B is deployed while tasks keep coming, and each time everything is A again.

Every test goes on from where the one before it has left the pool.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine

from tests.demo.production import Production
from tests.support.builds import BAD_KINDS
from tests.support.ledger import balance, unfinished
from tests.support.pool import Pool
from tools.common import wait_for

QUEUE = "letters"
BROKER_SECONDS = 5.0
REST_SECONDS = 60.0
# Engines whose app in tests/demo/engines does that.
SOON_TRIED_AGAIN = ("celery", "celery_rabbitmq", "dramatiq", "dramatiq_rabbitmq", "rabbitmq", "streams")
KINDS = os.environ.get("BACKSTEP_BAD_KINDS", " ".join(BAD_KINDS)).split()


@pytest.fixture(scope="module")
def good(pool: Pool) -> list[dict[str, Any]]:
    """What each host shows while A runs."""
    return look(pool)


@pytest.fixture(scope="module")
def production(pool: Pool) -> Iterator[Production]:
    """Tasks that keep coming from the first bad build to the last."""
    with Production(pool) as running:
        yield running


@pytest.fixture(scope="module")
def announced() -> set[str]:
    """The tasks of which some rollout has said that they may run twice."""
    return set()


def look(pool: Pool) -> list[dict[str, Any]]:
    """What each host shows now: releases as the processes report them, units, config, link."""
    return [pool.view(host).picture() for host in pool.workers]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_build_is_taken_back(
    pool: Pool, good: list[dict[str, Any]], production: Production, announced: set[str], kind: str
) -> None:
    assert len({tuple(picture["runs"].items()) for picture in good}) == 1
    played = pool.play(
        "deploy", pool_version=f"2.0-{kind}", greeting=kind, pool_source={"directory": builds(kind)}
    )
    announced |= played.announced
    assert played.status != 0
    assert look(pool) == good
    for host in pool.workers:
        told = json.loads(pool.program(host, "status", "--json").output)
        states = {release["id"]: release["state"] for release in told["releases"]}
        (bad,) = [release for release in states if release.startswith(f"2.0-{kind}-")]
        assert (states[bad], told["current_state"], told["problems"]) == ("bad", "good", [])


def builds(kind: str) -> str:
    """Where ``prepare`` has put a build."""
    return str(Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "builds" / kind)


def test_after_good_bad_and_bad_a_rollback_stays_on_the_good_one(pool: Pool, good: list[dict[str, Any]]) -> None:
    played = pool.play("rollback")
    assert (played.status, played.changed) == (0, 0)
    assert look(pool) == good


def test_a_quarantined_release_is_refused(pool: Pool, good: list[dict[str, Any]]) -> None:
    kind = KINDS[-1]
    played = pool.play(
        "deploy", pool_version=f"2.0-{kind}", greeting=kind, pool_source={"directory": builds(kind)}
    )
    assert played.status != 0
    assert "is quarantined as bad" in played.output
    assert look(pool) == good


def test_no_task_is_lost_and_each_that_ran_twice_was_announced(
    pool: Pool, production: Production, announced: set[str]
) -> None:
    production.stop()
    with open_engine(pool.engine, pool.broker_url, BROKER_SECONDS) as engine:
        wait_for("the queue is at rest", lambda: unfinished(engine, pool.bench, QUEUE), timeout=REST_SECONDS)
        found = balance(engine, pool.ledger_url, [QUEUE], announced)
    print(found.counts())
    assert found.lost == frozenset()
    assert found.duplicated == found.announced
    assert len(found.enqueued) == len(found.finished) + len(found.listed) > 100
    # Those that the release with failing tasks has failed, where the app doesn't soon try them again.
    assert bool(found.listed) == ("failing-tasks" in KINDS and pool.engine not in SOON_TRIED_AGAIN)
