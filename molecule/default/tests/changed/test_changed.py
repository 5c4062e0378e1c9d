# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A config value alone, then the process count alone, makes a release; a rollback takes each back byte for byte.

Every test goes on from where the one before it has left the pool.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.pool import Played, Pool

FIRST: dict[str, Any] = {}
OTHER_WORDS: dict[str, Any] = {"greeting": "Good evening"}
MORE_PROCESSES: dict[str, Any] = {**OTHER_WORDS, "pool_processes": 3}


@pytest.fixture(scope="module")
def pictures(pool: Pool) -> dict[str, list[dict[str, Any]]]:
    """What each host showed, by what had been deployed."""
    return {"first": look(pool)}


def look(pool: Pool) -> list[dict[str, Any]]:
    """What each host shows now, all of them running one release."""
    found = [pool.view(host).picture() for host in pool.workers]
    assert len({tuple(picture["runs"]) for picture in found}) == 1
    return found


def went_well(played: Played) -> None:
    """Fails unless the playbook ended well and has changed something."""
    assert played.status == 0
    assert played.changed > 0


def test_a_config_value_alone_makes_a_release(pool: Pool, pictures: dict[str, list[dict[str, Any]]]) -> None:
    went_well(pool.play("deploy", **OTHER_WORDS))
    pictures["other words"] = look(pool)
    (before,), (after,) = pictures["first"][0]["runs"], pictures["other words"][0]["runs"]
    assert before != after
    for host in pool.workers:
        files = pool.view(host).files
        assert files[f"{pool.root}/releases/{before}/config"]["mode"] == "0o700"
        assert files[f"{pool.root}/releases/{after}/config"]["mode"] == "0o750"
        text = host.run("cat", f"{pool.root}/current/config/letters.ini").stdout
        assert "greeting = Good evening from 1.0" in text


def test_the_process_count_alone_makes_a_release(pool: Pool, pictures: dict[str, list[dict[str, Any]]]) -> None:
    went_well(pool.play("deploy", **MORE_PROCESSES))
    found = look(pool)
    assert set(found[0]["runs"]) != set(pictures["other words"][0]["runs"])
    assert all(list(picture["runs"].values()) == [3] for picture in found)


def test_a_rollback_brings_everything_back(pool: Pool, pictures: dict[str, list[dict[str, Any]]]) -> None:
    went_well(pool.play("rollback"))
    assert look(pool) == pictures["other words"]


def test_a_second_rollback_changes_nothing(pool: Pool, pictures: dict[str, list[dict[str, Any]]]) -> None:
    played = pool.play("rollback")
    assert (played.status, played.changed) == (0, 0)
    assert "already: nothing to do" in played.output
    assert look(pool) == pictures["other words"]


def test_a_named_release_is_gone_back_to(pool: Pool, pictures: dict[str, list[dict[str, Any]]]) -> None:
    (first,) = pictures["first"][0]["runs"]
    went_well(pool.play("rollback", pool_to=first))
    assert look(pool) == pictures["first"]
    assert pool.play("deploy", **FIRST).changed == 0
