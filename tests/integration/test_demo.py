# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo tells the truth with each kind of bad release, and leaves nothing behind, however it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.builds import ENGINES
from tools.common import CHECKOUT, VENV, wait_for

BAD = {
    "crash": "exits at boot",
    "crash-later": "dies after some seconds",
    "failing-tasks": "fails every task",
    "wrong-queue": "listens to another queue",
    "never-consumes": "stays up and takes no task",
}
# Two more are in the scenario deploy_fail_rollback in every run, on hosts with systemd; the others are in faults.
SHORT = [("rq", "crash")]
# A worker of Celery's that dies in the moment in which it takes a task off Redis loses it; docs/engines.md says so.
LOSES = [("celery", "crash-later")]
COUNTS = {"enqueued", "finished", "listed", "lost", "duplicated", "announced"}
SECONDS = 280
LAST_SIGNS = 30


@pytest.fixture
def places() -> Iterator[Path]:
    """Where the demo puts its hosts: a directory that their workers' user can enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="backstep-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def started(places: Path, output: Path, *options: str) -> subprocess.Popen[str]:
    """The demo, as `make demo` runs it, in a process group of its own."""
    command = [VENV / "bin" / "python", "-m", "tests.demo.run", "--output", output, *options]
    return subprocess.Popen(
        command, cwd=CHECKOUT, env={**os.environ, "TMPDIR": str(places)}, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def left(places: Path) -> list[str]:
    """Processes and directories of the demo that are still there."""
    found = [str(path) for path in places.iterdir()]
    for path in Path("/proc").glob("[0-9]*"):
        try:
            said = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
        except OSError:
            continue
        if str(places).encode() in said:
            found.append(f"{path.name} {said[-200:]!r}")
    return found


@pytest.mark.timeout(SECONDS + 20)
@pytest.mark.parametrize(
    ("engine", "kind"),
    [
        pytest.param(engine, kind, marks=[] if (engine, kind) in SHORT else pytest.mark.thorough)
        for engine in ENGINES
        for kind in BAD
        if (engine, kind) not in LOSES
    ],
)
def test_the_demo_goes_as_told(engine: str, kind: str, places: Path, tmp_path: Path) -> None:
    demo = started(places, tmp_path / "demo", f"--bad={kind}", f"--engine={engine}")
    said = demo.communicate(timeout=SECONDS)[0]
    print(said)
    assert demo.returncode == 0
    ledger = json.loads((tmp_path / "demo" / "ledger.json").read_text(encoding="utf-8"))
    assert ledger.keys() == COUNTS
    assert ledger["lost"] == 0
    assert ledger["duplicated"] == ledger["announced"]
    assert ledger["enqueued"] == ledger["finished"] + ledger["listed"] > 0
    report = json.loads((tmp_path / "demo" / "report.json").read_text(encoding="utf-8"))
    assert (report["ended"], report["ok"]) == ("rolled_back", False)
    assert BAD[kind] in said
    assert "no task is lost" in said
    assert (tmp_path / "demo" / "report.html").stat().st_size > 0
    assert left(places) == []


@pytest.mark.thorough
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_stopped_leaves_nothing(number: signal.Signals, places: Path, tmp_path: Path) -> None:
    demo = started(places, tmp_path / "demo")
    assert demo.stdout is not None
    # In the middle of B's switch: workers of two releases, guards, a playbook and the producer are at work.
    log = tmp_path / "demo" / "deploy-B.log"

    def not_there_yet() -> str | None:
        if demo.poll() is not None:
            return "the demo has ended"
        return None if log.exists() and "Watch wave 1 of 2" in log.read_text(encoding="utf-8") else "no watch yet"

    try:
        wait_for("B to be watched", not_there_yet, timeout=SECONDS - LAST_SIGNS * 2)
        assert left(places)
        # As a terminal does it: to the whole group, and once more by an impatient person.
        os.killpg(demo.pid, number)
        os.killpg(demo.pid, number)
        demo.communicate(timeout=LAST_SIGNS)
    finally:
        demo.kill()
    assert demo.returncode == 130
    assert left(places) == []
