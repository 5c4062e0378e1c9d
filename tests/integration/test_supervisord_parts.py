# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A drain that is asked for in parts, under a real supervisord, is one drain all the same; what a person sees of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host.moving import drain_host
from ansible_collections.backstep.workers.plugins.module_utils._host.terms import Slice
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import DrainTimeout, StepOutOfOrder

from tests.integration.local_pool import ENDLESS, LocalPool
from tests.integration.test_supervisord_drain import busy
from tests.support.environment import ansible_environment

FIRST, NEXT = Slice(0.4), Slice(0.4, goes_on=True)
DEPLOY = ["lease", "release_staged", "guard_armed", "switch_started", "drain_started", "drain_ended", "switched"]


def told(pool: LocalPool, since: int) -> list[str]:
    return [event for event in pool.events()[since:] if event in (*DEPLOY, "rollback_started", "restored")]


def test_a_switch_in_parts_is_begun_once_and_has_one_guard(pool: LocalPool) -> None:
    first = busy(pool, ENDLESS)
    pool.lease()
    second = pool.stage("2.0")
    began = len(pool.events())
    said = pool.switch(second, mode="replace", part=FIRST)
    assert said["still"]["release"] == first
    assert [worker["worker"].rpartition("/")[0] for worker in said["still"]["running"]] == [f"{pool.name}/{first}/w1/1"]
    calls = 1
    while "still" in said:
        left = said["still"]["left"]
        said = pool.switch(second, mode="replace", part=NEXT)
        calls += 1
        assert said.get("still", {"left": 0.0})["left"] < left, "there is one deadline for all parts"
        if calls == 3:
            pool.end_task("long")
    assert calls >= 3
    assert told(pool, began) == [
        "guard_armed", "switch_started", "drain_started", "drain_ended", "switched",
    ]  # fmt: skip
    assert (said["before"], said["release"]) == (first, second)
    assert [(drained["release"], drained["outcome"]) for drained in said["drained"]] == [(first, "clean")]
    assert said["drained"][0]["waited"] > 0.8
    pool.wait_running(second)
    pool.confirm(second)
    assert (pool.tasks / "done" / f"long,{first}").exists()


def test_a_way_back_in_parts_is_begun_once(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.lease()
    second = pool.stage("2.0")
    pool.switch(second)
    pool.wait_running(second)
    pool.enqueue("long", 2.0)
    pool.wait_task("long", "executing", second)
    began = len(pool.events())
    said = pool.back(mode="replace", part=FIRST)
    while "still" in said:
        assert said["still"]["release"] == second
        said = pool.back(mode="replace", part=NEXT)
    assert told(pool, began) == ["guard_armed", "rollback_started", "drain_started", "drain_ended", "restored"]
    assert (said["release"], said["left"]) == (first, second)
    pool.confirm(first)
    assert pool.running() == {first: 1}


def test_the_deadline_of_the_first_part_holds_for_the_last(pool: LocalPool) -> None:
    release = busy(pool, ENDLESS)
    common: dict[str, Any] = {"release": "", "rollout": 0, "policy": "abort", "check_mode": False}
    drain_host(pool.open(), seconds=1.2, part=FIRST, **common)
    began = time.monotonic()
    with pytest.raises(DrainTimeout, match="After 1 s"):
        drain_host(pool.open(), seconds=30.0, part=Slice(20.0, goes_on=True), **common)
    assert time.monotonic() - began < 5.0
    assert pool.open().state().current == release


def test_a_part_does_not_go_on_where_the_guard_has_been_meanwhile(pool: LocalPool) -> None:
    first = busy(pool, ENDLESS)
    pool.lease()
    second = pool.stage("2.0")
    assert "still" in pool.switch(second, mode="replace", part=FIRST)
    pool.back(verdict="unknown", mode="overlap")
    with pytest.raises(StepOutOfOrder, match="on its way back"):
        pool.switch(second, mode="replace", part=NEXT)
    pool.confirm(first)
    with pytest.raises(StepOutOfOrder, match="somebody else has moved it"):
        pool.switch(second, mode="replace", part=NEXT)
    assert second not in pool.running()


def play(pool: LocalPool, folder: Path, *options: str, timeout: float = 60) -> subprocess.Popen[str]:
    """A play that drains the pool's host, under way."""
    drain = {
        "pool": pool.name, "root": str(pool.root), "host": "w1", "supervisor": "supervisord",
        "supervisor_socket": str(pool.at.socket), "supervisor_conf_dir": str(pool.at.conf_dir),
        "drain": {"timeout": timeout},
    }  # fmt: skip
    task = {"name": "Drain", "backstep.workers.worker_drain": drain, "register": "drained"}
    variables = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    plays = [{"hosts": "w1", "gather_facts": False, "vars": variables, "tasks": [task]}]
    (folder / "play.json").write_text(json.dumps(plays), encoding="utf-8")
    return subprocess.Popen(
        ["ansible-playbook", "-i", "w1,", str(folder / "play.json"), *options],
        env=ansible_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def test_a_long_drain_shows_how_far_it_is_before_it_is_over(pool: LocalPool, tmp_path: Path) -> None:
    release = busy(pool, ENDLESS)
    running = play(pool, tmp_path)
    assert running.stdout
    for line in running.stdout:
        if line.startswith("..."):
            break
    assert (pool.tasks / "executing" / f"long,{release}").exists(), "it is shown while the task goes on"
    assert "drain_ended" not in pool.events()
    pool.end_task("long")
    rest = running.stdout.read()
    assert running.wait(60) == 0, line + rest
    said = " ".join((line + rest.split("\n\n")[0].split("changed:")[0]).split())
    assert said.startswith(f"... w1: draining {release}, 1 worker left with a task, no estimate yet, deadline in ")
    assert "changed: [w1]" in rest
    assert pool.events().count("drain_started") == pool.events().count("drain_ended") == 1


def test_a_short_drain_is_one_call_of_its_module_and_shows_nothing(pool: LocalPool, tmp_path: Path) -> None:
    busy(pool, 2.0)
    running = play(pool, tmp_path, "-vvv")
    said = running.communicate(timeout=60)[0]
    assert running.returncode == 0, said
    assert said.count("Using module file") == 1
    assert "\n..." not in said
