# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rollback that an alert asks for: exactly one, however often it asks, and none for an old alert."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.demo.playbooks import command
from tests.demo.stand import HOSTS, Stand, a_stand
from tests.support.alarms import ask, current, deploy, events, reasons, settings

_SECONDS = 90.0
ONE = HOSTS[:1]


@pytest.fixture
def stand() -> Iterator[Stand]:
    """Three hosts, of which one will do."""
    with a_stand() as stand:
        yield stand


def start(stand: Stand, alert: dict[str, Any]) -> subprocess.Popen[str]:
    """Ask for a rollback and don't wait for it."""
    return subprocess.Popen(
        command(stand, "rollback", pool_alert=alert, **settings(ONE)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=stand.environment(),
        cwd=stand.folder,
        start_new_session=True,
    )


def test_an_alert_takes_the_pool_back_once_however_often_it_asks(stand: Stand, tmp_path: Path) -> None:
    old = deploy(stand, tmp_path, "1.0", ONE)
    new = deploy(stand, tmp_path, "2.0", ONE)
    alert = {"id": "a1", "release": new, "at": time.time(), "reason": "half of the letters fail"}
    noted = len(events(stand, ONE[0], "lease_granted"))

    late = ask(stand, tmp_path, {**alert, "at": time.time() - 3 * 86_400}, ONE)
    assert late.status == 0, late.output
    assert f"stays where it is. Alert a1 about {new} changes nothing: the alert began at" in late.output
    assert len(events(stand, ONE[0], "lease_granted")) == noted
    assert current(stand, ONE) == {ONE[0]: new}

    runs = [start(stand, alert) for _number in range(2)]
    outputs = [run.communicate(timeout=_SECONDS)[0] for run in runs]
    assert 0 in [run.returncode for run in runs], outputs
    assert current(stand, ONE) == {ONE[0]: old}
    assert reasons(stand, ONE) == {ONE[0]: ["alert a1: half of the letters fail"]}

    again = ask(stand, tmp_path, alert, ONE)
    assert again.status == 0, again.output
    assert f"it went back from {new} already (alert a1: half of the letters fail)" in again.output
    assert len(reasons(stand, ONE)[ONE[0]]) == 1
