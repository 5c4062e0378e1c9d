# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A schedule of RQ's own scheduler: a task every ten seconds, whose description names the release that enqueued it."""

from __future__ import annotations

import os

from rq import cron


def tick(release: str) -> None:
    """Nobody runs it."""


cron.register(tick, "ticks", args=(os.environ["BACKSTEP_RELEASE"],), cron="* * * * * */10")
