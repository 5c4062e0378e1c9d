# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the options of ``task_gate`` make of the gates that there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Optional

from ._rollout.errors import BadInput
from ._rollout.gates import CLOSED, OPEN, Gate, closed_by_rollback, require_usable


def wished(params: dict[str, Any], gates: Mapping[str, Gate], now: float) -> dict[str, Optional[Gate]]:
    """The gates that are asked for, by their tasks' names; ``None`` for none.

    One that would only have another date, or another author, is as it is.

    :raises BadInput: a share that can't be meant.
    :raises GateRefused: a retired name.
    """
    operation, by, reason = params["operation"], params["owner"], params["reason"]
    if operation == "close":
        return {gate.task: gate for gate in closed_by_rollback(gates, by, now, reason)}
    task = params["task"]
    before = gates.get(task)
    if operation in ("set", "remove"):
        require_usable(task, before)
    if operation == "remove":
        return {task: None}
    if operation == "reinstate" and before is None:
        raise BadInput(f"There is no gate of {task}.", left="No gate was changed.")
    share = params["open"] if operation == "set" else CLOSED
    if not CLOSED <= share <= OPEN:
        raise BadInput(f"open: {share:g} % can't be; give 0 to 100.", left="No gate was changed.")
    gate = Gate(task, share, by, now, reason, params["on_rollback"], retired=operation == "retire")
    same = before is not None and replace(before, by=by, at=now) == gate
    return {task: before if same else gate}
