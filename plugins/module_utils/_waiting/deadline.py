# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one way to wait, for every layer that acts."""

from __future__ import annotations

import time
from typing import Callable, Optional

_POLL_SECONDS = 0.1


class Deadline:
    """One absolute point in time that all phases of a wait share, however many there are."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until the deadline, never below 0."""
        return max(0.0, self._end - time.monotonic())

    def wait_until(self, predicate: Callable[[], bool], poll: float = _POLL_SECONDS) -> bool:
        """Ask ``predicate`` again and again; True as soon as it holds, False when the deadline passes first."""
        while True:
            if predicate():
                return True
            pause = min(poll, self.left)
            if pause <= 0:
                return predicate()
            time.sleep(pause)


def until(seconds: float, predicate: Callable[[], bool], deadline: Optional[Deadline] = None) -> bool:
    """Wait at most ``seconds`` (and never past ``deadline``) for ``predicate``; whether it came to hold."""
    return Deadline(min(seconds, deadline.left) if deadline else seconds).wait_until(predicate)
