# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sends the notifications that are due, with whatever module each names; nothing that happens to one can fail a run."""

from __future__ import annotations

import time
from typing import Any, Optional

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.backstep.workers.plugins.module_utils._rollout import notices
from ansible_collections.backstep.workers.plugins.module_utils._rollout.answers import failure_of
from ansible_collections.backstep.workers.plugins.plugin_utils import notifying
from ansible_collections.backstep.workers.plugins.plugin_utils.answering import NoAnswer, let_go_of_clients, time_limit

# For all that one run sends: a run that is over isn't held for longer by who doesn't answer.
_SECONDS_IN_ALL = 60.0


class ActionModule(ActionBase):
    """Runs on the controller, once for all hosts."""

    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """Send what is due; what was sent and what wasn't, for the hosts to keep."""
        super().run(tmp, task_vars)
        self._variables = task_vars or {}
        self._end = time.monotonic() + _SECONDS_IN_ALL
        args = self._task.args
        pool = str(args["pool"])
        looks = [self._states(variable) for variable in args.get("looks") or []]
        ended = args.get("ended") or {}
        own = dict(ended) if ended.get("pool") == pool else None
        due = [] if self._task.check_mode else notices.due(pool, looks, own, time.time())
        tried, said = [], []
        for notice in due:
            failed, sent = self._send_all(notice)
            tried.append(notices.after(notice, failed))
            said += notifying.lines(tried[-1], sent)
        for line in said:
            Display().display(line)
        return {
            "changed": False,
            "notices": tried,
            "hosts": notices.keepers(looks[-1] if looks else {}, tried),
            "text": said,
        }

    def _states(self, variable: str) -> dict[str, Any]:
        """What each host that has answered has told of itself."""
        hostvars = self._variables["hostvars"]
        answers = {host: hostvars[host].get(variable) for host in self._variables["ansible_play_hosts_all"]}
        return {host: answer["pool_state"] for host, answer in answers.items() if not failure_of(answer, "pool_state")}

    def _send_all(self, notice: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
        """Why each that failed did so, by its name, and the names of those that were sent."""
        variables = {**self._variables, "pool_event": {**notice["event"], "again": notice["tries"] > 0}}
        templar = self._templar.copy_with_new_env(available_variables=variables)
        failed: dict[str, str] = {}
        sent: list[str] = []
        try:
            raw = self._variables.get("pool_notify") or []
            entries = list(templar.template(raw) if isinstance(raw, str) else raw)
        except Exception as error:  # noqa: BLE001 -- whatever a template can do wrong
            return {"pool_notify": notifying.one_line(error)}, []
        for number, entry in enumerate(entries, 1):
            name = notifying.name_of(entry, number)
            if not notifying.is_wanted(entry, name, notice):
                continue
            why = self._send(entry, templar, variables)
            if why:
                failed[name] = why
            else:
                sent.append(name)
        return failed, sent

    def _send(self, entry: dict[str, Any], templar: Any, variables: dict[str, Any]) -> str:
        """Why one could not be sent, without any value that it was called with; "" when it was."""
        args: dict[str, Any] = {}
        try:
            seconds = float(templar.template(entry.get("timeout") or notifying.SECONDS))
            left = self._end - time.monotonic()
            if left <= 0:
                return "there was no time left for it"
            module = notifying.require_module(str(templar.template(entry["module"])))
            args = dict(templar.template(entry.get("args") or {}))
            with time_limit(min(seconds, left)):
                result = self._call(module, args, templar, variables)
        except NoAnswer:
            let_go_of_clients()
            return f"no answer within {min(seconds, left):.0f} s"
        except Exception as error:  # noqa: BLE001 -- a module, a template, or Ansible itself
            return notifying.without_values(notifying.one_line(error), args)
        finally:
            self._tidy()
        if result.get("failed") or result.get("unreachable"):
            return notifying.without_values(notifying.one_line(result.get("msg") or "it failed"), args)
        return ""

    def _call(self, module: str, args: dict[str, Any], templar: Any, variables: dict[str, Any]) -> dict[str, Any]:
        """Do what a task with this module would do."""
        if not self._shared_loader_obj.action_loader.has_plugin(module):
            return dict(self._execute_module(module_name=module, module_args=args, task_vars=variables))
        task = self._task.copy()
        task.action, task.args = module, args
        action = self._shared_loader_obj.action_loader.get(
            module,
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        return dict(action.run(task_vars=variables))

    def _tidy(self) -> None:
        shell = self._connection._shell
        if shell.tmpdir:
            self._remove_tmp_path(shell.tmpdir)
            shell.tmpdir = None
