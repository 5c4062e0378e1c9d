# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lease of a host, held by real steps: one owner at a time, whoever comes, goes or dies."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host import asking
from ansible_collections.backstep.workers.plugins.module_utils._host.moving import switch_host
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import (
    LeaseHeld,
    StaleToken,
    StepOutOfOrder,
)

from tests.integration.local_pool import TERMS, LocalPool
from tests.support.local_hosts import LocalHost
from tests.support.servers import wait_for


def test_a_second_owner_is_refused_with_who_and_since_when(pool: LocalPool) -> None:
    pool.lease("ana")
    events = pool.events()
    with pytest.raises(LeaseHeld, match=r"ana@ops1 \(pid 4711\) holds this host for a deploy since 20..-") as refused:
        pool.lease("bob")
    assert "Nothing was changed on this host." in str(refused.value)
    assert pool.events() == events


def test_a_lease_that_was_given_back_or_has_run_out_is_free_and_its_owner_is_refused(pool: LocalPool) -> None:
    pool.lease("ana")
    pool.end()
    with pytest.raises(StaleToken, match="was given back"):
        pool.stage("1.0")
    pool.lease("bob", seconds=0.2)
    wait_for("the lease has run out", lambda: _refusal(pool) == "has run out")
    assert pool.lease("cy").how == "granted"


def _refusal(pool: LocalPool) -> str:
    try:
        pool.open().require(pool.token)
    except StaleToken as error:
        return "has run out" if "has run out" in error.message else error.message
    return ""


def test_each_step_renews_the_lease(pool: LocalPool) -> None:
    pool.lease("ana", seconds=30.0)
    before = pool.open().state().lease
    pool.stage("1.0")
    after = pool.open().state().lease
    assert before is not None
    assert after is not None
    assert after.expires > before.expires


def test_a_dead_owner_s_lease_is_adopted(pool: LocalPool) -> None:
    pool.lease("dead")
    late = pool.token
    assert pool.lease("bob", adopt="dead").how == "adopted"
    with pytest.raises(StaleToken, match="superseded"):
        pool.open().require(late)


