# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes what each module did, or would do, into the file that BACKSTEP_ACTIONS names: a JSON object a line."""

from __future__ import annotations

import json
import os
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: backstep_actions
type: aggregate
short_description: Keep the actions of every step
description: For tests that compare runs.
"""


class CallbackModule(CallbackBase):
    """Appends one line for each result that has actions."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "backstep_actions"

    def v2_runner_on_ok(self, result: Any) -> None:
        """A task went well on a host."""
        found = result._result if hasattr(result, "_result") else result.result
        task = result._task if hasattr(result, "_task") else result.task
        host = result._host if hasattr(result, "_host") else result.host
        if "actions" in found:
            line = {"task": task.get_name(), "host": host.get_name(), "actions": found["actions"]}
            with open(os.environ["BACKSTEP_ACTIONS"], "a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
