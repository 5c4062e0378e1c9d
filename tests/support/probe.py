# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a worker host, with nothing but its Python: what of a pool is there, as processes and files show it.

Usage: ``python3 -c <this text> ROOT UNIT_PREFIX``. Prints JSON: ``processes`` (the worker processes, by their own
environment), ``files`` (what lies below the root and the pool's units: mode, owner, digest), ``journal`` (its events).
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

UNITS = Path("/etc/systemd/system")


def processes(root: str) -> list[dict[str, Any]]:
    """The main process of each worker of the pool: its id, its parent's, and its environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            raw = (path / "environ").read_bytes().decode("utf-8", "replace")
            environment = dict(item.partition("=")[::2] for item in raw.split("\0") if item)
            # A worker's name ends in its process id, which tells it from the children that execute its tasks.
            worker = environment.get("BACKSTEP_WORKER", "")
            scheduler = environment.get("BACKSTEP_PART") == "scheduler"
            if environment.get("BACKSTEP_ROOT") == root and worker.endswith(f"/{path.name}") and not scheduler:
                found.append({"pid": int(path.name), "user": path.owner(), "environment": environment})
    return sorted(found, key=lambda process: process["pid"])


def describe(path: Path) -> dict[str, Any]:
    """One file, directory or link."""
    status = path.lstat()
    entry: dict[str, Any] = {"mode": oct(stat.S_IMODE(status.st_mode)), "user": pwd.getpwuid(status.st_uid).pw_name}
    if stat.S_ISLNK(status.st_mode):
        return {"link": os.readlink(path)}
    if stat.S_ISREG(status.st_mode):
        entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return entry


def files(root: Path, prefix: str) -> dict[str, Any]:
    """The pool's units, links that enable them included, and all below its root but the code and the journal."""
    paths = [path for folder in (UNITS, UNITS / "multi-user.target.wants") for path in folder.glob(f"{prefix}*")]
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in ("app", "log")]
        paths += [Path(folder) / name for name in [*inner, *names]]
    found = {}
    for path in sorted(paths):
        # A step that is under way writes files under another name first.
        with suppress(FileNotFoundError):
            found[str(path)] = describe(path)
    return found


def main() -> None:
    """Look, and print."""
    root, prefix = sys.argv[1:]
    journal = Path(root) / "state" / "journal.jsonl"
    events = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()] if journal.exists() else []
    print(json.dumps({"processes": processes(root), "files": files(Path(root), prefix), "journal": events}))


if __name__ == "__main__":
    main()
