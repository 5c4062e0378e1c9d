# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The option that makes what a module does to the queues a part of a rollout."""

from __future__ import annotations

from typing import Any, Optional

from ._rollout.effects import Unit, unit_of

EFFECT_OPTIONS: dict[str, Any] = {"part_of": {"type": "dict"}}


def unit_in(params: dict[str, Any], dry_run: bool) -> Optional[Unit]:
    """The rollout that this is a part of, if there is one, and anything is done at all.

    :raises BadInput: it can't be meant.
    """
    unit = unit_of(params["part_of"]) if params["part_of"] else None
    return None if dry_run else unit
