# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drills: a rollout of what runs already, made to fail, to see that the way back works and how long it takes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Optional

from .names import utc

CRASH = "crash"
"""The workers end as soon as they are started."""
NEVER_CONSUMES = "never_consumes"
"""The processes are up, and take no task."""
LATE = "late"
"""The workers work, and end within the bake time."""
KINDS = (CRASH, NEVER_CONSUMES, LATE)


def drill_sentence(drill: Mapping[str, Any]) -> str:
    """A drill that has ended, as a person reads it.

    :param drill: as in ``PoolState``.
    """
    how = "passed" if drill["passed"] else "DID NOT PASS"
    return f"{drill['kind']} on {utc(drill['ended'])} (rollout {drill['token']}): {how}"


def last_drill(states: Iterable[Mapping[str, Any]]) -> Optional[dict[str, Any]]:
    """The last drill that any host knows of; None where there was none.

    :param states: each host's ``pool_state``, as ``release_info`` tells it.
    """
    drills: list[dict[str, Any]] = [state["drill"] for state in states if state.get("drill")]
    return max(drills, key=lambda drill: drill["token"], default=None)
