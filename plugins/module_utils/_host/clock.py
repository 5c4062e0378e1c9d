# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's own time, and the one way to wait."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Callable, Optional

from .._rollout.errors import BackstepError
from .._rollout.rules import Moment

_POLL_SECONDS = 0.1
_AGAIN_SECONDS = 5.0


def _boot_name() -> str:
    """Names this boot: the kernel's boot id and when process 1 started, which also tells a restarted container."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    fields = Path("/proc/1/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return f"{boot_id[:8]}-{fields[19]}"


def moment() -> Moment:
    """Now, by the wall clock and by the clock that nobody can set (seconds since boot, time asleep included)."""
    return Moment(boot=_boot_name(), up=time.clock_gettime(time.CLOCK_BOOTTIME), time=time.time())


def uptime() -> float:
    """Seconds since boot, time asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Deadline:
    """One absolute point in time that all phases of a wait share, however many there are."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until the deadline, never below 0."""
        return max(0.0, self._end - time.monotonic())

    def wait_until(self, predicate: Callable[[], bool], poll: float = _POLL_SECONDS) -> bool:
        """Ask ``predicate`` again and again; True as soon as it holds, False when the deadline passes first."""
        while True:
            if predicate():
                return True
            pause = min(poll, self.left)
            if pause <= 0:
                return predicate()
            time.sleep(pause)


def until(seconds: float, predicate: Callable[[], bool], deadline: Optional[Deadline] = None) -> bool:
    """Wait at most ``seconds`` (and never past ``deadline``) for ``predicate``; whether it came to hold."""
    return Deadline(min(seconds, deadline.left) if deadline else seconds).wait_until(predicate)


def persist(attempt: Callable[[], bool], poll: float) -> None:
    """Make an attempt every ``poll`` seconds until it says that it is done, however long that takes.

    What can't be done now, as a step has the lock or the disk is full, can be in a while: it is said on stderr and
    tried again.
    """
    while True:
        try:
            if attempt():
                return
            pause = poll
        except (BackstepError, OSError) as error:
            sys.stderr.write(f"backstep: {error}\n")
            pause = _AGAIN_SECONDS
        time.sleep(pause)
