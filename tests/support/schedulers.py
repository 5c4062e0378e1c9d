# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who runs a schedule, seen from outside all the time: how many at once, and how long nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_LOOK_SECONDS = 0.03


def at_work(mark: str, words: tuple[str, ...]) -> dict[int, str]:
    """The release of each process that carries this mark in its environment and has all these words in its command.

    One that still waits to become that command has the launcher in front of it, and is none. Reading all processes
    takes a moment, in which one may end and the next begin: of several that were found, those count that still run.
    Nor is a child of one a second one: until it becomes what it was forked for, it has its parent's command (the
    croniter of RQ's scheduler asks the program ``file`` something when it is imported; seen with 7.0).
    """
    found = _found(mark, words)
    if len(found) == 1:
        return found
    parents = {pid: _parent(pid) for pid in found}
    return {pid: release for pid, release in found.items() if parents[pid] and parents[pid] not in found}


def _parent(pid: int) -> int:
    """The parent of a process that still runs; else 0."""
    process = Path("/proc") / str(pid)
    with suppress(OSError):
        if (process / "cmdline").read_bytes():
            return int((process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    return 0


def _found(mark: str, words: tuple[str, ...]) -> dict[int, str]:
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes().decode().split("\0")
            if not all(any(part.endswith(word) for part in command) for word in words) or "--lock" in command:
                continue
            environment = (folder / "environ").read_bytes().decode().split("\0")
            if mark in environment:
                release = [item for item in environment if item.startswith("BACKSTEP_RELEASE=")]
                found[int(folder.name)] = release[0].partition("=")[2] if release else ""
    return found


@dataclass
class Seen:
    """What was seen: the largest number at once, the longest time with none (seconds), whose one after another."""

    most: int = 0
    gap: float = 0.0
    releases: list[str] = field(default_factory=list)
    looks: int = 0


@contextmanager
def watched(mark: str, *words: str) -> Iterator[Seen]:
    """Watch from here to the end of the block."""
    seen, over = Seen(), threading.Event()

    def watch() -> None:
        last = time.monotonic()
        while not over.is_set():
            found = at_work(mark, words)
            now = time.monotonic()
            seen.looks += 1
            seen.most = max(seen.most, len(found))
            seen.gap = max(seen.gap, now - last)
            if found:
                last = now
            for release in found.values():
                if seen.releases[-1:] != [release]:
                    seen.releases.append(release)
            over.wait(_LOOK_SECONDS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()
