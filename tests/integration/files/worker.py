# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker that needs no library: takes task files from a directory, one at a time, and says what it is.

``TASKS`` is a directory with ``waiting`` (a file per task, in it the seconds that it takes at most), ``executing``,
``done``, ``over`` (a file for each task that is to end now) and ``started`` (a file per start of a worker).
``MODE=crash`` dies at once, as does one whose ``FLAG`` is there; ``MODE=deaf`` goes on after SIGTERM, ``MODE=mortal``
ends by itself after a while.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

TASKS = Path(os.environ["TASKS"])
WORKER = os.environ["BACKSTEP_WORKER"]
MODE = os.environ.get("MODE", "")
POLL_SECONDS = 0.05
_stopping: list[int] = []


def say_what_it_is() -> None:
    """Write down the environment, the arguments and the config as this process has them."""
    config = Path(os.environ["BACKSTEP_CONFIG"])
    seen = {
        "environ": dict(os.environ),
        "argv": sys.argv,
        "uid": os.getuid(),
        "cwd": os.getcwd(),
        "config": {path.name: path.read_text(encoding="utf-8") for path in config.glob("*.ini")},
    }
    new = TASKS / "started" / f".{os.getpid()}"
    new.write_text(json.dumps(seen), encoding="utf-8")
    new.rename(TASKS / "started" / WORKER.replace("/", ","))


def execute(task: str, seconds: float) -> None:
    """Be busy until the time is up, or somebody says that the task is over."""
    end = time.monotonic() + seconds

    def is_over() -> bool:
        return time.monotonic() >= end or (TASKS / "over" / task).exists()

    while not is_over():
        time.sleep(POLL_SECONDS)


def take_one() -> bool:
    """Execute the next task, if there is one."""
    for waiting in sorted((TASKS / "waiting").iterdir()):
        executing = TASKS / "executing" / f"{waiting.name},{os.environ['BACKSTEP_RELEASE']}"
        try:
            waiting.rename(executing)
        except FileNotFoundError:
            continue
        execute(waiting.name, float(executing.read_text(encoding="ascii")))
        executing.rename(TASKS / "done" / executing.name)
        return True
    return False


def main() -> None:
    """Work until told to stop."""
    if MODE == "crash" or os.path.exists(os.environ.get("FLAG", "")):
        sys.exit("this build can't start")
    signal.signal(signal.SIGTERM, lambda number, _frame: None if MODE == "deaf" else _stopping.append(number))
    say_what_it_is()
    end = time.monotonic() + (1.5 if MODE == "mortal" else 1e9)
    while not _stopping and time.monotonic() < end:
        if not take_one():
            time.sleep(POLL_SECONDS)


main()
