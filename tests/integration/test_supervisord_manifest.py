# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tasks a release knows, asked of what lies on a host: as its workers' user, in their environment, and sealed."""

from __future__ import annotations

import json

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host.manifest import schedule_changes, unknown_tasks
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BuildFailed

from tests.integration.local_pool import PYTHON, LocalPool

# Prints its user, a variable of its pool_env, and the bits of what it may read of the config.
LOOK = """
import os, pwd
print("noise to ignore", file=__import__("sys").stderr)
print(pwd.getpwuid(os.getuid()).pw_name)
print(os.environ["GREETING"])
print(open(os.environ["BACKSTEP_CONFIG"] + "/app.ini").read().strip())
print(os.getcwd().rpartition("/")[2])
"""
ASK = """
import json, os
print("a line that means nothing")
print(json.dumps({"unknown": [name for name in json.loads(os.environ["BACKSTEP_TASKS"]) if name[0] == "x"]}))
"""


def stage(pool: LocalPool, version: str = "1.0", **environment: str) -> str:
    pool.lease()
    return pool.stage(version, **environment)


def test_a_declared_list_is_what_counts(pool: LocalPool) -> None:
    pool.manifest = {"tasks": ["b", "a"]}
    release = stage(pool)
    assert pool.open().store.manifest(release) == {"tasks": ["a", "b"], "problem": ""}
    assert unknown_tasks(pool.open(), release, ["c", "a", "x"]) == (["c", "x"], "")


def test_a_command_is_run_as_the_workers_are_and_its_lines_are_names(pool: LocalPool) -> None:
    pool.manifest = {"command": ["{python}", "-c", LOOK]}
    release = stage(pool, GREETING="good.day")
    told = pool.open().store.manifest(release)
    spec = pool.open().store.spec(release)
    assert told == {"tasks": sorted([spec.user, "good.day", "[app]", "app"]), "problem": ""}
    # What it was asked with is gone again.
    assert pool.open().layout.config(release).stat().st_mode & 0o777 == 0o700
    pool.open().store.verify(release, pool.open().state().releases[release].seal)


def test_code_without_a_register_is_asked_each_time(pool: LocalPool) -> None:
    pool.manifest = {"command": ["{python}", "-c", ASK]}
    release = stage(pool)
    assert pool.open().store.manifest(release) == {"tasks": None, "problem": ""}
    names = [f"{'x' if number % 2 else 'a'}{number}" for number in range(1200)]
    unknown, problem = unknown_tasks(pool.open(), release, names)
    assert (unknown, problem) == (sorted(names[1::2]), "")


def test_what_a_schedule_begins_and_ends_is_told(pool: LocalPool) -> None:
    def release_with(version: str, **schedules: str) -> str:
        told = json.dumps({"tasks": ["a", "b"], "schedules": schedules})
        pool.manifest = {"command": ["{python}", "-c", f"print({told!r})"]}
        return stage(pool, version)

    first, second = release_with("1.0", hourly="a", nightly="b"), release_with("2.0", hourly="b", weekly="c")
    assert pool.open().store.manifest(first)["schedules"] == {"hourly": "a", "nightly": "b"}
    assert schedule_changes(pool.open(), second, first) == {
        "begin": ["hourly (b)", "weekly (c)"], "end": ["hourly (a)", "nightly (b)"], "unknown": ["weekly (c)"]
    }  # fmt: skip
    assert schedule_changes(pool.open(), first, first) == {"begin": [], "end": [], "unknown": []}
    assert schedule_changes(pool.open(), first, None)["begin"] == ["hourly (a)", "nightly (b)"]
    pool.manifest = {"tasks": ["a"]}
    silent = stage(pool, "3.0")
    assert schedule_changes(pool.open(), silent, first) == {"begin": [], "end": [], "unknown": []}


def test_nothing_is_known_of_a_release_that_says_nothing(pool: LocalPool) -> None:
    release = stage(pool)
    assert unknown_tasks(pool.open(), release, ["a"]) == (None, "nothing tells which tasks this release can run")


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import os; raise SystemExit('no ' + os.environ['GREETING'])", "it ended with 1: no ***"),
        ("import time; print('{')", "its last line is JSON that has no tasks"),
    ],
)
def test_a_command_that_fails_refuses_the_release_and_tells_no_secret(
    pool: LocalPool, code: str, problem: str
) -> None:
    pool.manifest = {"command": ["/usr/bin/python3", "-c", code]}
    with pytest.raises(BuildFailed) as failure:
        stage(pool, GREETING="hush-greeting")
    assert problem in str(failure.value)
    assert "hush-greeting" not in str(failure.value.result())
    assert list(pool.open().layout.releases.iterdir()) == []


def test_an_app_that_can_not_be_asked_in_its_engines_way_is_no_failure(pool: LocalPool) -> None:
    pool.manifest = {"command": ["{python}", "-c", "import no_such_module"]}
    release = stage(pool)
    unknown, problem = unknown_tasks(pool.open(), release, ["a"])
    assert unknown is None
    assert "No module named 'no_such_module'" in problem


def test_the_python_beside_the_workers_program_is_asked(pool: LocalPool) -> None:
    pool.command = [PYTHON.rpartition("/")[0] + "/env", PYTHON, "{app}/worker.py", "{worker}"]
    pool.manifest = {"command": ["{python}", "-c", "print('a.b')"]}
    release = stage(pool)
    assert pool.open().store.manifest(release)["tasks"] == ["a.b"]
