# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who this run is, and which other runs on this controller are dead."""

from __future__ import annotations

import getpass
import os
import platform
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Optional

from ansible_collections.backstep.workers.plugins.module_utils._rollout.pool_state import ROLLBACK
from ansible_collections.backstep.workers.plugins.module_utils._rollout.rules import describe_owner


def _start_of(pid: int) -> Optional[str]:
    """When a process started, in clock ticks since boot; None when there is no such process (or no /proc)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _process_ids() -> str:
    """Which set of process ids this is: containers that share their machine's name have sets of their own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def launched(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Who launched this run and as what, where that is a job of AWX: there, user and process say nothing to a person.

    :param variables: of the task; AWX hands some of its own to every job.
    """
    for prefix in ("awx", "tower"):
        job = variables.get(f"{prefix}_job_id")
        if job is not None:
            return {"job": str(job), "user": str(variables.get(f"{prefix}_user_name") or "schedule")}
    return {}


def this_run() -> dict[str, Any]:
    """The owner of this run's leases. Actions run in children of ``ansible-playbook``, hence the parent's id."""
    pid = os.getppid()
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return {
        "run": uuid.uuid4().hex,
        "user": user,
        "controller": platform.node(),
        "pid": pid,
        "started": _start_of(pid),
        "boot": _boot(),
        "pids": _process_ids(),
    }


def dead_runs(answers: Mapping[str, Any]) -> set[str]:
    """The runs that hold leases and were started on this controller, whose processes are proven to be gone."""
    found = set()
    for answer in answers.values():
        lease = ((answer or {}).get("pool_state") or {}).get("lease")
        if lease and _is_dead(lease["owner"]):
            found.add(lease["owner"]["run"])
    return found


def taken_over(answers: Mapping[str, Any], dead: Collection[str]) -> list[str]:
    """A line for each living run of a deploy whose leases a rollback takes from it."""
    found = set()
    for answer in answers.values():
        lease = ((answer or {}).get("pool_state") or {}).get("lease")
        if lease and lease["kind"] != ROLLBACK and lease["owner"].get("run") not in dead:
            found.add(f"  takes over from {describe_owner(lease['owner'])}, whose deploy holds the pool")
    return sorted(found)


def _is_dead(owner: Mapping[str, Any]) -> bool:
    here = owner.get("controller") == platform.node() and bool(owner.get("boot")) and bool(owner.get("started"))
    if not here or not owner.get("run") or owner.get("pids", "") != _process_ids():
        return False
    if owner["boot"] != _boot():
        return True
    return _start_of(int(owner["pid"])) != str(owner["started"])
