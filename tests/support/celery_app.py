# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Celery app with the tasks of the ledger, and Celery's own settings but for the broker."""

from __future__ import annotations

import json
import os

import ledger_tasks  # type: ignore[import-not-found]  # beside this file, which is on the workers' path
from celery import Celery

app = Celery("celery_app", broker=os.environ["CELERY_BROKER_URL"])
if "SENTINEL" in os.environ:  # what a Celery URL of sentinels doesn't say
    app.conf.broker_transport_options = {"master_name": json.loads(os.environ["SENTINEL"])["MASTER_NAME"]}
app.task(name="ledger_tasks.work")(ledger_tasks.work)
app.task(name="ledger_tasks.fail")(ledger_tasks.fail)
app.task(name="ledger_tasks.work_late", acks_late=True)(ledger_tasks.work)
