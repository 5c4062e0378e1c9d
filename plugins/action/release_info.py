# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's side of every step that is one call of its module, as ``meta/runtime.yml`` says: it ends in time."""

from __future__ import annotations

from typing import Any, Optional

from ansible_collections.backstep.workers.plugins.plugin_utils.host_action import HostAction


class ActionModule(HostAction):
    """Runs on the controller, once for each host."""

    _supports_async = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """Call the module, whichever it is."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}

        def call() -> dict[str, Any]:
            said = self.call(variables)
            if not self._task.async_val:
                self._remove_tmp_path(self._connection._shell.tmpdir)
            return said

        return {**result, **self.ask(variables, call, self.known())}
