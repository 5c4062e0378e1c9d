# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's own time."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Callable

from .._rollout.errors import BackstepError
from .._rollout.rules import Moment

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
