# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check mode tells the truth: exit status 0, nothing written, and the very steps that the real run then takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout.hook_steps import STEPS

from tests.demo.stand import HOSTS, Stand, a_stand
from tests.support.servers import wait_for
from tools.common import CHECKOUT

SECONDS = 90
# What a host is told and does is the same on each.
ALONE = {"pool_hosts": HOSTS[0]}


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with a_stand() as started:
        yield started


def command(stand: Stand, *options: str, **variables: Any) -> list[str]:
    given = {"pool_waves": ["100%"], "pool_source": {"directory": str(stand.folder / "builds" / "good")}, **variables}
    play = ["ansible-playbook", "-i", str(stand.inventory), "backstep.workers.deploy"]
    return [*play, *options, "-e", json.dumps(given)]


def environment(stand: Stand, actions: Path) -> dict[str, str]:
    callbacks = {"ANSIBLE_CALLBACK_PLUGINS": str(CHECKOUT / "tests/support/callbacks")}
    chosen = {"ANSIBLE_CALLBACKS_ENABLED": "backstep_actions", "BACKSTEP_ACTIONS": str(actions)}
    return {**stand.environment(), **callbacks, **chosen}


def steps(stand: Stand, folder: Path, name: str, *options: str, **variables: Any) -> dict[str, list[Any]]:
    """Run a deploy to its good end; what it says it did, by host, in the order in which it did it."""
    log = folder / name
    done = subprocess.run(
        command(stand, *options, **variables),
        env=environment(stand, log),
        cwd=stand.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, list[Any]] = {host: [] for host in HOSTS}
    for line in log.read_text(encoding="utf-8").splitlines():
        said = json.loads(line)
        # What canaries are sent depends on what the queue does at that moment.
        if said["actions"] and not said["task"].split(" : ")[-1].startswith("Prove"):
            found[said["host"]].append((said["task"], said["actions"]))
    return found


def everything(stand: Stand) -> dict[str, Any]:
    """All that lies on the hosts, with the time of its last change; logs of running workers left out."""
    found = {}
    for host in HOSTS:
        for path in sorted((stand.folder / host).rglob("*")):
            if path.suffix != ".log" and not path.is_socket():
                state = path.lstat()
                found[str(path)] = (state.st_mode, state.st_uid, state.st_size, state.st_mtime_ns)
    return found


def compare(stand: Stand, folder: Path, **variables: Any) -> dict[str, list[Any]]:
    before = everything(stand)
    told = steps(stand, folder, "told", "--check", "--diff", **variables)
    assert everything(stand) == before
    done = steps(stand, folder, "done", **variables)
    assert told == done
    return done


def test_on_an_empty_host(stand: Stand, tmp_path: Path) -> None:
    stand.build("good")
    done = compare(stand, tmp_path, pool_version="1", **ALONE)
    names = [action["action"] for _task, actions in done["w1"] for action in actions]
    assert {"build", "seal", "arm_guard", "start", "link", "enable", "commit", "give_back"} <= set(names)


def test_on_a_current_host(stand: Stand, tmp_path: Path) -> None:
    done = compare(stand, tmp_path, pool_version="1", **ALONE)
    assert done == {host: [] for host in HOSTS}


@pytest.mark.thorough
def test_on_a_host_with_another_release(stand: Stand, tmp_path: Path) -> None:
    steps(stand, tmp_path, "first", pool_version="1")
    both = [{"command": ["/bin/true"], "timeout": 1, "where": where} for where in ("hosts", "once")]
    hooks = dict.fromkeys(STEPS, both)
    done = compare(
        stand, tmp_path, pool_version="2", pool_processes=3, pool_hooks=hooks, pool_rollback_barrier="a test"
    )
    # The first task of each host only looks, and names what staging will do.
    ran = [[a["step"] for _task, did in done[host][1:] for a in did if a["action"] == "hook"] for host in ("w1", "w2")]
    assert ran == [[step for step in STEPS[:6] for _twice in range(2)], list(STEPS[:6])]
    names = [action["action"] for _task, actions in done["w1"] for action in actions]
    assert {"quiet", "disable", "reap"} <= set(names)


@pytest.mark.thorough
def test_on_a_host_that_a_dead_run_left_half_done(stand: Stand, tmp_path: Path) -> None:
    log = tmp_path / "killed"
    variables = {"pool_version": "3", "pool_health": {"bake": 60}}
    with (tmp_path / "output").open("wb") as output:
        killed = subprocess.Popen(
            command(stand, **variables),
            env=environment(stand, log),
            cwd=stand.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        journals = [stand.root(host) / "state" / "journal.jsonl" for host in HOSTS]
        wait_for(
            "every host is switched",
            lambda: all(b'"event":"switched"' in path.read_bytes().splitlines()[-1] for path in journals),
            SECONDS,
        )
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait(SECONDS)
    compare(stand, tmp_path, pool_version="3")
