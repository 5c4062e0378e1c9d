# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that all modules for the broker share, and what they are turned into."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any, Optional

from ._queue.engine import Engine, unique
from ._queue.table import open_engine
from ._queue_args import queue_groups
from ._rollout.errors import BadInput

BROKER_OPTIONS: dict[str, Any] = {
    "engine": {"type": "str", "required": True},
    "broker_url": {"type": "str", "required": True, "no_log": True},
    "timeout": {"type": "float", "default": 5.0},
    "step_timeout": {"type": "float", "default": 120.0},
}


def open_broker(params: dict[str, Any]) -> Engine:
    """The broker that the options name.

    :raises BadInput: unknown engine, missing client library, a URL or time-out that can't be used.
    """
    if params["timeout"] <= 0:
        raise BadInput(f"A timeout of {params['timeout']} s leaves no time to answer.", left="Nothing was changed.")
    return open_engine(params["engine"], params["broker_url"], params["timeout"])


def queue_names(queues: list[Any]) -> list[str]:
    """Every queue once; an item of the option may be a list of queues that one process listens to."""
    return unique(name for group in queue_groups(queues) for name in group)


def moment(option: str, text: Optional[str]) -> Optional[float]:
    """Epoch seconds of an ISO 8601 time; without an offset it is UTC.

    :raises BadInput: it isn't one.
    """
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise BadInput(
            f"{option} '{text}' is no time like 2026-11-21T03:00:00Z.", left="Nothing was changed."
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()


def as_result(found: Any) -> dict[str, Any]:
    """A dataclass of the contract as a module returns it."""
    return asdict(found)
