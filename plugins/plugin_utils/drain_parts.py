# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A long drain as several calls of one module, so that it can be told in between how far it is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

from ansible_collections.backstep.workers.plugins.module_utils._broker_args import open_broker, queue_names
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BackstepError
from ansible_collections.backstep.workers.plugins.module_utils._rollout.plans import REPLACE
from ansible_collections.backstep.workers.plugins.plugin_utils.text_progress import drain_progress, pause_after

BROKER_SECONDS = 5.0
_Result = dict[str, Any]


def may_drain(module: str, args: Mapping[str, Any]) -> bool:
    """Whether a step waits for tasks to end, as its options say."""
    if module == "worker_drain":
        return bool(args.get("state", "drained") == "drained")
    return module == "release_switch" and args.get("mode") == REPLACE


def in_parts(
    args: Mapping[str, Any], call: Callable[[Mapping[str, Any]], _Result], note: Callable[[Mapping[str, Any]], None]
) -> _Result:
    """Call a module until its drain is over: once, if that is soon.

    :param args: the module's options.
    :param call: calls it with options.
    :param note: is told how far the drain is.
    :returns: the last answer, with what the calls before it have done.
    """
    counts: list[list[float]] = []
    before: list[_Result] = []
    waited = 0.0
    while True:
        said = call({**args, "part_seconds": pause_after(waited), "goes_on": bool(before)})
        still = said.get("still")
        if said.get("failed") or not still:
            return _whole(before, said)
        before.append(said)
        waited = still["waited"]
        note(drain_progress(still, counts, ages_of_tasks(args, [worker["worker"] for worker in still["running"]])))


def _whole(before: Sequence[_Result], last: _Result) -> _Result:
    if not before:
        return last
    whole = {**last, "changed": True}
    if "hooks" in before[0]:
        whole["hooks"] = [hook for said in [*before, last] for hook in said.get("hooks") or []]
    if "actions" in before[0]:
        whole["actions"] = before[0]["actions"]
    return whole


def ages_of_tasks(args: Mapping[str, Any], workers: Sequence[str]) -> Optional[list[Optional[float]]]:
    """How old each task of these workers is, in seconds by the controller's clock; None when nobody can be asked."""
    if not args.get("broker_url"):
        return None
    queues = queue_names(list(args.get("queues") or []))
    try:
        with open_broker({**args, "timeout": BROKER_SECONDS}) as engine:
            tasks = [task for task in engine.executing(queues) if task.worker in workers]
    except BackstepError:
        return None  # the drain itself needs no broker
    now = time.time()
    return [None if task.started is None else max(0.0, now - task.started) for task in tasks]
