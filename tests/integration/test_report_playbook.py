# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook ``report`` makes of the journals alone what the run itself has reported of a release that went back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.demo.playbooks import Played, play
from tests.demo.production import Production
from tests.demo.stand import POOL, QUEUE, Stand, a_stand

# What a run knows besides: its waves, what each step said, and by which moments it has set its own clock's.
ALONE = ("kind", "release", "before", "ended", "ok", "course", "config", "phases")


@pytest.fixture
def stand() -> Iterator[Stand]:
    """Three hosts."""
    with a_stand() as stand:
        yield stand


def deploy(stand: Stand, folder: Path, name: str, waves: list[Any], kind: str = "", **health: int) -> Played:
    source = {"directory": str(stand.build(name, kind))}
    return play(
        stand, folder, name, "deploy", pool_version=name, pool_source=source, pool_waves=waves,
        pool_health={"canary_timeout": 20, **health}, pool_report_dir=str(folder),
    )  # fmt: skip


def read(folder: Path) -> dict[str, Any]:
    """The report of the second rollout."""
    found: dict[str, Any] = json.loads((folder / f"{POOL}-2.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.thorough
def test_the_journals_alone_tell_what_the_run_told(stand: Stand, tmp_path: Path) -> None:
    with Production(stand):
        assert deploy(stand, tmp_path, "A", ["100%"], bake=1).status == 0
        assert deploy(stand, tmp_path, "B", [1, "100%"], "failing-tasks", bake=5).status != 0
    told = read(tmp_path)
    assert play(stand, tmp_path, "report", "report", pool_report_dir=str(tmp_path / "alone")).status == 0
    alone = read(tmp_path / "alone")

    assert {name: alone[name] for name in ALONE} == {name: told[name] for name in ALONE}
    assert alone["times"] == pytest.approx(told["times"])
    new, (old,) = told["release"], set(told["back_to"].values())
    assert told["course"]["totals"].keys() == {old, new}
    assert told["course"]["totals"][new][1] > 0, "what failed was counted, by release"
    assert len(told["course"]["waiting"][QUEUE]) == len(told["course"]["at"]) > 3
    dead = [task for task in told["care"]["tasks"] if task["what"] == "dead"]
    assert dead
    assert {(task["task"], task["queue"], task["release"]) for task in dead} == {("letters.send", QUEUE, new)}
    assert alone["care"]["tasks"] == told["care"]["tasks"][:100]
    assert [change["file"] for one in told["config"] for change in one["changes"]] == ["letters.ini"]
