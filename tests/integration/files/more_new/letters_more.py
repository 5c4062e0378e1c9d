# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks of an app's second version: one more, and one with an argument more."""

from __future__ import annotations

import ledger_tasks  # type: ignore[import-not-found]  # stands beside this file in a release


def write(number: int, seconds: float, copies: float = 1) -> None:
    """Task ``number``, which the first version can run only without copies."""
    ledger_tasks.work(number, seconds * copies)


def later(number: int, seconds: float) -> None:
    """Task ``number``, which the first version doesn't have."""
    ledger_tasks.work(number, seconds)


TASKS = {"letters_more.write": write, "letters_more.later": later}
