# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every step that speaks to a host has in common on the controller: it ends, whatever has become of the host."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
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
from ansible_collections.backstep.workers.plugins.plugin_utils.drain_parts import in_parts, may_drain
from ansible_collections.backstep.workers.plugins.plugin_utils.progress import Board, Ticker
from ansible_collections.backstep.workers.plugins.plugin_utils.text_progress import Waiting

_TERMINAL = "backstep.workers.terminal"


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
        name = str(variables.get("inventory_hostname"))
        waiting = Waiting(name, self._module(), 0.0, known, 0.0 if math.isinf(seconds) else seconds, asked=host)
        self._say_step()
        board, drains = Board(Path(C.DEFAULT_LOCAL_TMP)), may_drain(self._module(), self._task.args)
        self._ticker = Ticker(board, waiting, _show, Display().columns, drains)
        try:
            with self._ticker.running(), time_limit(seconds):
                return work()
        except AnsibleConnectionFailure:
            self._leave_files()
            raise
        except NoAnswer:
            self._leave_files()
            if not getattr(self._connection, "_remote_is_local", False):
                let_go_of_clients()
            silent.add(host, seconds)
            return _unreachable(gave_no_answer(host, seconds))

    def cleanup(self, force: bool = False) -> None:
        """Have the host remove what was sent to it, which may take no longer than a step.

        Where the network is gone by then, the system would send it again for a quarter of an hour.
        """
        try:
            with time_limit(self._step_seconds()):
                super().cleanup(force)
        except NoAnswer:
            let_go_of_clients()

    def _leave_files(self) -> None:
        """Ansible would ask the host to remove them, and wait."""
        self._connection._shell.tmpdir = None

    def call(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Call the module of the task, in parts if it has a drain to wait for; within ``ask``."""

        def once(args: Mapping[str, Any]) -> dict[str, Any]:
            name, background = self._task.action, self._task.async_val
            said: dict[str, Any] = self._execute_module(name, dict(args), task_vars=variables, wrap_async=background)
            return said

        if self._task.check_mode or self._task.async_val or not may_drain(self._module(), self._task.args):
            return once(self._task.args)
        return in_parts(self._task.args, once, self._ticker.note)

    def known(self, size: int = 0) -> float:
        """How many seconds this step may wait for by itself, as its options say."""
        return known_seconds(self._module(), self._task.args, size)

    def _say_step(self) -> None:
        """Where no banner says it, each step that is really taken is a line, by whichever host takes it first."""
        # ansible-runner, and so AWX, shows what a callback shows by one of its own, and says there whose it is.
        shown = (C.DEFAULT_STDOUT_CALLBACK, os.environ.get("ORIGINAL_STDOUT_CALLBACK"))
        if _TERMINAL in shown and Display().verbosity == 0:
            with contextlib.suppress(OSError):
                if Board(Path(C.DEFAULT_LOCAL_TMP)).is_first(f"{self._task._uuid} {self._task.name}"):
                    Display().display(f"  {self._task.name}")

    def _module(self) -> str:
        return str(self._task.action.rpartition(".")[2])

    def _step_seconds(self) -> float:
        try:
            return max(0.0, float(self._task.args.get("step_timeout", STEP_SECONDS)))
        except (TypeError, ValueError):
            return STEP_SECONDS  # the module will refuse it


def _show(line: str) -> None:
    """At once, also into a pipe: standard output is kept back there until there is more of it."""
    Display().display(line, stderr=True)


def _unreachable(error: HostSilent) -> dict[str, Any]:
    return {"unreachable": True, "changed": False, **error.result()}
