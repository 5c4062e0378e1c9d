# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between the configs of two releases, told without a word of what is in them. Pure.

A config may hold secrets, and a report is read by many. So files are told by name and by how many lines differ, and
variables of the environment by name. No checksum is told either: that of a short secret can be guessed.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any, Optional

ENVIRONMENT = "environment"
"""The file that ``pool_env`` is kept in: one variable in each line."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Files = Mapping[str, Optional[bytes]]


def changes(left: Files, restored: Files) -> list[dict[str, Any]]:
    """The files that differ, by name.

    :param left: the config of the release that was left: content by name, None where it is too long to compare.
    :param restored: that of the release that runs now.
    :returns: ``{file, how, added, removed, names}``; ``how`` is ``added``, ``removed`` or ``changed``, ``added`` and
        ``removed`` count lines (None: not counted), ``names`` are the variables of the environment that differ.
    """
    found = []
    for name in sorted({*left, *restored}):
        before, after = left.get(name), restored.get(name)
        how = "changed" if name in left and name in restored else "added" if name in restored else "removed"
        if how == "changed" and before == after and before is not None:
            continue
        entry: dict[str, Any] = {"file": name, "how": how, "added": None, "removed": None, "names": []}
        if not (name in left and before is None) and not (name in restored and after is None):
            old, new = Counter((before or b"").splitlines()), Counter((after or b"").splitlines())
            entry.update(added=sum((new - old).values()), removed=sum((old - new).values()))
            if name == ENVIRONMENT:
                entry.update(names=_variables(before or b"", after or b""))
        found.append(entry)
    return found


def _variables(before: bytes, after: bytes) -> list[str]:
    old, new = _words(before), _words(after)
    names = {word.partition("=")[0] for word in set(old) ^ set(new)}
    return sorted(name for name in names if _NAME.fullmatch(name))


def _words(text: bytes) -> list[str]:
    """``NAME=value`` each; a value may have several lines, which are not to be taken for names."""
    try:
        return shlex.split(text.decode("utf-8", "replace"))
    except ValueError:
        return []
