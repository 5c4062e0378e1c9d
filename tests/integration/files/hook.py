# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A hook that says what it is: writes ``$TASKS/started/hook-<step>-<n>`` with its environment, then does as it is told.

Arguments: ``end STATUS``, ``hang`` (with a child that hangs as well and ignores SIGTERM), ``leave`` (a child that goes
on), ``flag PATH`` (fails while the file is there).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

TASKS = Path(os.environ["TASKS"])
HANG = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def say_what_it_is() -> None:
    """Write down the environment, the arguments and the directory, under a name of its own."""
    seen = {"environ": dict(os.environ), "argv": sys.argv, "uid": os.getuid(), "cwd": os.getcwd(), "pid": os.getpid()}
    new = TASKS / "started" / f".hook-{os.getpid()}"
    new.write_text(json.dumps(seen), encoding="utf-8")
    new.rename(TASKS / "started" / f"hook-{os.environ['BACKSTEP_STEP']}-{time.time_ns()}")


def child() -> None:
    """Start something that outlives this process unless the whole group is killed."""
    subprocess.Popen([sys.executable, "-c", HANG], stdin=subprocess.DEVNULL)


def main() -> None:
    """Do as told."""
    say_what_it_is()
    for number, word in enumerate(sys.argv):
        if word in ("hang", "leave"):
            child()
            time.sleep(600 if word == "hang" else 0)
        elif word == "flag" and os.path.exists(sys.argv[number + 1]):
            sys.exit(9)
        elif word == "end":
            sys.exit(int(sys.argv[number + 1]))


main()
