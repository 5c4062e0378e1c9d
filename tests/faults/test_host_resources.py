# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host has stored was damaged: it is found before anything is touched, or it does no harm.

Full disks are in tests/integration/test_full_disk.py, units changed by hand in
tests/integration/test_supervisord_program.py, process counts in tests/integration/test_supervisord_steps.py.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.ground import HOSTS, Ground
from tests.faults.table import Run, Table
from tools.common import run

pytestmark = pytest.mark.timeout(600)
COPY_SECONDS = 30
AHEAD_SECONDS = 600
_AHEAD = f"""
import time
real = time.time
time.time = lambda: real() + {AHEAD_SECONDS}
"""


def test_a_half_written_last_line_of_the_journal_does_no_harm(ground: Ground, table: Table) -> None:
    journal = ground.journal(HOSTS[0])
    with journal.open("ab") as stream:
        stream.write(b'{"schema":1,"seq":')
    before = ground.lengths()
    ground.require("deploy", **ground.build())
    ground.wait_settled(ground.grace_seconds)
    first = ground.events(HOSTS[0], before[HOSTS[0]])[0]
    assert (first["event"], first["bytes"]) == ("torn_line", 18)
    assert ground.complaints() == []
    table.runs.append(Run("half-written journal line", "deploy"))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted by hand": shutil.rmtree,
    "code deleted": lambda release: shutil.rmtree(release / "app"),
    "config cut": lambda release: (release / "config" / "letters.ini").write_bytes(b""),
    "secrets readable by all": lambda release: (release / "config" / "environment").chmod(0o644),
}


@pytest.mark.parametrize(
    "damage",
    [pytest.param(damage, marks=[] if damage == "code deleted" else pytest.mark.thorough) for damage in DAMAGES],
)
def test_a_stored_release_that_was_damaged_is_found_before_anything_is_touched(
    ground: Ground, table: Table, tmp_path: Path, damage: str
) -> None:
    home, name = ground.current(), HOSTS[1]
    target = ground.host(name).state().good_releases()[1]
    stored, kept = ground.host(name).layout.release(target), tmp_path / "kept"
    run(["cp", "--archive", stored, kept], timeout=COPY_SECONDS)
    DAMAGES[damage](stored)
    before = ground.lengths()
    try:
        refused = ground.play("rollback")
        print(refused.output)
        assert refused.wait() != 0
        assert f"{target} can't be used" in refused.output
        assert "Nothing was changed." in refused.output
        assert ground.lengths() == before
        assert ground.current() == home
        status = ground.require("status")
        assert f"! {name}: The stored release {target} can't be used" in status.output
    finally:
        shutil.rmtree(stored, ignore_errors=True)
        run(["cp", "--archive", kept, stored], timeout=COPY_SECONDS)
    assert ground.complaints() == []
    table.runs.append(Run("damaged stored release", damage))


@contextmanager
def ahead(ground: Ground, name: str) -> Iterator[None]:
    """A host whose clock is ten minutes ahead for what the controller runs there, and right for its own guard."""
    folder = ground.stand.folder / "ahead"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_AHEAD, encoding="utf-8")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    variables = ground.stand.inventory.parent / "host_vars" / f"{name}.json"
    variables.parent.mkdir()
    variables.write_text(json.dumps({"ansible_python_interpreter": str(python)}), encoding="utf-8")
    try:
        yield
    finally:
        shutil.rmtree(variables.parent)
        shutil.rmtree(folder)


@pytest.mark.thorough
def test_clocks_that_are_ten_minutes_apart_change_nothing(ground: Ground, table: Table, tmp_path: Path) -> None:
    home = ground.current()
    with ground.production(), ahead(ground, HOSTS[1]):
        assert ground.play("deploy", **ground.build("crash")).wait() != 0
        ground.wait_settled(ground.grace_seconds)
        assert ground.current() == home
        ground.require("deploy", **ground.build(), pool_report_dir=str(tmp_path))
        ground.wait_settled(ground.grace_seconds)
        ground.require("rollback")
        ground.wait_settled(ground.grace_seconds)
    assert ground.current() == home
    times = {name: ground.events(name)[-1]["time"] for name in HOSTS}
    assert times[HOSTS[1]] - times[HOSTS[0]] > AHEAD_SECONDS / 2, "the clocks were apart"
    (report,) = tmp_path.glob("*.md")
    assert f"The clock of {HOSTS[1]} is at least 5" in report.read_text(encoding="utf-8")
    assert ground.complaints() == []
    assert ground.take_balance().lost == frozenset()
    table.runs.append(Run("clocks ten minutes apart", "deploy, rollback"))
