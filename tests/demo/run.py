# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make demo``: a good release, a bad one, the way back, and the ledger, on real parts, in under a minute.

Usage: ``python -m tests.demo.run [--bad KIND] [--engine NAME] [--smoke]``. Ends with 0 only when it went as told.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from tools.common import BUILD, COLLECTIONS, ToolError, main

# So that `ansible_collections.backstep.workers` is this checkout, whatever else the machine has.
sys.path.insert(0, str(COLLECTIONS))

from tests.demo.stand import a_stand
from tests.demo.story import Story, smoke
from tests.support.builds import ENGINES

BAD = {
    "crash": "exits at boot",
    "crash-later": "dies after some seconds, with the task that it executes",
    "failing-tasks": "fails every task",
    "wrong-queue": "listens to another queue",
    "never-consumes": "stays up and takes no task",
}
FOLDER = BUILD / "demo"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo")
    parser.add_argument("--bad", choices=BAD, default="failing-tasks", help="what is wrong with release B")
    parser.add_argument("--engine", choices=ENGINES, default="rq", help="the app's queue library")
    parser.add_argument("--smoke", action="store_true", help="the plays only: deploy, deploy again, status, rollback")
    parser.add_argument("--output", type=Path, default=FOLDER, help="where the ledger, the report and the logs go")
    return parser.parse_args()


def _stop(*_signal: Any) -> None:
    # One signal is enough: what comes while the demo cleans up must not interrupt that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def work() -> int:
    """Run the demo; 0 when it went as told."""
    options = _options()
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    try:
        with a_stand(options.engine) as stand:
            if options.smoke:
                return smoke(stand, options.output)
            return Story(stand, options.output, options.bad, BAD[options.bad]).tell()
    except KeyboardInterrupt:
        print("\nStopped. Everything that the demo had started is gone.", file=sys.stderr)
        raise
    except ToolError:
        print(f"\nThe demo did not go as told. See {options.output}", file=sys.stderr)
        raise


if __name__ == "__main__":
    main(work)
