# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the ``rollout`` action plans from its options and the hosts' answers, and what it refuses before that."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Optional

from ansible_collections.backstep.workers.plugins.module_utils._hook_args import hooks_of
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import unique
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import worker_times
from ansible_collections.backstep.workers.plugins.module_utils._queue_args import queue_groups
from ansible_collections.backstep.workers.plugins.module_utils._rollout import alerts, fleet, schedulers
from ansible_collections.backstep.workers.plugins.module_utils._rollout.dying import require_dead
from ansible_collections.backstep.workers.plugins.module_utils._rollout.hook_steps import AFTER_SWITCH, BEFORE_CONFIRM
from ansible_collections.backstep.workers.plugins.module_utils._rollout.hooks import seconds_of
from ansible_collections.backstep.workers.plugins.module_utils._rollout.ladder import (
    require_drain_time,
    require_put_back,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.stranding import (
    LEAVE,
    require_consumers,
    require_consumers_back,
)
from ansible_collections.backstep.workers.plugins.module_utils._scheduler_args import scheduler_of

Answers = dict[str, Optional[dict[str, Any]]]


def plan_deploy(params: Mapping[str, Any], answers: Answers, dead: set[str]) -> fleet.FleetPlan:
    """Plan a deploy.

    :param params: the action's options.
    :param answers: by host, what ``release`` and ``worker_info`` told; None for a host that gave no answer.
    :param dead: tokens of runs that are known to be dead.
    :raises BackstepError: what speaks against it; nothing was touched.
    """
    hooks, scheduler = hooks_of(params["hooks"]), scheduler_of(params["scheduler"])
    schedulers.require_host(scheduler, params["all_hosts"])
    _require_fit(params)
    plan = fleet.plan_deploy(answers, params["waves"], dead, params["partial"], scheduler)
    workers = params["broker"].get("workers") or []
    fleet.hold_consuming(plan, params["min_consuming"], answers, params["queues"], params["processes"], workers)
    fleet.require_lease_time(hooks, params["lease_timeout"])
    wave_seconds = params["wave_seconds"] + seconds_of(hooks, AFTER_SWITCH)
    end_seconds = seconds_of(hooks, BEFORE_CONFIRM) + schedulers.seconds_at_most(scheduler)
    fleet.require_time(plan, wave_seconds, params["confirm_timeout"], end_seconds)
    return plan


def plan_back(
    params: Mapping[str, Any], answers: Answers, dead: set[str], alert: Optional[alerts.Alert]
) -> tuple[fleet.FleetPlan, str]:
    """Plan a rollback; with it why the pool stays where it is in spite of the alert that asks for it, or "".

    :param alert: what asks for it if no person does; else parameters and errors are those of :func:`plan_deploy`.
    """
    stays = alerts.why_not(alert, answers, dead, params["watch_window"], time.time()) if alert else ""
    if stays:
        return alerts.stay(answers), stays
    # Only a person crosses a rollback barrier, and only a person can be asked what is to happen to a queue: what an
    # alert sees is worse than a queue that waits, which is named at the end.
    plan = fleet.plan_rollback(answers, dead, params["partial"], params["cross_barrier"] and not alert)
    if not alert:
        _require_consumers_back(params, plan, answers)
    return plan, ""


def states_of(answers: Answers) -> dict[str, dict[str, Any]]:
    """The ``pool_state`` of each host that told it."""
    return {host: answer["pool_state"] for host, answer in answers.items() if answer and "pool_state" in answer}


def all_queues(params: Mapping[str, Any], states: Mapping[str, dict[str, Any]]) -> list[str]:
    """The queues of the options, of the releases that run, and of those that hosts would go back to."""
    told = [[*(state.get("queues") or []), *(state.get("back_queues") or [])] for state in states.values()]
    return unique([*_flat(params["queues"]), *(queue for queues in told for queue in queues)])


def lost_when_killed(params: Mapping[str, Any]) -> list[str]:
    """Names of tasks that go with a worker that is killed."""
    return params["broker"].get("lost_when_killed") or []


def _require_fit(params: Mapping[str, Any]) -> None:
    """Refuse a deploy for what the broker tells, or for times in the wrong order."""
    queues = params["broker"].get("queues") or {}
    fleet.require_unpaused(params["broker"])
    require_dead(params["dead_rules"], queues)
    times = worker_times(params["engine"], params["command"], params["visibility_timeout"])
    require_drain_time(params["engine"], params["drain_timeout"], times)
    require_put_back(params["engine"], params["drain_policy"], lost_when_killed(params))
    if params["stranded"] != LEAVE:
        require_consumers([*_flat(params["queues"]), *params["leave_queues"]], queues)


def _require_consumers_back(params: Mapping[str, Any], plan: fleet.FleetPlan, answers: Answers) -> None:
    """Refuse a rollback for queues that it would leave, unless somebody else may listen to them: on part of a pool."""
    if params["stranded"] == LEAVE or params["partial"] or not plan.hosts:
        return
    states = states_of(answers).values()
    now = [queue for state in states for queue in state.get("queues") or []]
    back = [queue for state in states for queue in state.get("back_queues") or []]
    told = params["parking"].get("told") or []
    parked = {name for one in told for name in [*(one["tasks"] or []), *one["changed"]]}
    tasks, queues = params["broker"].get("tasks") or [], params["broker"].get("queues") or {}
    require_consumers_back(now, [*back, *params["leave_queues"]], queues, tasks, parked)


def _flat(queues: list[Any]) -> list[str]:
    return [queue for group in queue_groups(queues) for queue in group] if queues else []
