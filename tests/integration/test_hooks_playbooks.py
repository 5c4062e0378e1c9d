# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hooks and rollback barriers as a person meets them: three hosts, the playbooks, exit codes and what they say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.demo.stand import HOSTS, Stand, a_stand
from tests.support.servers import wait_for

SECONDS = 90
# Says which step it is and where, into a directory of the test's own; fails where a file says so.
HOOK = """\
echo "$BACKSTEP_HOST $1 $BACKSTEP_RELEASE $BACKSTEP_FROM $BACKSTEP_TO" >> "$HOOKS/$BACKSTEP_STEP"
if [ -e "$HOOKS/fail-$BACKSTEP_STEP-$BACKSTEP_HOST" ]; then echo "no $TOKEN today"; exit 3; fi
"""
HOOKS = {
    step: [
        {"command": ["/bin/sh", "-c", HOOK, "hook", "each"], "timeout": 5},
        {"command": ["/bin/sh", "-c", HOOK, "hook", "once"], "timeout": 5, "where": "once"},
    ]
    for step in ("after_stage", "before_switch", "after_switch", "before_confirm", "after_confirm", "before_rollback")
}


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    """Three hosts on release 1, which has no hooks; each test leaves them on it."""
    with a_stand() as started:
        started.build("good")
        (started.folder / "hooks").mkdir()
        (started.folder / "hooks").chmod(0o1777)
        done = play(started, "deploy", pool_version="1")
        assert done.returncode == 0, done.stdout
        yield started


@pytest.fixture(autouse=True)
def clean(stand: Stand) -> None:
    """No word of another test's hooks."""
    for path in (stand.folder / "hooks").iterdir():
        path.unlink()


def pool_env(stand: Stand) -> dict[str, str]:
    """The environment of the workers, with what the hooks want to know."""
    inventory = json.loads(stand.inventory.read_text(encoding="utf-8"))
    known: dict[str, str] = inventory["all"]["children"]["workers"]["vars"]["pool_env"]
    return {**known, "HOOKS": str(stand.folder / "hooks"), "TOKEN": "hush-77"}


