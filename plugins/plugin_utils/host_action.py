# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every step that speaks to a host has in common on the controller: it ends, whatever has become of the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

from ansible import constants as C
from ansible.plugins.action import ActionBase
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import HostSilent
from ansible_collections.backstep.workers.plugins.plugin_utils.answering import (
    STEP_SECONDS,
    NoAnswer,
    SilentHosts,
    gave_no_answer,
    known_seconds,
    let_go_of_clients,
    not_asked,
    time_limit,
)


class HostAction(ActionBase):
    """An action that asks its host through ``ask`` only."""

    _supports_check_mode = True

    def ask(self, variables: dict[str, Any], work: Callable[[], dict[str, Any]], known: float) -> dict[str, Any]:
        """Do ``work``, which speaks to the host; a host that gives no answer in time is one that can't be reached.

        :param variables: the task's.
        :param known: how many seconds ``work`` may wait for by itself.
        """
        host = str(self._task.delegate_to or variables.get("inventory_hostname"))
        silent = SilentHosts(Path(C.DEFAULT_LOCAL_TMP))
        if silent.seconds(host):
            return _unreachable(not_asked(host, silent.seconds(host)))
        seconds = self._step_seconds() and self._step_seconds() + known
        try:
            with time_limit(seconds):
                return work()
        except NoAnswer:
            # Ansible would ask the host to remove it, and wait.
            self._connection._shell.tmpdir = None
            if not getattr(self._connection, "_remote_is_local", False):
                let_go_of_clients()
            silent.add(host, seconds)
            return _unreachable(gave_no_answer(host, seconds))

    def known(self, size: int = 0) -> float:
        """How many seconds this step may wait for by itself, as its options say."""
        return known_seconds(self._task.action.rpartition(".")[2], self._task.args, size)

    def _step_seconds(self) -> float:
        try:
            return max(0.0, float(self._task.args.get("step_timeout", STEP_SECONDS)))
        except (TypeError, ValueError):
            return STEP_SECONDS  # the module will refuse it


def _unreachable(error: HostSilent) -> dict[str, Any]:
    return {"unreachable": True, "changed": False, **error.result()}
