# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker host of paper: the collection's own code acts on it, and what it acts on is one small value.

Each act on the host (an event in the journal, a call of the supervisor, a change of the store or of the link) first
shows the host as it is to whoever counts the ways in which a step can be cut short.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

from ansible_collections.backstep.workers.plugins.module_utils._host.host import Host
from ansible_collections.backstep.workers.plugins.module_utils._host.journal import Journal
from ansible_collections.backstep.workers.plugins.module_utils._host.layout import (
    SCHEDULER_INDEX,
    Layout,
    Part,
    Pool,
    Spec,
)
from ansible_collections.backstep.workers.plugins.module_utils._host.processes import Process
from ansible_collections.backstep.workers.plugins.module_utils._host.store import Store
from ansible_collections.backstep.workers.plugins.module_utils._host.supervisors.base import (
    REAPER,
    MainProcess,
    Supervisor,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.pool_state import Event, PoolState
from ansible_collections.backstep.workers.plugins.module_utils._rollout.rules import Moment
from ansible_collections.backstep.workers.plugins.module_utils._rollout.state import fold_in

POOL = "mail"
PROGRAM = b"the host program"
BROKER = "redis://127.0.0.1:6379/0"
WORKERS = (1, 2)
# The host on which schedulers run.
SCHEDULING = "w1"
# How the releases of drills begin.
DRILL = "drill-"


@dataclass(frozen=True)
class Worker:
    """A worker process. ``ending``: it was asked to end and has a task; ``again``: it is to be started after that."""

    pid: int
    ending: bool = False
    again: bool = False


@dataclass(frozen=True)
class Facts:
    """All that there is on a host. Never changed, only replaced.

    :param at_boot: each worker's unit that starts at boot.
    :param guard: when the guard that waits is due, by the host's clock; None when none waits.
    :param reaper: whether the reaper waits.
    :param booting: the guard that runs at boot has yet to run.
    :param dying: releases whose workers die as soon as they are started.
    :param failing: whether workers of a drill die as well, as they are meant to.
    :param busy: whether workers have tasks that last longer than anybody waits.
    :param with_scheduler: releases that have a scheduler on the host ``SCHEDULING``.
    :param schedulers: the releases whose scheduler lives, the one that has the lock first; the others wait for it.
    :param up: seconds since boot; only waiting takes time.
    :param noted: how many events were noted; stands for the time of day, which tells releases' ages apart.
    """

    name: str
    state: PoolState = field(default_factory=PoolState)
    torn: bool = False
    workers: dict[tuple[str, int], Worker] = field(default_factory=dict)
    installed: frozenset[str] = frozenset()
    at_boot: frozenset[tuple[str, int]] = frozenset()
    link: str | None = None
    guard: float | None = None
    reaper: bool = False
    booting: bool = False
    stored: dict[str, str] = field(default_factory=dict)
    dying: frozenset[str] = frozenset()
    failing: bool = False
    busy: bool = False
    with_scheduler: frozenset[str] = frozenset()
    schedulers: tuple[str, ...] = ()
    boot: int = 1
    up: float = 1000.0
    noted: int = 0
    last_pid: int = 0

    def units(self, release: str) -> tuple[int, ...]:
        """The numbers of a release's processes here."""
        here = self.name == SCHEDULING and release in self.with_scheduler
        return (SCHEDULER_INDEX, *WORKERS) if here else WORKERS

    def dies(self, release: str) -> bool:
        """Whether workers of a release die as soon as they are started."""
        return release in self.dying or (self.failing and release.startswith(DRILL))

    def consuming(self) -> set[str]:
        """The releases of which workers live and take tasks."""
        return {
            release
            for (release, _index), worker in self.workers.items()
            if not worker.ending and not self.dies(release)
        }


Meanwhile = tuple[int, Callable[[Facts], Facts]]


class Paper(Supervisor):
    """A supervisor that only remembers what it was asked for."""

    name = "paper"

    def __init__(self, host: PaperHost) -> None:
        super().__init__(host.pool, host.layout)
        self.host = host

    @property
    def facts(self) -> Facts:
        return self.host.facts

    def check(self) -> str:
        return self.name

    def render(self, spec: Spec) -> dict[str, bytes]:
        return {}

    def installed(self, release: str) -> dict[str, bytes]:
        return {release: b""} if release in self.facts.installed else {}

    def install(self, release: str, files: dict[str, bytes]) -> None:
        self.host.act(f"install {release}", installed=self.facts.installed | {release})

    def uninstall(self, release: str) -> None:
        at_boot = frozenset(unit for unit in self.facts.at_boot if unit[0] != release)
        self.host.act(f"uninstall {release}", installed=self.facts.installed - {release}, at_boot=at_boot)

    def start_stopped(self, release: str, part: Part = Part.WORKERS) -> None:
        if part is Part.WORKERS:
            self.start(release)
        elif SCHEDULER_INDEX in self.facts.units(release) and release not in self.facts.schedulers:
            assert release in self.facts.installed, f"the scheduler of {release} was started without units"
            self.host.act(f"start the scheduler of {release}", schedulers=(*self.facts.schedulers, release))

    def start(self, release: str) -> None:
        assert release in self.facts.installed, f"{release} was started without units"
        workers, pid = dict(self.facts.workers), self.facts.last_pid
        for index in WORKERS:
            now = workers.get((release, index))
            if now is None:
                pid += 1
                workers[release, index] = Worker(pid)
            elif now.ending:
                workers[release, index] = replace(now, again=True)
        self.host.act(f"start {release}", workers=workers, last_pid=pid)

    def quiet(self, release: str, part: Part = Part.ALL) -> None:
        if part.has(SCHEDULER_INDEX) and release in self.facts.schedulers:
            left = tuple(other for other in self.facts.schedulers if other != release)
            self.host.act(f"end the scheduler of {release}", schedulers=left)
        if part.has(WORKERS[0]):
            self._quiet_workers(release)

    def _quiet_workers(self, release: str) -> None:
        workers = dict(self.facts.workers)
        for key in [key for key in workers if key[0] == release]:
            if self.facts.busy and not self.facts.dies(release):
                workers[key] = Worker(workers[key].pid, ending=True)
            else:
                del workers[key]
        self.host.act(f"quiet {release}", workers=workers)

    def processes(self, release: str, part: Part = Part.ALL) -> list[MainProcess]:
        if release not in self.facts.installed:
            return []
        dies = self.facts.dies(release)
        found = []
        if part.has(SCHEDULER_INDEX) and SCHEDULER_INDEX in self.facts.units(release):
            lives = release in self.facts.schedulers
            found.append(MainProcess(SCHEDULER_INDEX, _pid(release) if lives else None, "running", lives, 0))
        for index in WORKERS if part.has(WORKERS[0]) else ():
            worker = self.facts.workers.get((release, index))
            if worker is None:
                found.append(MainProcess(index, None, "dead", wanted=False, restarts=0))
            elif dies:
                found.append(MainProcess(index, None, "auto-restart", wanted=True, restarts=1))
            else:
                found.append(MainProcess(index, worker.pid, "running", wanted=not worker.ending, restarts=0))
        return found

    def where_to_look(self, release: str, index: int) -> str:
        return f"{release} {index}"

    def enable(self, release: str) -> None:
        for index in self.facts.units(release):
            self.host.act(f"enable {release} {index}", at_boot=self.facts.at_boot | {(release, index)})

    def disable(self, release: str) -> None:
        for index in self.facts.units(release):
            self.host.act(f"disable {release} {index}", at_boot=self.facts.at_boot - {(release, index)})

    def enabled(self, release: str) -> bool:
        return any((release, index) in self.facts.at_boot for index in self.facts.units(release))

    def arm_chore(self, chore: str, token: int, seconds: float | None) -> None:
        if chore == REAPER:
            self.host.act("arm the reaper", reaper=True)
        else:
            self.host.act(f"arm the guard for {seconds:.0f} s", guard=self.facts.up + (seconds or 0.0))

    def disarm_chore(self, chore: str) -> None:
        if chore == REAPER:
            self.host.act("disarm the reaper", reaper=False)
        else:
            self.host.act("disarm the guard", guard=None)

    def chore_armed(self, chore: str) -> bool:
        return self.facts.reaper if chore == REAPER else self.facts.guard is not None


class PaperJournal(Journal):
    """A journal that keeps what its events add up to, not the events."""

    def __init__(self, host: PaperHost) -> None:
        super().__init__(Path("/nowhere/journal"))
        self.host = host

    def read(self) -> tuple[list[Event], int]:
        return [], int(self.host.facts.torn)

    def state(self) -> PoolState:
        return self.host.facts.state

    def append(self, event: str, now: Moment, token: int, by: str, **data: Any) -> Event:
        if self.host.facts.torn:
            self._add("torn_line", now, token, by, {"bytes": 1})
        return self._add(event, now, token, by, data)

    def _add(self, event: str, now: Moment, token: int, by: str, data: dict[str, Any]) -> Event:
        line = {"time": now.time, "up": now.up, "boot": now.boot, "token": token, "by": by, "event": event, **data}
        state = copy_state(self.host.facts.state)
        fold_in(state, line)
        if not self.host.facts.torn:
            self.host.show(f"half of the event {event}", replace(self.host.facts, torn=True))
        self.host.act(f"note {event}", state=state, torn=False, noted=self.host.facts.noted + 1)
        self.host.events.append(line)
        return line


def copy_state(state: PoolState) -> PoolState:
    """A state that can be changed without changing the one that was given, whatever fields it has."""
    new = copy.copy(state)
    for name, value in vars(state).items():
        if isinstance(value, dict):
            setattr(new, name, {key: copy.copy(item) for key, item in value.items()})
        elif isinstance(value, list) or is_dataclass(value):
            setattr(new, name, copy.copy(value))
    return new


class PaperStore(Store):
    """Stored releases of which only is known whether they are whole."""

    def __init__(self, host: PaperHost) -> None:
        super().__init__(host.layout)
        self.host = host

    def _put(self, what: str, release: str, state: str | None) -> None:
        stored = {name: value for name, value in self.host.facts.stored.items() if name != release}
        self.host.act(f"{what} {release}", stored={**stored, release: state} if state else stored)

    def spec(self, release: str) -> Spec:
        return spec_of(release, self.host.facts)

    def manifest(self, release: str) -> dict[str, Any]:
        return {}

    def problems(self, release: str, seal: str) -> list[str]:
        return [] if self.host.facts.stored.get(release) == "whole" and seal else [f"{release} is not whole"]

    def stage(self, spec: Spec, content: Any, units: dict[str, bytes], ask: Callable[[], dict[str, Any]] = dict) -> str:
        self._put("begin to build", spec.id, "half")
        ask()
        self._put("seal", spec.id, "whole")
        return f"seal of {spec.id}"

    def discard(self, release: str) -> None:
        self._put("discard", release, None)


class PaperLink:
    """The link ``current``."""

    def __init__(self, host: PaperHost) -> None:
        self.host = host
        self.parent = self

    def is_symlink(self) -> bool:
        return self.host.facts.link is not None

    def unlink(self) -> None:
        self.host.act("remove the link", link=None)

    def point(self, target: str) -> None:
        """Replace the link."""
        self.host.act(f"link {target}", link=Path(target).name)


def _pid(release: str) -> int:
    """The process id of a scheduler, which never dies here."""
    return (2_000_000 if release.startswith(DRILL) else 1_000_000) + int(release.removeprefix(DRILL))


def spec_of(release: str, facts: Facts, drill: dict[str, Any] | None = None) -> Spec:
    """The spec of any release, or of one that is made to fail."""
    scheduler = {"command": ["x"], "host": SCHEDULING, "period": 20.0} if release in facts.with_scheduler else {}
    return Spec(
        id=release, version=release, pool=POOL, engine="rq", queues=[["q"]], processes=len(WORKERS), command=["x"],
        user="nobody", broker=BROKER, broker_variable="URL", identity={}, scheduler=scheduler,
        drill=drill or {},
    )  # fmt: skip


class PaperHost(Host):
    """The collection's own ``Host``, with everything that it keeps on paper.

    :param facts: what is so at the moment.
    :param ways: the acts so far: what was about to be done, and how the host was just before.
    :param events: what was noted.
    :param meanwhile: which lock is waited for, counted from 1, and what happens to the host in that time.
    """

    def __init__(self, facts: Facts, by: str = "controller", meanwhile: Meanwhile | None = None) -> None:
        self.facts = facts
        self.ways: list[tuple[str, Facts]] = []
        self.events: list[Event] = []
        self.by = by
        self.locks = 0
        self.meanwhile = meanwhile
        self.pool = Pool(POOL, facts.name, Paper.name, "", "", "python3")
        self.layout = Layout(Path("/nowhere"))
        self.layout.current = PaperLink(self)  # type: ignore[assignment]  # as much of a path as is asked of it
        self.journal = PaperJournal(self)
        self.store = PaperStore(self)
        self.supervisor: Paper = Paper(self)

    def show(self, what: str, facts: Facts) -> None:
        """Remember a way in which the step could end here."""
        self.ways.append((what, facts))

    def act(self, what: str, **changed: Any) -> None:
        """Change what is so."""
        self.show(f"before: {what}", self.facts)
        self.facts = replace(self.facts, **changed)

    @contextlib.contextmanager
    def locked(self, seconds: float = 0.0) -> Iterator[None]:
        """Whoever waits for the lock may find that another step came first."""
        self.locks += 1
        if self.meanwhile and self.locks == self.meanwhile[0]:
            self.facts = self.meanwhile[1](self.facts)
        yield

    def check_paths(self) -> None:
        """There are none."""

    def check_space(self, needed: int) -> int:
        """There is always some."""
        return needed

    def running(self, part: Part = Part.ALL) -> dict[str, list[Process]]:
        """One process for each worker that lives, and one for each scheduler."""
        found: dict[str, list[Process]] = {}
        for release in self.facts.schedulers if part.has(SCHEDULER_INDEX) else ():
            found.setdefault(release, []).append(
                Process(_pid(release), 1, 0.0, release, f"{release}/0", scheduler=True)
            )
        for (release, index), worker in self.facts.workers.items() if part.has(WORKERS[0]) else ():
            if not self.facts.dies(release):
                name = f"{release}/{index}"
                found.setdefault(release, []).append(Process(worker.pid, 1, 0.0, release, name))
        return found

    def scheduler(self) -> tuple[str, int] | None:
        """The scheduler that has the lock."""
        first = self.facts.schedulers[:1]
        return (first[0], _pid(first[0])) if first else None

    def drift(self, release: str) -> list[str]:
        """Units are never edited here."""
        return []

    def link(self) -> str | None:
        """The release that ``current`` names."""
        return self.facts.link

    def remember_pool(self) -> None:
        """It is known."""

    def program_digest(self) -> str:
        """It is installed."""
        return hashlib.sha256(PROGRAM).hexdigest()

    def knows_broker(self, masked: str, url: str) -> bool:
        """It does."""
        return True

    def install_units(self, spec: Spec) -> None:
        """Nothing but the units."""
        self.supervisor.install(spec.id, {})

    def remove_units(self, release: str) -> None:
        """Nothing but the units."""
        self.supervisor.uninstall(release)
