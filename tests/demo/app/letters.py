# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's app: its one task sends a numbered letter, which takes a moment."""

from __future__ import annotations

import ledger_tasks  # type: ignore[import-not-found]  # stands beside this file in a release


def send(number: int, seconds: float) -> None:
    """Send letter ``number``, in ``seconds``."""
    ledger_tasks.work(number, seconds)
