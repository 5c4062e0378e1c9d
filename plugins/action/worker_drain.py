# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's side of ``worker_drain``: it reaches the broker, so it can name the tasks."""

from __future__ import annotations

from typing import Any, Optional

from ansible_collections.backstep.workers.plugins.module_utils._broker_args import as_result, open_broker, queue_names
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import RECOVER_SECONDS, WAITING
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BackstepError
from ansible_collections.backstep.workers.plugins.module_utils._waiting.deadline import Deadline
from ansible_collections.backstep.workers.plugins.plugin_utils.host_action import HostAction

_BROKER_SECONDS = 10.0


class ActionModule(HostAction):
    """Runs on the controller, once for each host."""

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """Drain on the host; then name the tasks of workers that did not end, and put back those of killed ones."""
        super().run(tmp, task_vars)
        variables = task_vars or {}
        result = self.ask(variables, lambda: self.call(variables), self.known())
        if not self._task.args.get("broker_url"):
            return result
        workers = result.get("running") or (result.get("error") or {}).get("details", {}).get("running")
        if not workers:
            return result
        try:
            return self._with_tasks(result, [worker["worker"] for worker in workers])
        except BackstepError as error:
            unnamed = f"The tasks can't be named: {error.message}"
            return {**result, "warnings": [*result.get("warnings", []), unnamed]}

    def _with_tasks(self, result: dict[str, Any], workers: list[str]) -> dict[str, Any]:
        queues = queue_names(self._task.args.get("queues") or [])
        parameters = {"timeout": _BROKER_SECONDS, **self._task.args}
        with open_broker(parameters) as engine:
            tasks = [as_result(task) for task in engine.executing(queues) if task.worker in workers]
            named = {**result, "tasks": tasks}
            drain = self._task.args.get("drain") or {}
            if result.get("outcome") == "killed" and drain.get("on_timeout") == "requeue":
                wait = Deadline(RECOVER_SECONDS).wait_until
                named["recovered"] = [as_result(task) for task in engine.recover(queues, workers, WAITING, wait)]
        if result.get("failed"):
            ids = ", ".join(task["id"] for task in tasks) or "none that the broker knows"
            named["msg"] = f"{result['msg']} Tasks: {ids}."
        return named
