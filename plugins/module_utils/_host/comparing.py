# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between the configs of two stored releases: in numbers for the journal, in lines for root alone."""

from __future__ import annotations

import difflib
from typing import Any, Optional

from .._rollout.changes import changes
from .._rollout.errors import BackstepError
from .host import Host


def config_changes(host: Host, left: Optional[str], restored: Optional[str]) -> dict[str, Any]:
    """What a way back has changed of the config, for the journal: nothing of what the files hold.

    :returns: ``config``, see ``changes.changes``, or ``config_problem``, why it is not known: no way back fails over
        that. Empty where there are no two releases to compare.
    """
    if not left or not restored or left == restored:
        return {}
    try:
        return {"config": changes(host.store.config_files(left), host.store.config_files(restored))}
    except BackstepError as error:
        return {"config_problem": error.message}


def config_lines(host: Host, left: str, restored: str) -> list[str]:
    """The lines that differ, as a unified diff. They may hold secrets: for whoever may read the files anyway.

    :raises ReleaseDamaged: the config of one can't be read.
    """
    before, after = host.store.config_files(left), host.store.config_files(restored)
    lines: list[str] = []
    for name in sorted({*before, *after}):
        if before.get(name, b"") is None or after.get(name, b"") is None:
            lines.append(f"{name} is too long to be compared")
            continue
        old, new = (_text(files.get(name)) for files in (before, after))
        lines += difflib.unified_diff(old, new, f"{left}/{name}", f"{restored}/{name}", lineterm="")
    return lines


def _text(content: Optional[bytes]) -> list[str]:
    return (content or b"").decode("utf-8", "replace").splitlines()
