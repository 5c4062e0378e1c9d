# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A scheduler that needs no library, and schedules nothing: it only lives until it is told to end.

``SCHEDULE=broken`` dies at once, ``SCHEDULE=deaf`` goes on after SIGTERM, ``SCHEDULE=slow`` takes a moment to end, and
leaves a file named ``ended`` in the directory ``TASKS``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

ENDED = f"{os.environ['TASKS']}/done/ended"
MODE = os.environ.get("SCHEDULE", "")
if MODE == "broken":
    sys.exit("this schedule can't be read")
if MODE == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if MODE == "slow":
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(time.sleep(0.5) or Path(ENDED).touch()))
while True:
    signal.pause()