@contextmanager
def running(stand: Stand, playbook: str, **variables: Any) -> Iterator[subprocess.Popen[str]]:
    """A playbook under way; killed if it is still there in the end."""
    given = {
        "pool_waves": [1, "100%"],
        "pool_health": {"bake": 3},
        "pool_source": {"directory": str(stand.folder / "builds" / "good")},
        **variables,
    }
    with subprocess.Popen(
        ["ansible-playbook", "-i", stand.inventory, f"backstep.workers.{playbook}", "-e", json.dumps(given)],
        env=stand.environment(),
        cwd=stand.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def play(stand: Stand, playbook: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Run a playbook to its end."""
    with running(stand, playbook, **variables) as process:
        said = process.communicate(timeout=SECONDS)[0]
        return subprocess.CompletedProcess(process.args, process.returncode, said, "")


def deploy(stand: Stand, version: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Deploy a release that has every hook."""
    given = {"pool_version": version, "pool_hooks": HOOKS, "pool_env": pool_env(stand)}
    return play(stand, "deploy", **given, **variables)


def said(stand: Stand, step: str) -> list[str]:
    """Which hooks have run, as host and ``each`` or ``once``, in alphabetical order."""
    path = stand.folder / "hooks" / step
    return sorted(" ".join(line.split()[:2]) for line in path.read_text().splitlines()) if path.exists() else []


def fail(stand: Stand, step: str, host: str) -> Path:
    """Have the hooks of a step fail on a host."""
    path = stand.folder / "hooks" / f"fail-{step}-{host}"
    path.touch()
    return path


def current(stand: Stand) -> dict[str, str]:
    """The version that each host is on."""
    return {host: (stand.root(host) / "current").readlink().name.rpartition("-")[0] for host in HOSTS}


def everywhere(version: str) -> dict[str, str]:
    return dict.fromkeys(HOSTS, version)


ALL = ["w1 each", "w1 once", "w2 each", "w3 each"]


@pytest.mark.thorough
def test_a_release_with_hooks_from_its_first_failure_to_its_rollback(stand: Stand) -> None:
    broken = fail(stand, "before_switch", "w3")
    stopped = deploy(stand, "2")
    assert (stopped.returncode, current(stand)) == (2, everywhere("1"))
    assert "w3: hook before_switch 1" in stopped.stdout
    assert "was not touched" in stopped.stdout
    assert (said(stand, "before_switch"), said(stand, "after_switch")) == (ALL, [])
    broken.unlink()
    broken = fail(stand, "after_confirm", "w2")
    confirmed = deploy(stand, "2")
    assert (confirmed.returncode, current(stand)) == (2, everywhere("2")), confirmed.stdout
    assert "w2: hook after_confirm 1" in confirmed.stdout
    for step in ("after_stage", "after_switch", "before_confirm", "after_confirm"):
        assert set(said(stand, step)) == set(ALL), step
    broken.unlink()
    before = said(stand, "after_switch")
    again = deploy(stand, "2")
    assert again.returncode == 0, again.stdout
    assert [said(stand, "after_confirm").count(f"{host} each") for host in HOSTS] == [1, 2, 1]
    assert said(stand, "after_switch") == before, "nothing was switched again"
    fail(stand, "before_rollback", "w2")
    back = play(stand, "rollback")
    assert (back.returncode, current(stand)) == (2, everywhere("1"))
    assert "w2: hook before_rollback 1" in back.stdout
    assert "ended with 3: no *** today" in back.stdout
    assert "hush" not in back.stdout
    assert said(stand, "before_rollback") == ALL


def test_one_that_fails_after_the_switch_takes_every_touched_host_back(stand: Stand) -> None:
    fail(stand, "after_switch", "w2")
    done = deploy(stand, "3")
    assert (done.returncode, current(stand)) == (2, everywhere("1"))
    assert "w2: hook after_switch 1" in done.stdout
    assert "went back to" in done.stdout
    assert (said(stand, "before_rollback"), said(stand, "before_confirm")) == (ALL, [])


@pytest.mark.thorough
def test_a_release_that_can_not_be_undone_is_held_until_a_person_decides(stand: Stand) -> None:
    broken = fail(stand, "after_switch", "w1")
    done = deploy(stand, "4", pool_rollback_barrier="drops a column")
    assert (done.returncode, current(stand)) == (2, {"w1": "4", "w2": "1", "w3": "1"})
    for words in (
        "NEEDS A PERSON",
        "can't be undone (drops a column)",
        "backstep.workers.rollback -e pool_cross_barrier=true",
        "backstep.workers.deploy -e pool_version=4",
    ):
        assert words in done.stdout
    assert "drops a column" in play(stand, "status").stdout
    refused = play(stand, "rollback")
    assert (refused.returncode, current(stand)["w1"]) == (2, "4")
    assert "Nothing was changed" in refused.stdout
    assert said(stand, "before_rollback") == []
    broken.unlink()
    confirmed = deploy(stand, "4", pool_rollback_barrier="drops a column")
    assert (confirmed.returncode, current(stand)) == (0, everywhere("4")), confirmed.stdout
    crossed = play(stand, "rollback", pool_cross_barrier=True)
    assert (crossed.returncode, current(stand)) == (0, everywhere("1")), crossed.stdout


@pytest.mark.thorough
def test_a_host_that_refuses_the_switch_stays_where_it_is(stand: Stand) -> None:
    """Its stored release is damaged by the time of the switch: it knows of no rollout that it could go back from."""
    assert play(stand, "deploy", pool_version="5", pool_waves=["100%"]).returncode == 0
    (stand.folder / "hooks" / "wait").touch()
    wait = ["/bin/sh", "-c", 'while [ -e "$HOOKS/wait" ]; do sleep 0.1; done']
    hook = {"command": wait, "timeout": 30, "where": "once"}
    variables = {"pool_hooks": {"before_switch": [hook]}, "pool_env": pool_env(stand)}
    with running(stand, "deploy", pool_version="6", **variables) as deploying:
        journal = stand.root("w1") / "state" / "journal.jsonl"
        wait_for("the hook waits", lambda: b'"hook_started"' in journal.read_bytes().splitlines()[-1], SECONDS)
        (staged,) = (stand.root("w1") / "releases").glob("6-*")
        (staged / "app" / "worker.py").write_text("damaged", encoding="utf-8")
        (stand.folder / "hooks" / "wait").unlink()
        said = deploying.communicate(timeout=SECONDS)[0]
    assert (deploying.returncode, current(stand)) == (2, everywhere("5")), said
    assert "worker.py was changed" in said


def test_what_can_not_be_meant_is_refused_before_anything_is_touched(stand: Stand) -> None:
    journals = [(stand.root(host) / "state" / "journal.jsonl").read_bytes() for host in HOSTS]
    done = play(stand, "deploy", pool_version="9", pool_hooks={"after_switch": ["./x"]})
    assert done.returncode != 0
    assert "each one is a list of words" in done.stdout
    assert [(stand.root(host) / "state" / "journal.jsonl").read_bytes() for host in HOSTS] == journals
