# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Staying on a release that can't be undone: who would take the host back past its barrier stops here."""

from __future__ import annotations

from typing import Optional

from .._rollout import barriers
from .._rollout.errors import RollbackBarrier
from .._rollout.pool_state import PoolState
from .host import Host


def require_way(host: Host, state: PoolState, target: Optional[str], token: int, cross: bool) -> None:
    """Refuse the way back past a barrier; of an open rollout, note that a person has to decide now.

    :raises RollbackBarrier: the host goes on consuming where it is.
    """
    try:
        barriers.require_crossing(state, target, cross)
    except RollbackBarrier as error:
        rollout = state.rollout
        if rollout and rollout.open:
            if not rollout.held:
                host.note("barrier_held", token, release=error.details["release"], target=target, reason=error.message)
            # It would only stop here as well.
            host.supervisor.disarm_guard()
        raise
