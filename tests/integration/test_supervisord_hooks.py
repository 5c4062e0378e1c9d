# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A release's hooks on a host under a real supervisord: who they run as, what they leave, what their failure means."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host.info import describe_host
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import StepOutOfOrder
from ansible_collections.backstep.workers.plugins.module_utils._rollout.hook_steps import STEPS

from tests.integration.local_pool import BROKER, PYTHON, USER, WORKER, LocalPool
from tests.integration.test_supervisord_guard import wait_back
from tests.support.local_hosts import MARK, LocalHost
from tests.support.servers import wait_for

CHECKOUT = Path(__file__).resolve().parents[2]
HOOK = [PYTHON, "{app}/hook.py"]
HIDDEN = "hush-hush-77"


@pytest.fixture
def pool(pool: LocalPool) -> Iterator[LocalPool]:
    """A new pool, on a good release without hooks."""
    shutil.copy(WORKER.parent / "hook.py", pool.code)
    pool.deploy("1.0")
    yield pool
    for pid in alive(pool):
        os.kill(pid, signal.SIGKILL)


def first(pool: LocalPool) -> str:
    return pool.open().state().good_releases()[-1]


def ran(pool: LocalPool, step: str = "*") -> list[dict[str, Any]]:
    """What each hook that was started has said of itself, in the order of their starts."""
    paths = sorted((pool.tasks / "started").glob(f"hook-{step}-*"), key=lambda path: path.name.rpartition("-")[2])
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def steps(pool: LocalPool) -> list[str]:
    return [seen["environ"]["BACKSTEP_STEP"] for seen in ran(pool)]


def noted(pool: LocalPool, event: str = "hook_ended") -> list[dict[str, Any]]:
    return [found for found in pool.open().journal.read()[0] if found["event"] == event]


def alive(pool: LocalPool) -> list[int]:
    """The processes of the pool's hooks, their children included."""
    mark = f"BACKSTEP_ROOT={pool.root}".encode()
    found = []
    # Not by the mark of the host, which they don't have: their environment is the release's.
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            environment = path.read_bytes().split(b"\0")
            if mark in environment and any(item.startswith(b"BACKSTEP_HOOK=") for item in environment):
                found.append(int(path.parent.name))
    return found


def switched(pool: LocalPool, **terms: Any) -> str:
    """Staged and switched to, with the hooks before that having run."""
    pool.lease()
    release = pool.stage("2.0")
    pool.run_hooks(release, "before_switch")
    pool.switch(release, once=True, **terms)
    pool.wait_running(release)
    return release


def test_all_steps_of_a_deploy_and_of_the_way_back_in_their_order(pool: LocalPool) -> None:
    pool.hooks = {step: [HOOK, {"command": [*HOOK, "second"], "where": "once"}] for step in STEPS}
    pool.hooks["before_stage"] = [["/bin/sh", "-c", 'touch "$TASKS/started/hook-before_stage-0"']]
    release = pool.deploy("2.0")
    assert (pool.tasks / "started" / "hook-before_stage-0").exists()
    (pool.tasks / "started" / "hook-before_stage-0").unlink()
    deployed = ["after_stage", "before_switch", "after_switch", "before_confirm", "after_confirm"]
    assert steps(pool) == [step for step in deployed for _twice in range(2)]
    pool.lease(kind="rollback")
    pool.back()
    pool.confirm(first(pool))
    pool.end()
    assert steps(pool)[10:] == ["before_rollback"] * 2 + ["after_rollback"] * 2
    assert {event["release"] for event in noted(pool)} == {release}
    order = pool.events()
    way_back = order[len(order) - order[::-1].index("lease_granted") :]
    assert way_back.index("guard_armed") < way_back.index("hook_started") < way_back.index("restored")


def test_who_it_is_and_what_it_knows(pool: LocalPool) -> None:
    pool.environment = {"TOKEN": HIDDEN}
    pool.hooks = {"after_switch": [{"command": [*HOOK, "{config}"], "chdir": "/"}, HOOK]}
    old, new = first(pool), switched(pool)
    pool.run_hooks(new, "after_switch")
    seen, second = ran(pool)
    environment = seen["environ"]
    assert seen["uid"] == pwd.getpwnam(USER).pw_uid
    assert (seen["cwd"], second["cwd"]) == ("/", str(pool.root / "releases" / new / "app"))
    assert seen["argv"][1] == str(pool.root / "releases" / new / "config")
    assert (environment["TOKEN"], environment["RQ_REDIS_URL"]) == (HIDDEN, BROKER)
    found = {name[9:]: environment[name] for name in environment if name.startswith("BACKSTEP_")}
    expected = {"POOL": pool.name, "RELEASE": new, "FROM": old, "TO": new, "HOST": "w1", "STEP": "after_switch"}
    assert expected.items() <= found.items()
    assert found["ROLLOUT"] == str(pool.token)
    assert "WORKER" not in found


