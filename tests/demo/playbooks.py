# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the collection's playbooks as a person would, showing what matters and keeping everything in a log."""

from __future__ import annotations

import json
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.demo.stand import HOSTS, Stand
from tools.common import ToolError

_SECONDS = 90.0
# What Ansible says of each task, and where in which file. The collection's own lines, and what fails, are what is left.
_ROUTINE = re.compile(r"(PLAY|TASK|ok:|changed:|skipping:|included:|fatal:|Origin:|\S+ +: ok=|\d+( |$)|\s+\^ column|$)")
_ERROR = "[ERROR]: Task failed: Action failed: "
_RECAP = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Played:
    """How a playbook ended."""

    status: int
    output: str
    seconds: float

    @property
    def changed(self) -> dict[str, int]:
        """Changed tasks by host, as Ansible counts them."""
        return {host: int(changed) for host, changed in _RECAP.findall(self.output)}


def command(stand: Stand, playbook: str, *options: str, **variables: Any) -> list[str]:
    """What runs ``backstep.workers.<playbook>``."""
    words = ["ansible-playbook", "-i", str(stand.inventory), f"backstep.workers.{playbook}", *options]
    return [*words, "-e", json.dumps(variables)]


def play(stand: Stand, logs: Path, name: str, playbook: str, **variables: Any) -> Played:
    """Run ``backstep.workers.<playbook>``, its log in ``<logs>/<name>.log``.

    :raises ToolError: it took longer than any demo can.
    """
    version = f" -e pool_version={variables['pool_version']}" if "pool_version" in variables else ""
    print(f"\n$ ansible-playbook backstep.workers.{playbook}{version}", flush=True)
    began = time.monotonic()
    lines: list[str] = []
    with (logs / f"{name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command(stand, playbook, **variables), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env=stand.environment(), cwd=stand.folder, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None  # asked for above
        for line in process.stdout:
            if not _ROUTINE.match(line) and not _is_said(line, lines):
                print(f"  {line}", end="", flush=True)
            lines.append(line)
            log.write(line)
            log.flush()
            if time.monotonic() - began > _SECONDS:
                raise ToolError(f"{playbook} took more than {_SECONDS:.0f} s. See {log.name}")
        status = process.wait(_SECONDS)
    return Played(status, "".join(lines), time.monotonic() - began)


def deploy_alone(stand: Stand, logs: Path, version: str, build: str = "letters", **variables: Any) -> Played:
    """Deploy a version to the first host alone, from one of the builds, without config."""
    chosen = {
        "pool_hosts": HOSTS[0],
        "pool_version": version,
        "pool_source": {"directory": str(stand.folder / "builds" / build)},
        "pool_config": [],
    }
    return play(stand, logs, f"deploy-{version}", "deploy", **{**chosen, **variables})


def _is_said(line: str, before: list[str]) -> bool:
    """Whether this is Ansible's repetition of what the collection has just said itself."""
    return line.startswith(_ERROR) and line[len(_ERROR) :] in before
