# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stops the step that writes to a host's journal exactly at an event, with nothing in the product that helps.

A file lease (``fcntl(2)``, ``F_SETLEASE``) makes the kernel hold whoever opens the journal for writing until the lease
is given back. So a step can be killed with everything done that follows an event and the next event not begun
(``BEFORE_NEXT``, exact), or as soon as an event's bytes are in the file (``JUST_AFTER``: while its writer is in
``fsync``, or some tenths of a millisecond later).
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

JUST_AFTER = "just after"
BEFORE_NEXT = "before what follows"
# The kernel breaks a lease after /proc/sys/fs/lease-break-time, 45 seconds unless somebody has changed it.
_WRITE_SECONDS = 20.0
_POLL_SECONDS = 0.002


@dataclass(frozen=True)
class Boundary:
    """A moment in a step: ``nth`` counts this event's occurrences on the host in one run of the play, from 1."""

    host: str
    event: str
    nth: int
    moment: str

    def __str__(self) -> str:
        again = f" ({self.nth}.)" if self.nth > 1 else ""
        return f"{self.moment} {self.event}{again}"


def boundaries(written: dict[str, list[str]]) -> list[Boundary]:
    """Every boundary of a play from the events that it wrote, by host: of each event, on the first host that has it."""
    found = []
    for host, events in written.items():
        taken = {boundary.event for boundary in found}
        counts: Counter[str] = Counter()
        for place, event in enumerate(events):
            counts[event] += 1
            if event not in taken:
                found.append(Boundary(host, event, counts[event], JUST_AFTER))
                if place + 1 < len(events):
                    found.append(Boundary(host, event, counts[event], BEFORE_NEXT))
    return found


class Gate:
    """Watches one journal from where it ends now; a context manager that lets everybody go at its end."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._lock = journal.with_name("lock")
        self._offset = journal.stat().st_size
        self._handle = os.open(journal, os.O_RDONLY)
        # The kernel says by SIGIO that somebody wants to write, which would end this process; asked is by polling.
        self._handler = signal.signal(signal.SIGIO, lambda *_: None)
        self.seen: list[str] = []

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)
        signal.signal(signal.SIGIO, self._handler)

    def wait_for(self, boundary: Boundary, seconds: float, going_on: Callable[[], bool]) -> bool:
        """Let events pass until the boundary; whether it came before the play ended.

        With ``BEFORE_NEXT`` the writer stays held until the gate is closed.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._passed(boundary) and boundary.moment == JUST_AFTER:
                return True
            if not self._take_lease():
                continue
            if not self._wait_for_writer(deadline, going_on):
                # Also missed when the next event, the play's last, came before this one was seen.
                return self._passed(boundary)
            if self._passed(boundary):
                # Missed when more has been written since: then it is what follows that is about to be written.
                return True
            self._let_write()
        return False

    def writer(self) -> int | None:
        """The process that takes a step on this host now: the one that holds the host's lock."""
        wanted = os.stat(self._lock).st_ino
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and int(fields[5].rpartition(":")[2]) == wanted:
                return int(fields[4])
        return None

    def _passed(self, boundary: Boundary) -> bool:
        with self._journal.open("rb") as stream:
            stream.seek(self._offset)
            *lines, _rest = stream.read().split(b"\n")
        for line in lines:
            self._offset += len(line) + 1
            self.seen.append(json.loads(line)["event"])
        return self.seen.count(boundary.event) >= boundary.nth

    def _take_lease(self) -> bool:
        with suppress(BlockingIOError):
            fcntl.fcntl(self._handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            return True
        return False

    def _wait_for_writer(self, deadline: float, going_on: Callable[[], bool]) -> bool:
        while fcntl.fcntl(self._handle, fcntl.F_GETLEASE) == fcntl.F_RDLCK:
            if time.monotonic() > deadline or not going_on():
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _let_write(self) -> None:
        fcntl.fcntl(self._handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        deadline = time.monotonic() + _WRITE_SECONDS
        while os.stat(self._journal).st_size == self._offset:
            if time.monotonic() > deadline:
                raise AssertionError(f"Who was let write to {self._journal} did not.")
