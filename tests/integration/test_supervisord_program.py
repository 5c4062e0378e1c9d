# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host program as a person on the host runs it: no controller, no network, the oldest Python that is promised."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.local_pool import LocalPool
from tests.support.local_hosts import LocalHost

_numbers = itertools.count(1)


def _oldest_python() -> str:
    """A Python 3.9 of this machine, or "" when it has none."""
    candidates = [shutil.which("python3.9") or "", *map(str, Path.home().glob(".pyenv/versions/3.9.*/bin/python3.9"))]
    for python in filter(None, candidates):
        if subprocess.run([python, "-c", ""], capture_output=True, timeout=20, check=False).returncode == 0:
            return python
    return ""


OLDEST = _oldest_python()
PYTHONS = [
    pytest.param("", id="as-installed"),
    pytest.param(OLDEST, id="3.9", marks=pytest.mark.skipif(not OLDEST, reason="this machine has no Python 3.9")),
]


@pytest.fixture
def pool(pool: LocalPool) -> LocalPool:
    """A pool on which 1.0 was good before 2.0."""
    pool.deploy("1.0")
    pool.deploy("2.0")
    return pool


def releases(pool: LocalPool) -> tuple[str, str]:
    """The good releases: the one before, and the current one."""
    current, before = pool.open().state().good_releases()
    return before, current


def answer(done: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("python", PYTHONS)
def test_status_history_and_verify(pool: LocalPool, python: str) -> None:
    first, second = releases(pool)
    before = (pool.root / "state" / "journal.jsonl").read_bytes()
    found = answer(pool.program("status", "--json", python=python))
    assert (found["current"], found["current_state"], found["running"]) == (second, "good", {second: 1})
    assert found["rollback"] == {"target": first, "needed": True, "problem": "", "barrier": None}
    assert found["problems"] == []
    events = answer(pool.program("history", "--json", "--last", "3", python=python))
    assert [event["event"] for event in events] == pool.events()[-3:]
    assert answer(pool.program("verify", "--json", python=python)) == {"problems": []}
    text = pool.program("status", python=python).stdout
    assert f"current   {second} (good) since 20" in text
    assert f"back to   {first}" in text
    assert "confirmed" in pool.program("history", python=python).stdout
    assert "as they were sealed" in pool.program("verify", python=python).stdout
    assert (pool.root / "state" / "journal.jsonl").read_bytes() == before, "reading writes nothing"


@pytest.mark.parametrize("python", PYTHONS)
def test_a_rollback_by_a_person_alone(pool: LocalPool, python: str) -> None:
    first, second = releases(pool)
    found = answer(pool.program("rollback", "--json", "--reason", "it eats mail", python=python))
    assert found["status"]["current"] == first
    assert found["done"] == f"Back on {first} (it eats mail)."
    pool.wait_only(first)
    state = pool.open().state()
    assert (state.state_of(second), state.releases[second].reason) == ("bad", "it eats mail")
    steps = ("rollback_started", "restored", "rolled_back")
    assert [event["by"] for event in pool.open().journal.read()[0] if event["event"] in steps] == ["person"] * 3
    pids = [process.pid for process in pool.open().running()[first]]
    again = pool.program("rollback", python=python)
    assert (again.returncode, again.stdout) == (0, f"Already on the last good release {first}: nothing to do.\n")
    assert [process.pid for process in pool.open().running()[first]] == pids


def test_a_rollback_to_a_named_release_and_to_one_that_can_not_be(pool: LocalPool) -> None:
    first, second = releases(pool)
    third = pool.deploy("3.0")
    refused = pool.program("rollback", "--to", "0.9-00000000", "--json")
    assert answer(refused, 1)["error"]["code"] == "release_refused"
    assert "backstep: Release 0.9-00000000 is not on this host." in refused.stderr
    assert pool.running() == {third: 1}
    done = pool.program("rollback", "--to", first)
    assert done.returncode == 0, done.stderr
    pool.wait_only(first)
    assert pool.open().state().state_of(third) == "bad"
    assert second in pool.open().state().good_releases()


def test_no_good_release_before_is_said_loudly(at: LocalHost) -> None:
    pool = LocalPool(at, f"program{next(_numbers)}")
    only = pool.deploy("1.0")
    done = pool.program("rollback")
    assert done.returncode == 1
    assert "There is no good release to go back to" in done.stderr
    assert pool.running() == {only: 1}


def test_a_person_s_rollback_ends_a_deploy_that_is_under_way(pool: LocalPool) -> None:
    second = releases(pool)[1]
    pool.lease("ana")
    third = pool.stage("3.0")
    pool.switch(third)
    pool.wait_running(third)
    done = pool.program("rollback")
    assert done.returncode == 0, done.stderr
    pool.wait_only(second)
    with pytest.raises(Exception, match="superseded"):
        pool.confirm(third)


def test_a_person_waits_for_a_rollback_from_a_controller(pool: LocalPool) -> None:
    pool.lease("oncall", kind="rollback")
    done = pool.program("rollback")
    assert done.returncode == 1
    assert "oncall@ops1 (pid 4711) is rolling this pool back." in done.stderr


def test_verify_names_what_differs(at: LocalHost, pool: LocalPool) -> None:
    first, second = releases(pool)
    (unit,) = at.conf_dir.glob(f"backstep-{pool.name}-{second}.conf")
    unit.write_text(unit.read_text(encoding="utf-8") + "# by hand\n", encoding="utf-8")
    (pool.root / "releases" / first / "config" / "app.ini").write_text("by hand", encoding="utf-8")
    (pool.root / "current").unlink()
    (pool.root / "current").symlink_to(f"releases/{first}")
    problems = "\n".join(answer(pool.program("verify", "--json"), 1)["problems"])
    assert f"unit {unit.name} differs from the sealed one" in problems
    assert f"The stored release {first} can't be used: config/app.ini was changed." in problems
    assert f"current points to {first}, the journal says {second}" in problems
    assert "! unit" in pool.program("verify").stdout
    refused = pool.program("rollback")
    assert refused.returncode == 1
    assert "config/app.ini was changed" in refused.stderr
    assert pool.running() == {second: 1}


def test_a_damaged_journal_stops_everything_but_what_runs(pool: LocalPool) -> None:
    second = releases(pool)[1]
    journal = pool.root / "state" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'"1.0"', b'"6.6"'))
    for command in ("status", "verify", "rollback", "history"):
        done = pool.program(command)
        assert done.returncode == 1
        assert "was changed or cut" in done.stderr
        assert "Traceback" not in done.stderr
    assert list(pool.open().running()) == [second]


def test_where_there_is_no_pool(pool: LocalPool, tmp_path: Path) -> None:
    done = pool.program("--root", str(tmp_path), "status")
    assert done.returncode == 1
    assert f"There is no pool at {tmp_path}." in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="somebody else than root is tried")
def test_somebody_else_than_root_is_told_so(pool: LocalPool) -> None:
    for command in ("status", "rollback"):
        done = subprocess.run(
            ["/usr/bin/python3", str(pool.root / "bin" / "backstep"), command],
            user="nobody",
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "backstep: " in done.stderr
        assert "Run it as root: sudo " in done.stderr
