# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A way back that fails has a name: what consumes goes on undisturbed, and a person has choices."""

from __future__ import annotations

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host.info import describe_host
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import RollbackFailed

from tests.integration.local_pool import ENDLESS, LocalPool


def between(pool: LocalPool) -> tuple[str, str]:
    """A host that is switched from one release to another, the first of which can't be started any more."""
    flag = pool.tasks / "broken"
    first = pool.deploy("1.0", FLAG=str(flag))
    pool.lease()
    second = pool.stage("2.0")
    pool.switch(second)
    pool.wait_running(second)
    flag.touch()
    return first, second


def test_what_consumes_goes_on_and_the_host_needs_a_person(pool: LocalPool) -> None:
    first, second = between(pool)
    with pytest.raises(RollbackFailed) as failed:
        pool.back()
    assert f"can't go back to {first}: {first} was started again and doesn't stay up: worker 1" in failed.value.message
    assert f"{second} runs on" in failed.value.left
    assert f"goes on by itself once {first} stays up" in failed.value.left
    assert "pool_to=<id>" in failed.value.next_step
    assert "pool_skip=w1" in failed.value.next_step
    pool.enqueue("after")
    pool.wait_task("after", "done", second)
    (problem, *_others) = [text for text in describe_host(pool.open())["problems"] if "needs a person" in text]
    assert f"unless {first} stays up after all: the way back to it has failed" in problem
    assert "needs a person" in pool.program("status").stdout
    assert pool.program("guard").stdout.startswith("This host needs a person: ")
    assert pool.events().count("rollback_started") == 1


def test_it_can_be_tried_again(pool: LocalPool) -> None:
    first, second = between(pool)
    for _attempt in range(2):
        with pytest.raises(RollbackFailed):
            pool.back()
        assert second in pool.running()
    (pool.tasks / "broken").unlink()
    assert pool.back()["release"] == first
    pool.confirm(first)
    pool.wait_only(first)
    assert pool.open().state().state_of(second) == "bad"


def test_it_can_be_gone_forward_from(pool: LocalPool) -> None:
    first, _second = between(pool)
    with pytest.raises(RollbackFailed):
        pool.back()
    third = pool.stage("3.0")
    pool.switch(third)
    pool.wait_task_taken(third)
    pool.confirm(third)
    pool.wait_only(third)
    assert pool.open().state().good_releases() == [third, first]


def test_a_stored_release_that_is_damaged_is_found_before_anything_is_stopped(pool: LocalPool) -> None:
    first, second = between(pool)
    code = pool.root / "releases" / first / "app" / "worker.py"
    code.chmod(0o600)
    code.write_text("broken", encoding="utf-8")
    with pytest.raises(RollbackFailed, match=r"worker\.py"):
        pool.back()
    assert pool.running() == {second: 1}
    assert "needs a person" in pool.program("status").stdout


def test_workers_that_still_have_a_task_from_before_count_as_up(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.enqueue("long", ENDLESS)
    pool.wait_task("long", "executing", first)
    pool.lease()
    second = pool.stage("2.0")
    pool.switch(second)
    pool.wait_task_taken(second)
    back = pool.back()
    assert back["evidence"]["outcome"] == "ok"
    pool.confirm(first)
    pool.end_task("long")
    pool.wait_task("long", "done", first)
    pool.wait_only(first)
    pool.enqueue("after")
    pool.wait_task("after", "done", first)
