# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Shows in the terminal how far a step is that takes long, while it does: once for all hosts that are under way."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Callable

from ansible_collections.backstep.workers.plugins.plugin_utils.text_end import wrapped
from ansible_collections.backstep.workers.plugins.plugin_utils.text_progress import (
    FIRST_SECONDS,
    Waiting,
    pause_after,
    progress_lines,
)

_TICK_SECONDS = 1.0
# Hosts that began together are at their first look together: the line is about all of them.
_TOGETHER_SECONDS = 2.0
# So much longer a host may take for its first word on a drain, before it is said without.
_TOLD_SECONDS = 10.0


class Board:
    """Which hosts' steps are under way, each in a file, as every step has a process of its own.

    Nothing but what is shown rests on it. What a process that has died has left counts for nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "backstep-progress"

    def put(self, waiting: Waiting) -> None:
        """Enter how far the step of a host is."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._path(waiting.host)
        new = path.with_suffix(f".{os.getpid()}.new")
        new.write_text(json.dumps({**asdict(waiting), "pid": os.getpid()}), encoding="utf-8")
        new.replace(path)

    def remove(self, host: str) -> None:
        """Its step is over."""
        self._path(host).unlink(missing_ok=True)

    def under_way(self) -> list[Waiting]:
        """What has been entered and is not over."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                entry = json.loads(path.read_text(encoding="utf-8"))
                os.kill(entry.pop("pid"), 0)
                found.append(Waiting(**entry))
        return found

    def due(self, pause: float) -> bool:
        """Whether nobody has shown anything for so many seconds; whoever is told so shows it now."""
        with (self._folder / "shown").open("a+", encoding="ascii") as shown:
            try:
                fcntl.flock(shown, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False  # somebody is just about to
            shown.seek(0)
            last, now = float(shown.read() or "-inf"), time.monotonic()
            if now - last < pause:
                return False
            shown.truncate(0)
            shown.write(str(now))
        return True

    def is_first(self, step: str) -> bool:
        """Whether nobody has said before that this step is taken.

        :param step: what names it in this run.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        try:
            self._path(step).with_suffix(".taken").touch(mode=0o600, exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _path(self, host: str) -> Path:
        return self._folder / f"{hashlib.sha256(host.encode('utf-8')).hexdigest()}.json"


class Ticker:
    """Looks once a second, beside a step of one host, whether it is time to show how far that is."""

    def __init__(
        self, board: Board, waiting: Waiting, show: Callable[[str], None], width: int, drains: bool = False
    ) -> None:
        self._board, self._waiting, self._show, self._width = board, waiting, show, width
        self._began = time.monotonic()
        self._shows_from = FIRST_SECONDS + (_TOLD_SECONDS if drains else _TOGETHER_SECONDS)
        self._over = threading.Event()

    def note(self, drain: Mapping[str, Any]) -> None:
        """How far the drain is."""
        self._waiting = replace(self._waiting, drain=drain)
        self._shows_from = min(self._shows_from, time.monotonic() - self._began + _TOGETHER_SECONDS)

    @contextlib.contextmanager
    def running(self) -> Iterator[Ticker]:
        """Beside the block."""
        thread = threading.Thread(target=self._run, name="backstep-progress", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join(_TICK_SECONDS)
            with contextlib.suppress(OSError):
                self._board.remove(self._waiting.host)

    def _run(self) -> None:
        while not self._over.wait(_TICK_SECONDS):
            # A full disk on the controller is no reason to disturb a step.
            with contextlib.suppress(OSError, ValueError):
                self._look()

    def _look(self) -> None:
        elapsed = time.monotonic() - self._began
        if elapsed < FIRST_SECONDS:
            return
        self._board.put(replace(self._waiting, elapsed=elapsed))
        if elapsed >= self._shows_from and self._board.due(pause_after(elapsed)):
            for line in progress_lines(self._board.under_way()):
                for part in wrapped([line], self._width):
                    self._show(part)
