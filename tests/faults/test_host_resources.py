# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host has stored was damaged: it is found before anything is touched, or it does no harm.

Full disks are in tests/integration/test_full_disk.py, clocks in tests/unit/test_rules.py, units changed by hand
in tests/integration/test_supervisord_program.py, process counts in tests/integration/test_supervisord_steps.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.ground import GRACE_SECONDS, HOSTS, Ground
from tests.faults.table import Run, Table
from tools.common import run

pytestmark = pytest.mark.timeout(600)
COPY_SECONDS = 30


def test_a_half_written_last_line_of_the_journal_does_no_harm(ground: Ground, table: Table) -> None:
    journal = ground.journal(HOSTS[0])
    with journal.open("ab") as stream:
        stream.write(b'{"schema":1,"seq":')
    before = ground.lengths()
    ground.require("deploy", **ground.build())
    ground.wait_settled(GRACE_SECONDS)
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