def test_a_rollback_pre_empts_a_deploy_whose_next_step_is_refused(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.lease("ana")
    second = pool.stage("2.0")
    pool.switch(second)
    deploy = pool.token
    assert pool.lease("oncall", kind="rollback").how == "preempted"
    rollback = pool.token
    pool.back()
    pool.token = deploy
    for step in (lambda: pool.confirm(second), lambda: pool.switch(second), lambda: pool.stage("3.0")):
        with pytest.raises(StaleToken, match=r"oncall@ops1 .*superseded"):
            step()
    pool.token = rollback
    pool.confirm(first)
    pool.end()
    pool.wait_only(first)
    assert pool.open().state().state_of(second) == "bad"


def test_nothing_pre_empts_a_rollback(pool: LocalPool) -> None:
    pool.deploy("1.0")
    pool.deploy("2.0")
    pool.lease("oncall", kind="rollback")
    for kind in ("deploy", "rollback"):
        with pytest.raises(LeaseHeld, match=r"oncall@ops1 .* for a rollback"):
            pool.lease("bob", kind=kind)


def test_the_way_back_is_one_call_from_a_free_host(pool: LocalPool) -> None:
    """Lease, journal and switch together, as the module does it for a rollback."""
    first = pool.deploy("1.0")
    pool.deploy("2.0")
    owner = {"run": "r", "user": "oncall", "controller": "ops1", "pid": 1}
    common: dict[str, Any] = {
        "release": "previous",
        "wish": "",
        "owner": owner,
        "adopt": "",
        "lease_seconds": 60.0,
        "verdict": "bad",
        "reason": "",
    }
    token = pool.open().state().last_token + 1
    plan = switch_host(pool.open(), TERMS, rollout=token, check_mode=True, **common)
    done = switch_host(pool.open(), TERMS, rollout=token, check_mode=False, **common)
    assert done["actions"] == plan["actions"]
    assert done["release"] == first
    lease = pool.open().state().lease
    assert lease is not None
    assert (lease.kind, lease.token, lease.owner["user"]) == ("rollback", token, "oncall")
    again = switch_host(pool.open(), TERMS, rollout=token, check_mode=False, **common)
    assert again["changed"] is False


# Waits in replace mode for a task that takes long, as a module would, and says how that went.
_DRAINER = """
import sys
from pathlib import Path
from tests.integration.local_pool import LocalPool
from tests.support.local_hosts import LocalHost
pool = LocalPool(LocalHost(Path(sys.argv[1])), sys.argv[2])
pool.lease("ana")
release = pool.stage("2.0")
try:
    pool.switch(release, mode="replace", drain_seconds=600.0, drain_policy=sys.argv[3])
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""


@pytest.fixture
def draining(at: LocalHost, pool: LocalPool, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A deploy that waits, with the host's lock, for a task of the release that it is to replace."""
    first = pool.deploy("1.0")
    pool.enqueue("long", 8.0)
    pool.wait_task("long", "executing", first)
    process = subprocess.Popen(
        [sys.executable, "-c", _DRAINER, str(at.folder), pool.name, request.param],
        env={"PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for("the deploy drains", lambda: "drain_started" in pool.events())
    yield process
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


@pytest.mark.parametrize("draining", ["abort", "kill"], indirect=True)
def test_a_drain_gives_way_to_a_rollback_and_nothing_is_killed(
    pool: LocalPool, draining: subprocess.Popen[str]
) -> None:
    (first,) = pool.running()
    assert pool.lease("oncall", kind="rollback").how == "preempted"
    said = draining.communicate(timeout=60)[0]
    assert said.startswith(f"StaleToken The drain of {first} was given up after")
    assert "oncall@ops1 (pid 4711) rolls this host back. Nothing was killed" in said
    pool.back(verdict="unknown")
    pool.confirm(first)
    pool.end()
    pool.wait_task("long", "done", first)
    pool.enqueue("next")
    pool.wait_task("next", "done", first)
    (ended,) = [event for event in pool.open().journal.read()[0] if event["event"] == "drain_ended"]
    assert ended["outcome"] == "superseded"
    assert pool.running() == {first: 1}


@pytest.mark.parametrize("draining", ["abort"], indirect=True)
def test_a_drain_gives_way_to_a_person_on_the_host(pool: LocalPool, draining: subprocess.Popen[str]) -> None:
    (first,) = pool.running()
    done = pool.program("rollback")
    assert done.returncode == 0, done.stderr
    assert "StaleToken" in draining.communicate(timeout=60)[0]
    pool.wait_task("long", "done", first)
    pool.wait_running(first)


@pytest.mark.parametrize("draining", ["abort"], indirect=True)
def test_a_drain_gives_way_to_no_deploy_and_to_nobody_who_is_gone(
    pool: LocalPool, draining: subprocess.Popen[str]
) -> None:
    (first,) = pool.running()
    owner = {"run": "bob", "user": "bob", "controller": "ops2", "pid": 1}
    request = {"token": pool.open().state().last_token + 1, "kind": "rollback", "owner": owner, "adopt": ""}
    with asking.asked_for(pool.open(), {**request, "kind": "deploy"}):
        assert asking.pressing(pool.open()) == []
    pool.open().layout.request.write_text(json.dumps(request), encoding="utf-8")
    assert draining.communicate(timeout=60)[0] == "", "it has waited for its task"
    pool.wait_task("long", "done", first)
    (ended,) = [event for event in pool.open().journal.read()[0] if event["event"] == "drain_ended"]
    assert ended["outcome"] == "clean"


# Holds the lock of a host as a step would, until it is killed.
_HOLDER = """
import sys, time
from pathlib import Path
from tests.integration.local_pool import LocalPool
from tests.support.local_hosts import LocalHost
with LocalPool(LocalHost(Path(sys.argv[1])), sys.argv[2]).open().locked():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_one_step_at_a_time_and_a_dead_one_holds_nobody_up(at: LocalHost, pool: LocalPool) -> None:
    pool.deploy("1.0")
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(at.folder), pool.name],
        env={"PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    try:
        with pytest.raises(StepOutOfOrder, match="Another step is under way"), pool.open().locked(0.3):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with pool.open().locked(0.3):
        pass