def test_the_pool_can_give_it_another_broker_url_than_backsteps_own(pool: LocalPool) -> None:
    pool.environment = {"RQ_REDIS_URL": ""}
    pool.hooks = {"after_switch": [HOOK]}
    first(pool)
    pool.run_hooks(switched(pool), "after_switch")
    (seen,) = ran(pool)
    assert seen["environ"]["RQ_REDIS_URL"] == ""


def test_what_it_says_is_kept_without_secrets(pool: LocalPool) -> None:
    pool.environment = {"TOKEN": HIDDEN}
    script = 'echo one; echo "two $TOKEN"; echo "three $RQ_REDIS_URL ${RQ_REDIS_URL#redis://:}"; exit 3'
    pool.hooks = {"after_switch": [["/bin/sh", "-c", script]]}
    release = switched(pool)
    done = pool.run_hooks(release, "after_switch")
    (told,) = done["hooks"]
    assert (told["outcome"], told["code"]) == ("failed", 3)
    assert told["output"] == "one\ntwo ***\nthree *** ***@127.0.0.1:6390/0"
    assert noted(pool)[-1]["output"] == told["output"]
    assert b"hush" not in (pool.root / "state" / "journal.jsonl").read_bytes()


def test_only_the_end_of_what_it_says_is_kept(pool: LocalPool) -> None:
    pool.hooks = {"after_switch": [["/bin/sh", "-c", "seq 1 200000"]]}
    release = switched(pool)
    (told,) = pool.run_hooks(release, "after_switch")["hooks"]
    assert told["output"].splitlines() == [str(number) for number in range(199991, 200001)]


def test_at_its_deadline_all_that_it_has_started_is_killed(pool: LocalPool) -> None:
    pool.hooks = {"after_switch": [{"command": [*HOOK, "hang"], "timeout": 1.5}, HOOK]}
    release = switched(pool)
    (told,) = pool.run_hooks(release, "after_switch")["hooks"]
    assert (told["outcome"], told["number"]) == ("timeout", 1)
    assert len(ran(pool)) == 1, "what comes after it is not run"
    wait_for("nothing of it lives", lambda: not alive(pool))


def test_nothing_that_it_leaves_behind_goes_on(pool: LocalPool) -> None:
    pool.hooks = {"after_switch": [[*HOOK, "leave"]]}
    release = switched(pool)
    (told,) = pool.run_hooks(release, "after_switch")["hooks"]
    assert told["outcome"] == "done"
    assert len(ran(pool)) == 1
    wait_for("nothing of it lives", lambda: not alive(pool))


@pytest.mark.parametrize(
    ("command", "outcome"),
    [
        (["/nowhere/at/all"], "not_run"),
        (["{app}/hook.py"], "not_run"),
        ({"command": HOOK, "chdir": "nowhere"}, "not_run"),
        (["/bin/sh", "-c", "exit 127"], "failed"),
        (["/bin/sh", "-c", "exit 124"], "failed"),
        (["/bin/sh", "-c", "kill -9 $$"], "failed"),
    ],
)
def test_what_can_not_be_run_is_told_from_what_fails(pool: LocalPool, command: Any, outcome: str) -> None:
    pool.hooks = {"before_switch": [command]}
    pool.lease()
    release = pool.stage("2.0")
    (told,) = pool.run_hooks(release, "before_switch")["hooks"]
    assert told["outcome"] == outcome
    with pytest.raises(StepOutOfOrder, match="hook before_switch 1"):
        pool.switch(release)
    assert pool.running() == {first(pool): 1}


def test_no_shell_sees_a_word(pool: LocalPool) -> None:
    words = ["$(id)", "a b", "; echo", "`id`", "*"]
    pool.hooks = {"before_switch": [[*HOOK, *words]]}
    pool.lease()
    pool.run_hooks(pool.stage("2.0"), "before_switch")
    assert ran(pool)[0]["argv"][1:] == words


@pytest.mark.parametrize("step", ["before_stage", "after_stage"])
def test_one_that_fails_at_staging_stops_there(pool: LocalPool, step: str) -> None:
    pool.hooks = {step: [["/bin/sh", "-c", "exit 4"]]}
    pool.lease()
    release = pool.stage("2.0")
    assert [told["code"] for told in pool.hooked] == [4]
    assert pool.open().state().state_of(release) == (None if step == "before_stage" else "staged")
    assert pool.running() == {first(pool): 1}


def test_check_mode_shows_them_and_runs_none(pool: LocalPool) -> None:
    pool.hooks = {"before_switch": [HOOK], "after_confirm": [HOOK]}
    pool.lease()
    events = pool.events()
    for step in ("before_switch", "after_confirm"):
        shown = pool.run_hooks("2.0-not-there-yet", step, check_mode=True)
        assert [(action["action"], action["step"]) for action in shown["actions"]] == [("hook", step)]
    assert (ran(pool), pool.events()) == ([], events)


