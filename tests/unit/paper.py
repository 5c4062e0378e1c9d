# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host whose supervisor and clock are of paper; everything else of it is real."""

from __future__ import annotations

import os
import time as real_time
from typing import Any

from ansible_collections.backstep.workers.plugins.module_utils._host.host import Host
from ansible_collections.backstep.workers.plugins.module_utils._host.layout import SCHEDULER_INDEX, Part, Pool, Spec
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
        # Whose units have a scheduler, whose is wanted, and which one runs: it has the lock.
        self.has_scheduler: set[str] = set()
        self.scheduling: set[str] = set()
        self.scheduler: str | None = None
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
        assert release != self.scheduler, "a release whose scheduler runs was removed"
        self.units.pop(release, None)
        self.at_boot.discard(release)

    def start(self, release: str) -> None:
        self.start_stopped(release)

    def start_stopped(self, release: str, part: Part = Part.WORKERS) -> None:
        self._act()
        assert release in self.units
        if part is Part.WORKERS:
            self.running.add(release)
        elif release in self.has_scheduler:
            self.scheduling.add(release)
            self.scheduler = self.scheduler or release

    def boot_schedulers(self) -> None:
        """What is enabled comes up; one of them gets the lock."""
        self.scheduling = self.at_boot & self.has_scheduler
        self.scheduler = next(iter(sorted(self.scheduling)), None)

    def quiet(self, release: str, part: Part = Part.ALL) -> None:
        self._act()
        if part.has(1):
            self.running.discard(release)
        if part.has(SCHEDULER_INDEX):
            self.scheduling.discard(release)
            if self.scheduler == release:
                # Who has waited longest; nobody else waits on paper for more than one.
                self.scheduler = next(iter(sorted(self.scheduling)), None)

    def processes(self, release: str, part: Part = Part.ALL) -> list[MainProcess]:
        if release not in self.units:
            return []
        wanted = release in self.running
        runs = wanted or release in self.busy
        worker = MainProcess(1, PIDS[release] if runs else None, "running", wanted, 0)
        wanted = release in self.scheduling
        scheduler = MainProcess(SCHEDULER_INDEX, PIDS[release] if wanted else None, "running", wanted, 0)
        found = [scheduler, worker] if release in self.has_scheduler else [worker]
        return [main for main in found if part.has(main.index)]

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

    def running(self, part: Part = Part.ALL) -> dict[str, list[Process]]:
        """One process of each release that runs, and one of each scheduler."""
        found: dict[str, list[Process]] = {}
        for name in sorted(self.supervisor.running | self.supervisor.busy) if part.has(1) else ():
            found.setdefault(name, []).append(Process(PIDS[name], 1, 0.0, name, None))
        for name in sorted(self.supervisor.scheduling) if part.has(SCHEDULER_INDEX) else ():
            found.setdefault(name, []).append(Process(PIDS[name], 1, 0.0, name, None, scheduler=True))
        return found

    def scheduler(self) -> tuple[str, int] | None:
        """The scheduler that has the lock."""
        name = self.supervisor.scheduler
        return (name, PIDS[name]) if name else None


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
        # Never on a whole second, around which no scheduler is handed over.
        return 1_000_000.3 + self.up

    def sleep(self, _seconds: float) -> None:
        assert self.busy, "something was waited for"
        self.busy.clear()
