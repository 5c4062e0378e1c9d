# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What really runs: the processes of a release, as the processes themselves tell it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

from .layout import PART_VARIABLE, SCHEDULER_INDEX, Part

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
HOOK_MARK = "BACKSTEP_HOOK"
_MARKS = ("BACKSTEP_ROOT", "BACKSTEP_RELEASE", "BACKSTEP_WORKER", PART_VARIABLE, HOOK_MARK)


@dataclass(frozen=True)
class Process:
    """One process. ``release`` and ``worker`` are what its own environment, working directory or cgroup say of it.

    ``scheduler`` tells that it says so of itself; one that says nothing is known to the supervisor (``Host.running``).
    """

    pid: int
    parent: int
    started: float
    release: Optional[str]
    worker: Optional[str]
    scheduler: bool = False


def _read(path: str) -> Optional[bytes]:
    """The bytes of a file below /proc; None when the process has gone or may not be looked into."""
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def _stat_fields(pid: int) -> Optional[list[str]]:
    """The fields of /proc/<pid>/stat from the state on (proc(5) numbers them from 3); None when it has gone."""
    raw = _read(f"/proc/{pid}/stat")
    return raw.decode("utf-8", "replace").rpartition(")")[2].split() if raw else None


def _marks(pid: int) -> dict[str, str]:
    found = {}
    for item in (_read(f"/proc/{pid}/environ") or b"").split(b"\0"):
        name, separator, value = item.partition(b"=")
        if separator and name.decode("ascii", "replace") in _MARKS:
            found[name.decode()] = value.decode("utf-8", "replace")
    return found


def _working_directory(pid: int) -> str:
    """Where a process without a terminal works: a person's shell in a release's directory is no worker."""
    stat = _stat_fields(pid)
    if stat is None or stat[4] != "0":
        return ""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def _release_of(pid: int, root: Path, unit_prefix: str) -> tuple[Optional[str], Optional[str], bool]:
    """A program that renames itself may overwrite its environment (setproctitle does), hence three witnesses.

    :returns: its release, its worker's name, and whether it says that it is a scheduler.
    """
    marks = _marks(pid)
    if HOOK_MARK in marks:
        return None, None, False
    if marks.get("BACKSTEP_ROOT") == str(root) and marks.get("BACKSTEP_RELEASE"):
        scheduler = marks.get(PART_VARIABLE) == Part.SCHEDULER.value
        return marks["BACKSTEP_RELEASE"], marks.get("BACKSTEP_WORKER"), scheduler
    if "BACKSTEP_ROOT" in marks:
        return None, None, False
    releases = f"{root}/releases/"
    directory = _working_directory(pid)
    if directory.startswith(releases):
        return directory[len(releases) :].split("/", 1)[0], None, False
    cgroup = (_read(f"/proc/{pid}/cgroup") or b"").decode("utf-8", "replace")
    for part in cgroup.replace("\n", "/").split("/"):
        if part.startswith(unit_prefix) and part.endswith(".service"):
            release, dash, index = part[len(unit_prefix) : -len(".service")].rpartition("-")
            if dash and index.isdigit() and os.path.isdir(releases + release):
                return release, None, int(index) == SCHEDULER_INDEX
    return None, None, False


def start_of(pid: int) -> Optional[tuple[int, float]]:
    """Parent, and start in seconds since boot, of a live process; None when it has gone or is a zombie."""
    fields = _stat_fields(pid)
    if fields is None or fields[0] in ("Z", "X"):
        return None
    return int(fields[1]), int(fields[19]) / _CLOCK_TICKS


def of_pool(root: Path, unit_prefix: str) -> list[Process]:
    """Every live process of the pool below ``root``, children such as RQ's work-horses included; the eldest first.

    :param unit_prefix: how the names of the pool's systemd units begin.
    """
    found: dict[int, Process] = {}
    others: dict[int, tuple[int, float]] = {}
    for pid in _pids():
        birth = start_of(pid)
        if birth is None or pid == os.getpid():
            continue
        release, worker, scheduler = _release_of(pid, root, unit_prefix)
        if release:
            found[pid] = Process(pid, birth[0], birth[1], release, worker, scheduler)
        else:
            others[pid] = birth
    _adopt_children(found, others)
    return sorted(found.values(), key=lambda process: (process.started, process.pid))


def schedulers_among(processes: Sequence[Process], mains: Collection[int]) -> set[int]:
    """The process ids of those that belong to a scheduler.

    :param mains: the main processes of the release's scheduler, as the supervisor knows them.
    """
    found = {process.pid for process in processes if process.scheduler or process.pid in mains}
    grown = True
    while grown:
        born = {process.pid for process in processes if process.parent in found} - found
        found |= born
        grown = bool(born)
    return found


def lock_holders(path: Path) -> set[int]:
    """The processes that have taken the lock on a file, or have become what took it, as the kernel tells it.

    Told apart by the number of the file alone, as the kernel's device is not the one that ``stat`` gives on each file
    system. Open files would tell as well, but in a container not even root may always look at those of other users.

    :raises OSError: the kernel doesn't tell.
    """
    try:
        wanted = str(path.stat().st_ino)
    except FileNotFoundError:
        return set()
    found = set()
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        # "1: FLOCK  ADVISORY  WRITE 4711 fe:00:2147004 0 EOF"; who waits for it has an arrow after the number.
        words = line.split()
        if words[1] == "FLOCK" and words[5].rpartition(":")[2] == wanted:
            found.add(int(words[4]))
    return found


def hooks_of_pool(root: Path) -> list[int]:
    """Every live process of a hook of the pool below ``root``."""
    found = [pid for pid in _pids() if pid != os.getpid() and start_of(pid)]
    marks = {pid: _marks(pid) for pid in found}
    return [pid for pid in found if HOOK_MARK in marks[pid] and marks[pid].get("BACKSTEP_ROOT") == str(root)]


def _adopt_children(found: dict[int, Process], others: dict[int, tuple[int, float]]) -> None:
    """A child that shows no sign of its own belongs to its parent's release."""
    grown = True
    while grown:
        grown = False
        for pid, (parent, started) in list(others.items()):
            if parent in found:
                found[pid] = replace(found[parent], pid=pid, parent=parent, started=started)
                del others[pid]
                grown = True


def _pids() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)
