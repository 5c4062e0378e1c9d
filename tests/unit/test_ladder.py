# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The times that end a task stand in the right order, or the deploy is refused with the numbers."""

from __future__ import annotations

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import (
    ENGINES,
    worker_defaults,
    worker_times,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput
from ansible_collections.backstep.workers.plugins.module_utils._rollout.ladder import (
    WorkerTimes,
    forecast,
    require_drain_time,
    require_put_back,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.plans import (
    ABORT,
    KILL,
    LEAVE,
    OVERLAP,
    REPLACE,
    REQUEUE,
)

DEFAULT_DRAIN = 300.0


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_every_engine_s_default_command_fits_the_default_drain(engine: str) -> None:
    require_drain_time(engine, DEFAULT_DRAIN, worker_times(engine, [], 0))


@pytest.mark.parametrize(
    ("engine", "command", "stop"),
    [
        ("sidekiq", ["bundle", "exec", "sidekiq"], 25),
        ("sidekiq", ["sidekiq", "-t", "90"], 90),
        ("sidekiq", ["sidekiq", "--timeout=90"], 90),
        ("sidekiq", ["sidekiq", "--timeout", "soon"], 25),
        ("sidekiq", ["sidekiq", "-t"], 25),
        ("dramatiq", ["dramatiq", "app"], 600),
        ("dramatiq", ["dramatiq", "--worker-shutdown-timeout", "90000", "app"], 90),
        ("rq", ["rq", "worker", "--timeout=1"], None),
    ],
)
def test_a_command_tells_when_its_worker_gives_up(engine: str, command: list[str], stop: float | None) -> None:
    assert worker_times(engine, command, 0).stop == stop


def test_a_worker_that_gives_up_before_the_drain_does_is_refused_with_the_numbers() -> None:
    times = worker_times("sidekiq", ["sidekiq"], 0)
    require_drain_time("sidekiq", 24, times)
    with pytest.raises(BadInput) as refused:
        require_drain_time("sidekiq", 25, times)
    said = f"{refused.value} {refused.value.next_step}"
    assert all(part in said for part in ("25 s to end", "after 25 s by itself", "--timeout (seconds)"))


@pytest.mark.parametrize(("engine", "seconds"), [("celery", 3600), ("rabbitmq", 1800)])
def test_an_engine_that_gives_tasks_out_again_within_the_drain_is_refused_with_the_numbers(
    engine: str, seconds: int
) -> None:
    command = worker_defaults(engine).command
    require_drain_time(engine, seconds - 1, worker_times(engine, command, 0))
    with pytest.raises(BadInput, match=f"again after {seconds} s"):
        require_drain_time(engine, seconds, worker_times(engine, command, 0))
    require_drain_time(engine, seconds, worker_times(engine, command, 7200))
    with pytest.raises(BadInput, match="again after 60 s"):
        require_drain_time(engine, 300, worker_times(engine, command, 60))


def test_an_engine_without_a_visibility_time_out_has_none_whatever_is_said() -> None:
    assert worker_times("rq", [], 5) == WorkerTimes()


def test_a_drain_that_promises_to_put_back_what_would_be_lost_is_refused_with_the_tasks() -> None:
    names = [f"mail.task{number}" for number in range(12)]
    with pytest.raises(BadInput, match=r"lost and can't be put back: mail.task0, .*, mail.task9 and 2 more"):
        require_put_back("celery", REQUEUE, names)
    for policy, lost in ((REQUEUE, []), (KILL, names), (ABORT, names), (LEAVE, names)):
        require_put_back("celery", policy, lost)


def test_a_drain_that_may_kill_says_before_which_tasks_that_would_lose() -> None:
    lost = ["mail.send", "mail.fetch"]
    for policy, mode in ((KILL, OVERLAP), (KILL, REPLACE)):
        assert forecast(policy, mode, lost) == (
            "  what still executes when a drain's time is over is killed, and of these tasks lost: "
            "mail.send, mail.fetch"
        )
        assert forecast(policy, mode, []) == ""
    assert "on a way back when" in forecast(ABORT, REPLACE, lost)
    for policy, mode in ((ABORT, OVERLAP), (LEAVE, REPLACE), (REQUEUE, REPLACE)):
        assert forecast(policy, mode, lost) == ""
