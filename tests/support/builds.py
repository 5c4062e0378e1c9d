# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts a build of the demo's app together for one engine: the good one, or one of the bad kinds.

Usage: ``python -m tests.support.builds FOLDER ENGINE`` puts each kind into a folder of its name, the good one into
``good``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.support.bench import SUPPORT
from tools.common import CHECKOUT, main

DEMO = CHECKOUT / "tests" / "demo"
# Engines whose app is another one's: it looks at the broker's URL.
_SAME_APP = {"celery_rabbitmq": "celery", "dramatiq_rabbitmq": "dramatiq"}
ENGINES = sorted([*(path.name for path in (DEMO / "engines").iterdir()), *_SAME_APP])
LEDGER_TASKS = SUPPORT / "ledger_tasks.py"
# What an app needs besides to keep the ledger, where it isn't in Python.
_MORE = {"bullmq": "ledger_tasks.cjs", "sidekiq": "sidekiq_app.rb"}
GOOD = "good"
BAD_KINDS = ("crash", "crash-later", "failing-tasks", "wrong-queue", "never-consumes")


def put_together(target: Path, engine: str, kind: str = GOOD) -> Path:
    """Make the folder ``target`` a build: the good app, with the files of a bad kind in place of its own."""
    shutil.rmtree(target, ignore_errors=True)
    for part in (DEMO / "app", DEMO / "engines" / _SAME_APP.get(engine, engine)):
        shutil.copytree(part, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    for name in filter(None, (LEDGER_TASKS.name, _MORE.get(engine))):
        shutil.copy(SUPPORT / name, target)
    if kind != GOOD:
        for path in (DEMO / "builds" / kind.replace("-", "_")).glob("*.*"):
            shutil.copy(path, target)
    return target


def work() -> None:
    for kind in (GOOD, *BAD_KINDS):
        put_together(Path(sys.argv[1]) / kind, sys.argv[2], kind)


if __name__ == "__main__":
    main(work)
