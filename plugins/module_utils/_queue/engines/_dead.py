# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What engines write about tasks that have failed."""

from __future__ import annotations


def last_line(traceback: str) -> str:
    """What a traceback says in the end."""
    return (traceback.strip().splitlines() or [""])[-1].strip()
