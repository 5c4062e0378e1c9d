# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of supervisors: adding one means adding its file and one line here."""

from __future__ import annotations

from ..._rollout.errors import BadInput
from ..layout import Layout, Pool
from .base import Supervisor
from .supervisord import Supervisord
from .systemd import Systemd

SUPERVISORS: dict[str, type[Supervisor]] = {kind.name: kind for kind in (Systemd, Supervisord)}


def open_supervisor(pool: Pool, layout: Layout) -> Supervisor:
    """The supervisor that a pool's workers run under on this host.

    :raises BadInput: no such supervisor.
    """
    kind = SUPERVISORS.get(pool.supervisor)
    if kind is None:
        raise BadInput(
            f"pool_supervisor '{pool.supervisor}' is not known; choose one of: {', '.join(sorted(SUPERVISORS))}.",
            left="Nothing was changed.",
        )
    return kind(pool, layout)
