# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Standard output of a rollout without Ansible's own lines on each task and host."""

from __future__ import annotations

DOCUMENTATION = r"""
name: terminal
type: stdout
short_description: Show of a rollout what a person has to know
version_added: 0.1.0
author:
  - Backstep contributors (@backstep)
description:
  - Of the tasks of the role P(backstep.workers.pool#role) it shows a line for each step that is really taken, what the
    role itself says, and failures as one sentence. What is skipped, included or fine on a host is left out, so that
    a rollout reads the same on one host and on a hundred.
  - All other plays and tasks are shown as by P(ansible.builtin.default#callback), and with C(-v) everything is.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
requirements:
  - set as stdout in configuration
"""

from typing import Any

from ansible import constants as C
from ansible.plugins.callback.default import CallbackModule as Default
from ansible_collections.backstep.workers.plugins.plugin_utils.text import hosts_text
from ansible_collections.backstep.workers.plugins.plugin_utils.text_end import wrapped

_ROLE = "backstep.workers.pool"


class CallbackModule(Default):
    """Ansible's own, with less of what the role's tasks say."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "backstep.workers.terminal"

    def __init__(self) -> None:
        super().__init__()
        self._only_own = True
        self._told: set[tuple[str, str]] = set()
        """What has failed why: a hundred hosts may all say the same."""
        self._for_all: set[str] = set()
        """Hosts on which Ansible counts what failed for the run as a whole."""

    def _is_own(self, task: Any) -> bool:
        """Whether a task is the role's, and nobody has asked for more."""
        own = task.get_name().startswith(f"{_ROLE} :") or getattr(task, "_role_name", None) == _ROLE
        self._only_own = self._only_own and own
        return own and self._display.verbosity == 0

    def _task_start(self, task: Any, prefix: Any = None) -> None:
        if not self._is_own(task):
            super()._task_start(task, prefix)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        """Nothing of what the role includes."""
        if not self._is_own(included_file._task):
            super().v2_playbook_on_include(included_file)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Only what it warns of."""
        if self._is_own(_task(result)):
            self._handle_warnings(_said(result))
        else:
            super().v2_runner_on_ok(result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Nothing."""
        if not self._is_own(_task(result)):
            super().v2_runner_on_skipped(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """In a sentence, without where in the role that is."""
        if self._is_own(_task(result)):
            self._say("failed", result)
        else:
            super().v2_runner_on_failed(result, ignore_errors)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """In a sentence."""
        if self._is_own(_task(result)):
            self._say("no answer", result)
        else:
            super().v2_runner_on_unreachable(result)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        """Nothing."""
        if not self._is_own(_task(result)):
            super().v2_runner_item_on_ok(result)

    def v2_runner_item_on_skipped(self, result: Any) -> None:
        """Nothing."""
        if not self._is_own(_task(result)):
            super().v2_runner_item_on_skipped(result)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        """In a sentence."""
        if self._is_own(_task(result)):
            self._say("failed", result)
        else:
            super().v2_runner_item_on_failed(result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """By name only those with which something is wrong."""
        if self._display.verbosity or not self._only_own:
            super().v2_playbook_on_stats(stats)
            return
        counts = {host: stats.summarize(host) for host in sorted(stats.processed)}
        failed = [host for host, count in counts.items() if count["failures"] and host not in self._for_all]
        silent = [host for host, count in counts.items() if count["unreachable"]]
        self._display.banner("PLAY RECAP")
        for what, hosts in (("failed", failed), ("no answer", silent)):
            if hosts:
                self._display.display(f"{what}: {hosts_text(hosts, len(hosts))}", color=C.COLOR_ERROR)
        if self._for_all or failed or silent:
            self._display.display("This run has failed, as is said above.", color=C.COLOR_ERROR)
        else:
            self._display.display(f"{len(counts)} hosts, nothing has failed.", color=C.COLOR_OK)

    def _say(self, what: str, result: Any) -> None:
        said = _said(result)
        self._handle_warnings(said)
        why = said.get("msg") or said.get("censored") or "it gave no reason; ask for more with -v"
        task, host = _task(result), _host(result)
        if task.run_once:
            self._for_all.add(host)
        if (task._uuid, why) in self._told:
            return
        self._told.add((task._uuid, why))
        where = "" if task.run_once else f" [{host}]:"
        to_stderr = self.get_option("display_failed_stderr")
        for line in wrapped(" ".join(f"{what}:{where} {why}".split()).splitlines(), self._display.columns):
            self._display.display(line, color=C.COLOR_ERROR, stderr=to_stderr)


def _task(result: Any) -> Any:
    return result.task if hasattr(result, "task") else result._task


def _said(result: Any) -> Any:
    return result.result if hasattr(result, "result") else result._result


def _host(result: Any) -> Any:
    return (result.host if hasattr(result, "host") else result._host).get_name()
