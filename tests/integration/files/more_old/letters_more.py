# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks of an app's first version, as workers in Python load them."""

from __future__ import annotations

import ledger_tasks  # type: ignore[import-not-found]  # stands beside this file in a release


def write(number: int, seconds: float) -> None:
    """Task ``number``."""
    ledger_tasks.work(number, seconds)


TASKS = {"letters_more.write": write}
