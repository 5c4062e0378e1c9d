# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A build that works for some seconds and then dies, its executing task with it, as if it had run out of memory."""

from __future__ import annotations

import os
import signal
import threading
import time
from configparser import ConfigParser
from contextlib import suppress
from pathlib import Path

from good import GoodBuild  # type: ignore[import-not-found]  # stands beside this file in a release

# Of the process's life, however much of it importing took.
_SECONDS = 4.0


class Build(GoodBuild):  # type: ignore[misc]  # see above
    """Has not long to live."""

    def before_work(self, settings: ConfigParser) -> None:
        """Starts what will end it."""
        left = max(_SECONDS - _age(), 0.1)
        timer = threading.Timer(left, _die, [os.getpid()])
        timer.daemon = True
        timer.start()
        # If another program takes this one's place, the timer is gone and this goes on.
        signal.setitimer(signal.ITIMER_REAL, left + 0.2)


def _age() -> float:
    """Seconds since this process was started."""
    started = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19]
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(started) / os.sysconf("SC_CLK_TCK")


def _die(worker: int) -> None:
    for child in Path(f"/proc/{worker}/task/{worker}/children").read_text(encoding="ascii").split():
        with suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)
    os._exit(1)
