# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Celery app as a pool runs it: named by the variable ``APP``, with a task that tells whether the release works."""

from __future__ import annotations

import importlib
import importlib.util
import os

import ledger_tasks  # type: ignore[import-not-found]  # stands beside this file in a release
from celery import Celery

app = Celery("celery_letters")
if "MASTER_NAME" in os.environ:  # what a Celery URL of sentinels doesn't say
    app.conf.broker_transport_options = {"master_name": os.environ["MASTER_NAME"]}


@app.task(name="celery_letters.check")
def check() -> None:
    """Fail in a release that can't work."""
    if os.environ.get("MODE") == "bad":
        raise RuntimeError("this release can't work, as it is meant to")


@app.task(name="ledger_tasks.work", autoretry_for=(RuntimeError,), max_retries=None, default_retry_delay=1)
def work(number: int, seconds: float) -> None:
    """Task ``number``, which is tried again until a release can do it."""
    check.run()
    ledger_tasks.work(number, seconds)


if importlib.util.find_spec("letters_more"):
    for name, task in importlib.import_module("letters_more").TASKS.items():
        app.task(name=name)(task)
