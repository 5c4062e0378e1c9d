# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The option that names queues. By itself, so that what only asks the broker is sent without what acts on a host."""

from __future__ import annotations

from typing import Any

from ._rollout.errors import BadInput


def queue_groups(queues: list[Any]) -> list[list[str]]:
    """The queues as one list per kind of worker process.

    :raises BadInput: none, an empty name, or a name with white space or commas.
    """
    groups = [[str(name) for name in item] if isinstance(item, list) else [str(item)] for item in queues]
    names = [name for group in groups for name in group]
    if not groups or any(not group for group in groups):
        raise BadInput("pool_queues names no queue.", left="Nothing was changed.")
    for name in names:
        if not name or any(character.isspace() or character in ',{}"' for character in name):
            raise BadInput(f"The queue name {name!r} can't be used.", left="Nothing was changed.")
    return groups
