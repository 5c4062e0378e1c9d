# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks that died in a bad release: put back, held or left when the pool has gone back, by a rule for their names."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import DEAD, PARKED, Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine, worker_defaults

from tests.demo.evidence import versions
from tests.demo.playbooks import Played, deploy_alone, play
from tests.demo.stand import HOSTS, QUEUE, Stand, a_stand
from tests.support.bench import task_id
from tests.support.builds import LEDGER_TASKS
from tests.support.ledger import balance
from tests.support.servers import wait_for

# Its old workers are busy for as long as the new ones need for all the others.
GOOD = """
import os
import ledger_tasks, redis


def hold(number: int, seconds: float) -> None:
    notes = redis.Redis.from_url(os.environ["LEDGER_URL"], socket_timeout=None)
    assert notes.blpop("letters:all-dead", timeout=100)
    ledger_tasks.work(number, seconds)


def send(number: int, seconds: float) -> None:
    ledger_tasks.work(number, seconds)


charge = bill = send
"""
BAD = """
import os
import ledger_tasks, redis


def send(number: int, seconds: float) -> None:
    notes = redis.Redis.from_url(os.environ["LEDGER_URL"])
    notes.hincrby(ledger_tasks.FAILED, str(number), 1)
    if notes.hlen(ledger_tasks.FAILED) == 10:
        notes.rpush("letters:all-dead", "one", "other")
    raise KeyError("what the new release forgot")


charge = bill = later = send
"""
SECONDS = 60.0
HOLDING = (0, 1)
RULES = [
    {"tasks": ["letters.s*", "letters.later"], "then": "reschedule"},
    {"tasks": ["letters.charge"], "then": "hold"},
]


@pytest.fixture
def stand() -> Iterator[Stand]:
    """A broker, hosts, and a good and a bad version of an app."""
    with a_stand("rq") as started:
        for name, letters in (("good", GOOD), ("bad", BAD)):
            build = started.folder / "builds" / name
            build.mkdir(parents=True)
            shutil.copy(LEDGER_TASKS, build)
            (build / "letters.py").write_text(letters, encoding="utf-8")
        yield started


def deploy(stand: Stand, folder: Path, version: str, build: str, **more: Any) -> Played:
    """Deploy one of the builds to one host."""
    variables = {
        "pool_command": [stand.python, "-m", "rq.cli", *worker_defaults("rq").command[1:]],
        "pool_health": {"bake": 5, "canary_timeout": 30},
        "pool_drain": {"timeout": SECONDS, "on_timeout": "abort"},
        "pool_stranded": "leave",
        **more,
    }
    return deploy_alone(stand, folder, version, build, **variables)


def a_bad_deploy(stand: Stand, folder: Path, engine: Engine) -> str:
    """Have ten tasks die in a release from which the pool goes back; what was said."""
    producer = stand.bench
    assert deploy(stand, folder, "1", "good").status == 0
    for number in HOLDING:
        producer.enqueue(QUEUE, number, 0, task="letters.hold")
    wait_for("both workers are busy", lambda: len(engine.executing([QUEUE])) == 2, SECONDS)
    for number, name in enumerate(["send"] * 7 + ["charge", "bill", "later"], 2):
        producer.enqueue(QUEUE, number, 0, task=f"letters.{name}")
    bad = deploy(stand, folder, "2", "bad", pool_dead_rules=RULES)
    assert bad.status != 0
    wait_for("the old release is alone", lambda: set(versions(stand)) == {"1"}, SECONDS)
    return bad.output


def test_what_a_bad_release_killed_is_seen_to_by_rules_and_by_hand(stand: Stand, tmp_path: Path) -> None:
    with open_engine("rq", stand.broker_url, 10.0) as engine:
        said = a_bad_deploy(stand, tmp_path, engine)
        assert "10 task(s) died in this rollout: letters.send (7 in letters, KeyError, in 2-" in said
        assert "2 of them were parked (rule 'hold')" in said
        assert "7 of them were put back (rule 'reschedule')" in said
        assert "what the new release forgot" not in said
        # What the release doesn't know that came back is held, whatever its rule says.
        assert set(engine.task_ids(QUEUE, PARKED, 9).ids) == {task_id(9), task_id(11)}
        assert engine.task_ids(QUEUE, DEAD, 9).ids == (task_id(10),)
        wait_for("all others are done", lambda: stand.bench.finished() == 9, SECONDS)

        def replay(name: str, **wanted: Any) -> Played:
            chosen = {"states": ["dead"], "run": "by-hand", **wanted}
            return play(stand, tmp_path, name, "replay", pool_hosts=HOSTS[0], pool_replay=chosen)

        nobody = replay("nobody", releases=["none"])
        assert (nobody.status, "No dead task is meant" in nobody.output) == (0, True)
        back = replay("back", error="KeyError", canary=1, rate=5)
        assert back.status == 0
        assert "1 dead task(s): letters.bill (1 in letters, KeyError, in 2-" in back.output
        assert "the same with run: by-hand goes on with it" in back.output
        wait_for("it is done, too", lambda: stand.bench.finished() == 10, SECONDS)
        found = balance(engine, stand.ledger_url, [QUEUE])
    assert (found.balanced, found.counts()["finished"], found.counts()["duplicated"]) == (True, 10, 0)


def test_rules_for_an_engine_that_keeps_no_dead_tasks_are_refused(tmp_path: Path) -> None:
    with a_stand("streams") as stand:
        (stand.folder / "builds" / "any").mkdir(parents=True)
        played = deploy_alone(stand, tmp_path, "1", "any", pool_dead_rules=[{"then": "hold"}])
        assert played.status != 0
        assert "this engine keeps no dead tasks that could be put back. Nothing was changed." in played.output