def test_a_run_that_is_repeated_runs_only_what_is_missing(pool: LocalPool) -> None:
    flag = pool.tasks / "broken"
    flag.touch()
    pool.hooks = {"after_switch": [HOOK, [*HOOK, "flag", str(flag)], [*HOOK, "third"]]}
    release = switched(pool)
    assert [told["outcome"] for told in pool.run_hooks(release, "after_switch")["hooks"]] == ["done", "failed"]
    with pytest.raises(StepOutOfOrder, match="hook after_switch 2"):
        pool.confirm(release)
    flag.unlink()
    pool.lease("bob", adopt="ana")
    pool.switch(release)
    assert [told["number"] for told in pool.run_hooks(release, "after_switch")["hooks"]] == [2, 3]
    assert pool.run_hooks(release, "after_switch")["changed"] is False
    pool.confirm(release)


def test_after_the_confirmation_a_failure_is_seen_until_it_has_gone_well(pool: LocalPool) -> None:
    flag = pool.tasks / "broken"
    flag.touch()
    pool.hooks = {"after_confirm": [[*HOOK, "flag", str(flag)]]}
    release = pool.deploy("2.0")
    assert pool.open().state().good_releases()[0] == release
    told = describe_host(pool.open())
    assert [hook["step"] for hook in told["hooks_pending"]] == ["after_confirm"]
    assert any("hook after_confirm 1" in problem for problem in told["problems"])
    flag.unlink()
    pool.lease()
    pool.run_hooks(release, "after_confirm")
    pool.end()
    assert describe_host(pool.open())["hooks_pending"] == []


def test_the_guard_alone_runs_those_of_the_release_that_it_leaves(pool: LocalPool) -> None:
    good = first(pool)
    once = {"command": HOOK, "where": "once"}
    pool.hooks = {"before_rollback": [[*HOOK, "end", "5"], HOOK], "after_rollback": [once]}
    switched(pool, confirm_seconds=1.0)
    wait_back(pool, good)
    assert steps(pool) == ["before_rollback", "before_rollback", "after_rollback"]
    assert [(event["by"], event["outcome"]) for event in noted(pool)] == [
        ("guard", "failed"), ("guard", "done"), ("guard", "done")
    ]  # fmt: skip
    pool.enqueue("next")
    pool.wait_task("next", "done", good)


def test_a_person_on_the_host_is_told_of_one_that_fails(pool: LocalPool) -> None:
    good = first(pool)
    pool.hooks = {"before_rollback": [{"command": [*HOOK, "hang"], "timeout": 1.0}]}
    switched(pool)
    done = pool.program("rollback")
    assert done.returncode == 1
    assert f"Back on {good}" in done.stderr
    assert "hook before_rollback 1" in done.stderr
    pool.wait_only(good)
    wait_for("nothing of it lives", lambda: not alive(pool))


def test_a_release_that_is_damaged_can_still_be_left(pool: LocalPool) -> None:
    good = first(pool)
    pool.hooks = {"before_rollback": [HOOK]}
    release = switched(pool)
    (pool.root / "releases" / release / "release.json").unlink()
    (told,) = pool.back()["hooks"]
    assert told["outcome"] == "not_run"
    assert "release.json can't be read" in told["output"]
    pool.confirm(good)
    pool.wait_only(good)


def test_one_gives_way_to_a_rollback(at: LocalHost, pool: LocalPool) -> None:
    good = first(pool)
    pool.hooks = {"after_switch": [{"command": [*HOOK, "hang"], "timeout": 500}]}
    release = switched(pool)
    runner = run_hook_elsewhere(at, pool, release)
    wait_for("it has begun", lambda: ran(pool))
    pool.lease("oncall", kind="rollback")
    pool.back()
    pool.confirm(good)
    runner.wait(15)
    assert [(event["outcome"], event["seconds"] < 500) for event in noted(pool)] == [("timeout", True)]
    assert not alive(pool)


# Runs a hook as a module would: the test kills it with SIGKILL in the middle.
_RUNNER = """
import sys
from tests.integration.local_pool import LocalHost, LocalPool
from pathlib import Path
pool = LocalPool(LocalHost(Path(sys.argv[1])), sys.argv[2], token=int(sys.argv[3]))
pool.run_hooks(sys.argv[4], "after_switch")
"""


def run_hook_elsewhere(at: LocalHost, pool: LocalPool, release: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _RUNNER, str(at.folder), pool.name, str(pool.token), release],
        env={**os.environ, "PYTHONPATH": f"{CHECKOUT / 'build' / 'collections'}:{CHECKOUT}", MARK: str(at.folder)},
        start_new_session=True,
    )


def test_one_whose_runner_was_killed_is_ended_before_anything_else_is_done(at: LocalHost, pool: LocalPool) -> None:
    good = first(pool)
    pool.hooks = {"after_switch": [[*HOOK, "hang"]]}
    release = switched(pool)
    runner = run_hook_elsewhere(at, pool, release)
    wait_for("it has begun", lambda: ran(pool))
    runner.send_signal(signal.SIGKILL)
    runner.wait(10)
    (pid,) = [seen["pid"] for seen in ran(pool)]
    os.kill(pid, 0)
    assert pool.running() == {release: 1}, "it is no worker"
    pool.back()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    last = noted(pool)[-1]
    assert (last["outcome"], last["output"]) == ("not_run", "whoever ran it has died")
    order = pool.events()
    assert order.index("hook_ended") < order.index("restored")
    pool.confirm(good)
