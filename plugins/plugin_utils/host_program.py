# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Builds the host program: one zip archive of the code that the modules run."""

from __future__ import annotations

import functools
import io
import zipfile
from pathlib import Path

_UTILS = Path(__file__).resolve().parent.parent / "module_utils"
_PACKAGES = ("_rollout", "_waiting", "_host")
_MAIN = "from backstep._host.program import main\n\nraise SystemExit(main())\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)


@functools.lru_cache(maxsize=1)
def build_host_program() -> bytes:
    """The bytes of ``bin/backstep``; the same code gives the same bytes."""
    files = {"__main__.py": _MAIN, "backstep/__init__.py": ""}
    for package in _PACKAGES:
        for path in sorted((_UTILS / package).rglob("*.py")):
            files[f"backstep/{path.relative_to(_UTILS)}"] = path.read_text(encoding="utf-8")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), text, zipfile.ZIP_DEFLATED)
    return b"#!/usr/bin/env python3\n" + stream.getvalue()
