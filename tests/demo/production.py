# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Enqueues numbered tasks for as long as the demo runs."""

from __future__ import annotations

import threading
from types import TracebackType

from tests.demo.stand import QUEUE, Stand

TASKS_PER_SECOND = 6
TASK_SECONDS = 0.1


class Production:
    """A producer in a thread; a context manager that stops it. ``number`` is that of the last task."""

    def __init__(self, stand: Stand, number: int = 0) -> None:
        self.number = number
        self.bench = stand.bench
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="producer", daemon=True)
        self._failure: Exception | None = None

    def __enter__(self) -> Production:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._enough.set()
        self._thread.join(10)

    def stop(self) -> None:
        """Enqueue nothing more; raises what made the producer stop before its time."""
        self._enough.set()
        self._thread.join(10)
        if self._failure:
            raise self._failure

    def _produce(self) -> None:
        try:
            while not self._enough.wait(1 / TASKS_PER_SECOND):
                self.number += 1
                self.bench.enqueue(QUEUE, self.number, TASK_SECONDS, task="letters.send")
        except Exception as error:  # noqa: BLE001  # handed to whoever stops the producer
            self._failure = error
