# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds the Pythons that an environment can be made with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tools.common import LOCKS, ToolError

# The answer of a Python that can make an environment with pip in it. Debian ships ensurepip apart, as python3-venv.
PROBE = "import sys, venv, ensurepip; print(sys.version_info[0], sys.version_info[1], sys.version_info[3])"


@dataclass(frozen=True)
class Python:
    """One usable Python: ``version`` is like (3, 13)."""

    path: Path
    version: tuple[int, int]

    @property
    def name(self) -> str:
        return f"{self.version[0]}.{self.version[1]}"


def locked_versions(profile: str) -> list[tuple[int, int]]:
    """The Python versions that the profile has a lock file for, newest first."""
    names = [path.stem.rsplit("-py", 1)[1] for path in LOCKS.glob(f"{profile}-py*.txt")]
    return sorted(((int(name[0]), int(name[1:])) for name in names), reverse=True)


def candidates(version: tuple[int, int]) -> Iterator[Path]:
    """Where such a Python may be. A version manager's shim can refuse to run, so its real files are looked at too."""
    name = f"python{version[0]}.{version[1]}"
    for folder in [*os.environ.get("PATH", "").split(os.pathsep), "/usr/local/bin", "/usr/bin"]:
        if folder:
            yield Path(folder, name)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    # Of a folder that this user may not enter, nothing can be run either.
    with suppress(PermissionError):
        yield from sorted(pyenv.glob(f"versions/*/bin/{name}"), reverse=True)


def probe(path: Path) -> Python | None:
    """The Python at this path, or None when it is not there, refuses, is a pre-release or can't make environments."""
    if not os.access(path, os.X_OK):
        return None
    try:
        answer = subprocess.run(
            [str(path), "-c", PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = answer.stdout.split()
    if len(words) != 3 or words[2] != "final":
        return None
    return Python(path, (int(words[0]), int(words[1])))


def find(version: tuple[int, int]) -> Python | None:
    """A usable Python of exactly this version, or None."""
    for path in candidates(version):
        found = probe(path)
        if found and found.version == version:
            return found
    return None


def newest(profile: str) -> Python | None:
    """The newest usable Python that the profile has a lock file for, or None. ``PYTHON`` in the environment decides.

    :raises ToolError: ``PYTHON`` names one that can't be used.
    """
    wanted = os.environ.get("PYTHON")
    versions = locked_versions(profile)
    if wanted:
        chosen = probe(Path(wanted))
        if chosen is None or chosen.version not in versions:
            known = ", ".join(f"{major}.{minor}" for major, minor in versions)
            raise ToolError(f"PYTHON={wanted} can't be used: it must be the path of one of {known}, with venv and pip.")
        return chosen
    return next((found for version in versions if (found := find(version))), None)
