# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of a host as one line of its journal, in place of older lines that add up to it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from .errors import JournalDamaged
from .pool_state import Barrier, Draining, Lease, PoolState, Reaped, Release, Rollout

SO_FAR = "so_far"
"""The first line of a journal that was cut: what the lines before it add up to."""
CUT = "journal_cut"
"""The last line of a journal when it was cut: evidence of that, and of how its new first line reads."""

_ONE = {"rollout": Rollout, "lease": Lease}
_BY_NAME = {"releases": Release, "barriers": Barrier, "draining": Draining, "reaped": Reaped}


def told(state: PoolState) -> dict[str, Any]:
    """A state as plain JSON."""
    return asdict(state)


def state_from(plain: Mapping[str, Any]) -> PoolState:
    """The state that ``told`` has told.

    :raises JournalDamaged: it is none.
    """
    try:
        # A line from before there were notices has none.
        found = {"notices": {}, **plain}
        for name, kind in _ONE.items():
            found[name] = kind(**found[name]) if found[name] is not None else None
        for name, kind in _BY_NAME.items():
            found[name] = {key: kind(**value) for key, value in found[name].items()}
        if set(found) != {part.name for part in fields(PoolState)}:
            raise ValueError(sorted(found))
        return PoolState(**found)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise JournalDamaged(
            "The first line of the journal, which stands for older ones, can't be read.",
            left="Nothing was changed.",
            next_step="Compare the file with a backup. What runs is not affected.",
        ) from None
