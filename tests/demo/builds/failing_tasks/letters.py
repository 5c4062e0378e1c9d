# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A build that boots, takes tasks, and fails each of them."""

from __future__ import annotations

import ledger_tasks  # type: ignore[import-not-found]  # stands beside this file in a release


def send(number: int, seconds: float) -> None:
    """Fail to send letter ``number``."""
    ledger_tasks.fail(number)
