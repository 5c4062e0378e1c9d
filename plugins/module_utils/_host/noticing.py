# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeping in the journal which notifications of a rollout's end were sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .host import Host


def note_notices(host: Host, notices: Sequence[dict[str, Any]], check_mode: bool) -> list[dict[str, Any]]:
    """Note each that the journal doesn't have like this; what was done, or would be.

    No lease is needed: nothing that a rollout decides rests on it, and the rollout that it tells of is over.
    """
    with host.locked():
        known = host.state().notices
        new = [notice for notice in notices if known.get(notice["id"]) != notice]
        for notice in [] if check_mode else new:
            host.note("notified", int(notice["rollout"]), notice=notice)
    return [{"action": "note", "id": notice["id"], "left": notice["left"]} for notice in new]
