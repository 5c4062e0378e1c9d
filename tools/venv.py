# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes virtual environments from lock files, once."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from tools.common import LOCKS, run, say
from tools.pythons import Python

STAMP = ".backstep.json"


def lock_file(profile: str, python: Python) -> Path:
    """The lock file of a profile for this Python."""
    return LOCKS / f"{profile}-py{python.version[0]}{python.version[1]}.txt"


def digest(path: Path) -> str:
    """The content of a file as a short name."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def ensure(folder: Path, python: Python, profile: str) -> None:
    """Have an environment with exactly what the profile's lock file names; nothing is done if it is there.

    :raises ToolError: pip failed; the environment is then made anew the next time.
    """
    lock = lock_file(profile, python)
    stamp = read_stamp(folder)
    if stamp.get("python") == str(python.path) and stamp.get(profile) == digest(lock):
        return
    # The demo's lock is part of the test's, so one environment can grow; anything else starts afresh.
    profiles = {name: digest(lock_file(name, python)) for name in stamp if name != "python"}
    if stamp != {"python": str(python.path), **profiles}:
        shutil.rmtree(folder, ignore_errors=True)
        stamp = {"python": str(python.path)}
        say(f"making {folder.name} with Python {python.name}")
        run([python.path, "-m", "venv", folder], timeout=120)
    say(f"installing {lock.name} into {folder.name}")
    (folder / STAMP).unlink(missing_ok=True)
    pip: list[str | Path] = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    run([*pip, "--require-hashes", "--requirement", lock], timeout=900)
    stamp[profile] = digest(lock)
    (folder / STAMP).write_text(json.dumps(stamp), encoding="utf-8")


def read_stamp(folder: Path) -> dict[str, str]:
    """What was installed from which lock; empty if the environment is not there, unfinished, or its Python is gone."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not (folder / "bin" / "python").exists() or not isinstance(stamp, dict):
        return {}
    return {str(key): str(value) for key, value in stamp.items()}
