# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host whose supervisor and clock are of paper; everything else of it is real."""

from __future__ import annotations

import os
import time as real_time
from typing import Any

from ansible_collections.backstep.workers.plugins.module_utils._host.host import Host
from ansible_collections.backstep.workers.plugins.module_utils._host.layout import Pool, Spec
from ansible_collections.backstep.workers.plugins.module_utils._host.processes import Process
from ansible_collections.backstep.workers.plugins.module_utils._host.supervisors.base import MainProcess, Supervisor

FIRST, SECOND, THIRD = "1.0-aaaaaaaa", "2.0-bbbbbbbb", "3.0-cccccccc"
# Live ones, as their age is looked up.
PIDS = {FIRST: 1, SECOND: os.getpid(), THIRD: os.getppid()}


class Killed(BaseException):
    """The process that takes the step was killed."""


class Paper(Supervisor):
    """A supervisor that only remembers what it was asked for."""

    name = "paper"

    def __init__(self, pool: Pool, layout: Any) -> None:
        super().__init__(pool, layout)
        self.units: dict[str, dict[str, bytes]] = {}
        self.running: set[str] = set()
        self.at_boot: set[str] = set()
        self.busy: set[str] = set()
        self.chores: set[str] = set()
        self.lives: int | None = None

    def _act(self) -> None:
        if self.lives is not None:
            self.lives -= 1
            if self.lives < 0:
                raise Killed

    def check(self) -> str:
        return self.name

    def render(self, spec: Spec) -> dict[str, bytes]:
        return {f"{spec.id}.unit": spec.version.encode()}

    def installed(self, release: str) -> dict[str, bytes]:
        return self.units.get(release, {})

    def install(self, release: str, files: dict[str, bytes]) -> None:
        self._act()
        self.units[release] = files

    def uninstall(self, release: str) -> None:
        self._act()
        assert release not in self.busy, "a release with a task was removed"
        self.units.pop(release, None)
        self.at_boot.discard(release)

    def start(self, release: str) -> None:
        self._act()
        assert release in self.units
        self.running.add(release)

    def quiet(self, release: str) -> None:
        self._act()
        self.running.discard(release)

    def processes(self, release: str) -> list[MainProcess]:
        wanted = release in self.running
        runs = wanted or release in self.busy
        return [MainProcess(1, PIDS[release] if runs else None, "running", wanted, 0)] if release in self.units else []

    def where_to_look(self, release: str, index: int) -> str:
        return f"{release} {index}"

    def enable(self, release: str) -> None:
        self._act()
        self.at_boot.add(release)

    def disable(self, release: str) -> None:
        self._act()
        self.at_boot.discard(release)

    def enabled(self, release: str) -> bool:
        return release in self.at_boot

    def arm_chore(self, chore: str, token: int, seconds: float | None) -> None:
        self._act()
        self.chores.add(chore)

    def disarm_chore(self, chore: str) -> None:
        self._act()
        self.chores.discard(chore)

    def chore_armed(self, chore: str) -> bool:
        return chore in self.chores

    @property
    def guarded(self) -> bool:
        """Whether a guard is armed."""
        return self.guard_armed()


class PaperHost(Host):
    """A host whose processes are those that its paper supervisor remembers."""

    supervisor: Paper

    def running(self) -> dict[str, list[Process]]:
        """One process of each release that runs."""
        live = sorted(self.supervisor.running | self.supervisor.busy)
        return {name: [Process(PIDS[name], 1, 0.0, name, None)] for name in live}


class PaperTime:
    """In the place of the module ``time``: the host's clock can be turned forward, and sleeping takes no time."""

    monotonic = staticmethod(real_time.monotonic)
    CLOCK_BOOTTIME = real_time.CLOCK_BOOTTIME

    def __init__(self) -> None:
        # Later than any real process was started, and the same each time.
        self.up = 1e9
        # What may be waited for; it has ended the next time that anybody looks.
        self.busy: set[str] = set()

    def clock_gettime(self, _which: int) -> float:
        return self.up

    def time(self) -> float:
        return 1_000_000.0 + self.up

    def sleep(self, _seconds: float) -> None:
        assert self.busy, "something was waited for"
        self.busy.clear()
