# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a rollout on one host, under a real supervisord: stage, switch, confirm, and back."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host.info import describe_host, watch
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import (
    BadInput,
    NoGoodRelease,
    ReleaseDamaged,
    ReleaseRefused,
    StepOutOfOrder,
    SupervisorError,
)

from tests.integration.local_pool import BROKER, ENDLESS, PYTHON, USER, LocalPool, open_to_all
from tests.support.local_hosts import LocalHost

_numbers = itertools.count(1)


def test_staging_touches_nothing_that_runs(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    before = {process.pid for process in pool.open().running()[first]}
    pool.lease()
    second = pool.stage("2.0")
    assert pool.open().link() == first
    assert {process.pid for process in pool.open().running()[first]} == before
    assert not pool.open().supervisor.installed(second)
    assert pool.open().state().state_of(second) == "staged"


def test_overlap_starts_the_new_one_first_and_leaves_the_old_one_its_task(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.enqueue("long", ENDLESS)
    pool.wait_task("long", "executing", first)
    pool.lease()
    second = pool.stage("2.0")
    done = pool.switch(second, mode="overlap")
    assert (done["before"], done["release"], done["changed"]) == (first, second, True)
    pool.wait_running(second)
    assert pool.running() == {first: 1, second: 1}
    assert pool.open().link() == second
    pool.enqueue("next")
    pool.wait_task("next", "done", second)
    confirmed = pool.confirm(second)
    assert [(drained["release"], drained["outcome"]) for drained in confirmed["drained"]] == [(first, "draining")]
    pool.end_task("long")
    pool.wait_settled()
    assert (pool.tasks / "done" / f"long,{first}").exists(), "the old release drains to its end"
    assert pool.running() == {second: 1}
    assert not pool.open().supervisor.installed(first)
    assert pool.open().supervisor.enabled(second)
    assert pool.open().state().good_releases() == [second, first]


def test_replace_never_runs_both(pool: LocalPool) -> None:
    pool.deploy("1.0")
    pool.lease()
    second = pool.stage("2.0")
    done = pool.switch(second, mode="replace")
    assert [action["action"] for action in done["actions"]][-3:] == ["drain", "start", "link"]
    pool.wait_running(second)
    assert pool.running() == {second: 1}


def test_the_old_release_alone_starts_at_boot_until_the_new_one_is_confirmed(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.lease()
    second = pool.stage("2.0")
    pool.switch(second)
    supervisor = pool.open().supervisor
    assert (supervisor.enabled(first), supervisor.enabled(second)) == (True, False)
    assert supervisor.guard_armed()
    pool.confirm(second)
    assert (supervisor.enabled(first), supervisor.enabled(second)) == (False, True)
    assert not supervisor.guard_armed()


def test_everything_comes_back_together(at: LocalHost, pool: LocalPool) -> None:
    pool.processes = 2
    first = pool.deploy("1.0", config="[app]\ncolour=red\n", COLOUR="red")
    before = (pool.root / "releases" / first / "config" / "app.ini").read_bytes()
    units = {path.name: path.read_bytes() for path in at.conf_dir.glob(f"*{first}*")}
    pool.processes = 1
    second = pool.deploy("2.0", config="[app]\ncolour=blue\n", COLOUR="blue")
    pool.lease(kind="rollback")
    pool.back()
    pool.confirm(first)
    pool.end()
    pool.processes = 2
    pool.wait_only(first)
    last = pool.started(first)[-2:]
    assert [seen["config"] for seen in last] == [{"app.ini": "[app]\ncolour=red\n"}] * 2
    assert [seen["environ"]["COLOUR"] for seen in last] == ["red", "red"]
    assert (pool.root / "releases" / first / "config" / "app.ini").read_bytes() == before
    assert {path.name: path.read_bytes() for path in at.conf_dir.glob(f"*{first}*")} == units
    assert pool.open().state().state_of(second) == "bad"
    assert pool.open().link() == first


def test_a_release_that_crashes_is_left_for_the_good_one_and_never_run_again(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.lease()
    second = pool.stage("2.0", MODE="crash")
    pool.switch(second)
    pool.back(verdict="bad")
    pool.confirm(first)
    pool.end()
    pool.wait_only(first)
    pool.lease()
    with pytest.raises(ReleaseRefused, match="quarantined as bad"):
        pool.switch(second)
    assert pool.running() == {first: 1}


def test_what_was_watched_runs_by_its_supervisors_word_too(pool: LocalPool) -> None:
    """supervisord calls a process that is up "starting" for a while: taken as it is, that would be a bad verdict."""
    pool.lease()
    release = pool.stage("1.0")
    pool.switch(release)
    rollout = pool.open().state().rollout
    assert rollout is not None
    evidence = watch(pool.open(), release, 0.0, rollout.processes)
    assert evidence["outcome"] == "ok"
    assert {worker["state"] for worker in evidence["processes"]} == {"running"}


def test_a_first_deploy_that_fails_leaves_nothing_running(at: LocalHost, pool: LocalPool) -> None:
    pool.lease()
    only = pool.stage("1.0")
    pool.switch(only)
    pool.wait_running(only)
    done = pool.back()
    assert done["release"] == ""
    pool.confirm("")
    pool.end()
    pool.wait_settled()
    assert pool.running() == {}
    assert pool.open().link() is None
    assert not list(at.conf_dir.glob(f"backstep-{pool.name}-*"))
    pool.lease(kind="rollback")
    with pytest.raises(NoGoodRelease):
        pool.back()


def test_back_twice_is_back_once(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.deploy("2.0")
    pool.lease(kind="rollback")
    pool.back()
    pool.confirm(first)
    pool.end()
    pids = [process.pid for process in pool.open().running()[first]]
    pool.lease(kind="rollback")
    again = pool.back()
    assert (again["changed"], again["release"]) == (False, first)
    assert again["evidence"]["outcome"] == "ok", "the verdict needs to know what runs there"
    assert [process.pid for process in pool.open().running()[first]] == pids


def test_a_target_that_was_damaged_is_refused_before_anything_is_stopped(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.lease()
    second = pool.stage("2.0")
    (pool.root / "releases" / first / "app" / "worker.py").write_text("gone", encoding="utf-8")
    events = pool.events()
    with pytest.raises(ReleaseDamaged, match=r"app/worker\.py was changed"):
        pool.switch(second)
    assert pool.events() == events
    assert pool.running() == {first: 1}
    assert not pool.open().supervisor.guard_armed()


def test_old_releases_are_pruned_and_never_the_way_back(pool: LocalPool) -> None:
    releases = [pool.deploy(f"{number}.0") for number in range(1, 6)]
    there = {path.name for path in (pool.root / "releases").iterdir()}
    assert there == set(releases[-3:]), "the current one and two more, as keep says"


def test_a_supervisord_that_is_not_there_is_an_error_and_never_no_workers(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    elsewhere = pool.at.socket.rename(pool.at.socket.with_suffix(".away"))
    try:
        with pytest.raises(SupervisorError, match="refused getAllProcessInfo"):
            pool.open().supervisor.processes(first)
        with pytest.raises(SupervisorError):
            describe_host(pool.open())
    finally:
        elsewhere.rename(pool.at.socket)


def test_a_confirmation_without_a_switch_is_refused(pool: LocalPool) -> None:
    pool.deploy("1.0")
    pool.lease()
    second = pool.stage("2.0")
    with pytest.raises(StepOutOfOrder, match="can't be confirmed here"):
        pool.confirm(second)


HOSTILE = {
    "PERCENT": "100%s %(ENV_PATH)s %%",
    "DOLLAR": "$HOME ${PATH} $(id)",
    "QUOTES": 'she said "it\'s" `fine`',
    "SPACES": "  two  spaces \t tab ",
    "SEMI": "a;b ; comment # no comment",
    "BACK": 'C:\\new\\table \\" \\$',
    "LINES": "one\ntwo\n",
    "UNICODE": "größe 😀",
    "EMPTY": "",
    "COMMA": 'a,b=c,"d"',
}


def test_values_with_any_characters_reach_the_worker_as_they_are(pool: LocalPool) -> None:
    release = pool.deploy("1.0+build.5", **HOSTILE)
    (seen,) = pool.started(release)
    assert {name: seen["environ"][name] for name in HOSTILE} == HOSTILE
    assert seen["environ"]["RQ_REDIS_URL"] == BROKER
    assert seen["environ"]["BACKSTEP_RELEASE"] == release
    assert seen["uid"] != 0


def test_arguments_and_paths_with_any_characters_reach_the_worker_as_they_are(at: LocalHost) -> None:
    words = ["100%", "%(x)s", "$HOME", "it's", 'a "b"', "two  spaces", "semi ; colon", "", "back\\slash", "#no"]
    pool = LocalPool(at, f"steps{next(_numbers)}", command=[PYTHON, "{app}/worker.py", "{worker}", *words])
    pool.root = odd = at.folder / "odd 100% $HOME it's"
    release = pool.deploy("1.0")
    (seen,) = pool.started(release)
    assert seen["argv"][2:] == words
    assert seen["cwd"] == str(odd / "releases" / release / "app")
    assert seen["environ"]["BACKSTEP_ROOT"] == str(odd)


@pytest.mark.parametrize("name", ["a ;b", "a #b", 'a"b', "a\nb"])
def test_a_root_that_the_configuration_can_not_hold_is_refused(at: LocalHost, pool: LocalPool, name: str) -> None:
    pool.root = at.folder / name
    with pytest.raises(BadInput, match="can't be used under supervisord"):
        pool.open().supervisor.check()


def test_units_that_nobody_got_to_read_are_read_by_the_next_run(pool: LocalPool) -> None:
    """As if the run that wrote them had been killed before supervisord was told."""
    first = pool.deploy("1.0")
    pool.lease()
    second = pool.stage("2.0")
    ((name, content),) = pool.open().sealed_units(second).items()
    (pool.at.conf_dir / name).write_bytes(content)
    pool.switch(second)
    pool.wait_running(second)
    assert pool.running() == {first: 1, second: 1} or pool.running() == {second: 1}


def test_what_others_may_read(at: LocalHost, pool: LocalPool) -> None:
    pool.deploy("1.0", TOKEN="hush-token", config="[app]\nkey=hush-config\n")
    if os.geteuid() == 0:
        readable = [path for path in [*pool.root.rglob("*"), *at.conf_dir.iterdir()] if open_to_all(path, at.folder)]
        found = {word: path for path in readable for word in (b"hush-token", b"hush-broker", b"hush-config")
                 if path.is_file() and word in path.read_bytes()}  # fmt: skip
        assert found == {}
    for name in ("state/journal.jsonl", "state/pool.json", "state/brokers.json"):
        assert (pool.root / name).stat().st_mode & 0o777 == 0o600
    journal = (pool.root / "state" / "journal.jsonl").read_bytes()
    assert b"hush" not in journal
    for pid in at.processes():
        assert b"hush" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_the_workers_user(pool: LocalPool) -> None:
    (seen,) = pool.started(pool.deploy("1.0"))
    assert seen["environ"]["USER"] == USER
