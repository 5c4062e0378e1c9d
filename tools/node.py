# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Node packages that tests run: what requirements/node/package.json names, as the lock file beside it pins them."""

from __future__ import annotations

import json
import shutil

from tools.common import BUILD, LOCKS, run, say

HOME = BUILD / "node"
MODULES = HOME / "node_modules"
_PINS = LOCKS / "node"
_LOCK = "package-lock.json"
_STAMP = MODULES / ".pins"
_SECONDS = 600
# A faster MessagePack, compiled for each platform, without which it works as well. npm leaves the platforms that a
# machine isn't out of its lock, and refuses that lock afterwards.
_COMPILED = ("msgpackr-extract", "node-gyp-build-optional-packages", "detect-libc")


def programs() -> dict[str, str]:
    """The Debian packages by the programs that are needed; npm only where something has yet to be installed."""
    return {"node": "nodejs"} if _is_current() else {"node": "nodejs", "npm": "npm"}


def ensure() -> None:
    """Install what the lock says, unless it is there. No package runs a program of its own for that."""
    if _is_current():
        return
    say("installing Node packages")
    HOME.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", _LOCK):
        shutil.copy(_PINS / name, HOME / name)
    run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], timeout=_SECONDS, cwd=HOME)
    shutil.copy(_PINS / _LOCK, _STAMP)


def lock() -> None:
    """Pin everything that package.json needs, with hashes and without the registry's name."""
    (_PINS / _LOCK).unlink(missing_ok=True)
    options = ["--package-lock-only", "--ignore-scripts", "--no-audit", "--no-fund"]
    run(["npm", "install", *options, "--omit-lockfile-registry-resolved"], timeout=_SECONDS, cwd=_PINS)
    pins = json.loads((_PINS / _LOCK).read_text(encoding="utf-8"))
    kept = {path: pin for path, pin in pins["packages"].items() if not any(name in path for name in _COMPILED)}
    for pin in kept.values():
        for name in _COMPILED:
            pin.get("optionalDependencies", {}).pop(name, None)
    (_PINS / _LOCK).write_text(json.dumps({**pins, "packages": kept}, indent=2) + "\n", encoding="utf-8")
    say(f"wrote {_LOCK}")


def _is_current() -> bool:
    return _STAMP.exists() and _STAMP.read_bytes() == (_PINS / _LOCK).read_bytes()
