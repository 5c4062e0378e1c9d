# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian packages: installs what is missing when root, and says what to install when not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.common import ToolError, run, say

POLICY = Path("/usr/sbin/policy-rc.d")
SECONDS = 900


def have(program: str) -> bool:
    """Whether the program is on PATH or where Debian keeps a daemon."""
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is not None


def install(packages: Iterable[str]) -> None:
    """Install Debian packages, starting none of the services they bring.

    :raises ToolError: not root, no apt-get, or it failed.
    """
    names = sorted(set(packages))
    if not names:
        return
    line = f"apt-get install --no-install-recommends {' '.join(names)}"
    if os.geteuid() != 0:
        raise ToolError(f"Missing on this machine: {', '.join(names)}. Nothing was installed. As root, type: {line}")
    if not have("apt-get"):
        raise ToolError(f"Missing on this machine: what Debian calls {', '.join(names)}. Install that.")
    say(f"installing packages: {' '.join(names)}")
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *names]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with nothing_started():
        # Package lists are fetched only if those at hand don't do: they may be fresh, and the network may be slow.
        if run(command, timeout=SECONDS, env=env, check=False).returncode != 0:
            run(["apt-get", "update", "-qq"], timeout=SECONDS)
            run(command, timeout=SECONDS, env=env)


@contextmanager
def nothing_started() -> Iterator[None]:
    """Keep package scripts from starting services, unless the machine already has a rule of its own for that."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
