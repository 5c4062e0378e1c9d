# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One pool on this host: its lock, journal, releases and supervisor, and what the host is fit for."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional

from .._rollout.errors import BackstepError, BadInput, HostUnfit, ReleaseDamaged, StepOutOfOrder
from .._rollout.pool_state import Event, PoolState
from .._rollout.rules import require_lease
from .._waiting.deadline import Deadline
from . import processes
from .clock import moment
from .commands import run
from .files import free_bytes, fsync_directory, read_if_there, write_file
from .journal import Journal
from .layout import Layout, Part, Pool, Spec, environment_file, read_link
from .store import Store
from .supervisors.base import Supervisor
from .supervisors.table import open_supervisor

_LOCK_SECONDS = 20.0
_PROGRAM_SECONDS = 60.0
CONTROLLER = "controller"


class Host:
    """A pool on this host. ``by`` names who acts in the journal: ``controller``, ``guard`` or ``person``."""

    def __init__(self, root: str, pool: Optional[Pool] = None, by: str = CONTROLLER) -> None:
        self.layout = Layout(Path(os.path.abspath(root)))
        self.pool = pool or self._stored_pool()
        self.by = by
        self.journal = Journal(self.layout.journal)
        self.store = Store(self.layout)
        self.supervisor: Supervisor = open_supervisor(self.pool, self.layout)

    def _stored_pool(self) -> Pool:
        raw = read_if_there(self.layout.pool)
        if raw is None:
            raise BadInput(
                f"There is no pool at {self.layout.root}.",
                left="Nothing was changed.",
                next_step="Deploy to it first: ansible-playbook backstep.workers.deploy",
            )
        return Pool(**json.loads(raw))

    # -- what is so ---------------------------------------------------------------------------------------------

    def state(self) -> PoolState:
        """What the journal adds up to."""
        return self.journal.state()

    def check_paths(self) -> None:
        """Refuse a root that can't be worked in.

        :raises HostUnfit: it, or one of its parts, is not what it has to be. Nothing is touched.
        """
        for path in (self.layout.root, self.layout.releases, self.layout.state):
            if path.exists() and not path.is_dir():
                raise HostUnfit(
                    f"{path} is not a directory.", left="Nothing was changed.", next_step="Choose another pool_root."
                )
        if not _may_write(self.layout.root):
            raise HostUnfit(
                f"User {os.geteuid()} may not write below {self.layout.root}.",
                left="Nothing was changed.",
                next_step="Run the play with become: true.",
            )
        link = self.layout.current
        if link.exists() and not link.is_symlink():
            raise HostUnfit(
                f"{link} is a real {'directory' if link.is_dir() else 'file'}, not a link.",
                left="Nothing was changed.",
                next_step="Another tool made it: choose another pool_root.",
            )
        if link.is_symlink() and not os.path.isdir(link):
            raise HostUnfit(
                f"{link} points nowhere (to {os.readlink(link)}).",
                left="Nothing was changed.",
                next_step=f"If that release is lost: remove the link, then look at {self.layout.program} history.",
            )

    def check_space(self, needed: int) -> int:
        """Refuse a disk on which the release won't fit; free bytes.

        :raises HostUnfit: fewer than ``needed`` bytes are free.
        """
        free = free_bytes(self.layout.root)
        if free < needed:
            raise HostUnfit(
                f"{free // 2**20} MiB are free below {self.layout.root}; the release needs {needed // 2**20} MiB.",
                left="Nothing was changed.",
                next_step="Make room, or lower pool_min_free_mib if you know better.",
            )
        return free

    def running(self, part: Part = Part.ALL) -> dict[str, list[processes.Process]]:
        """The live processes of the pool by the release that they themselves report; no release without any."""
        found: dict[str, list[processes.Process]] = {}
        for process in processes.of_pool(self.layout.root, self.supervisor.unit_prefix):
            found.setdefault(str(process.release), []).append(process)
        if part is Part.ALL:
            return found
        chosen = {release: self._of_part(release, group, part) for release, group in found.items()}
        return {release: group for release, group in chosen.items() if group}

    def _of_part(self, release: str, group: list[processes.Process], part: Part) -> list[processes.Process]:
        mains = [main.pid for main in self.supervisor.processes(release, Part.SCHEDULER) if main.pid]
        schedulers = processes.schedulers_among(group, mains)
        return [process for process in group if (process.pid in schedulers) == (part is Part.SCHEDULER)]

    def scheduler(self) -> Optional[tuple[str, int]]:
        """The release whose scheduler runs here, and its process id: that which holds the lock. None when none does."""
        holders = processes.lock_holders(self.layout.scheduler_lock)
        found = self.running(Part.SCHEDULER) if holders else {}
        for release, group in found.items():
            for process in group:
                if process.pid in holders:
                    return release, process.pid
        return None

    def drift(self, release: str) -> list[str]:
        """Installed units of a release that are not, or no longer, as they were sealed."""
        installed = self.supervisor.installed(release)
        sealed = self.sealed_units(release)
        return sorted(name for name in {*installed, *sealed} if installed.get(name) != sealed.get(name))

    def sealed_units(self, release: str) -> dict[str, bytes]:
        """The unit files that were sealed with a release."""
        directory, programs = self.layout.unit(release), self.layout.programs(release)
        try:
            return {path.name: path.read_bytes() for path in directory.iterdir() if path not in programs}
        except FileNotFoundError:
            raise ReleaseDamaged(f"{directory} is missing.", left="Nothing was switched.") from None

    def link(self) -> Optional[str]:
        """The release that ``current`` names."""
        return read_link(self.layout.current)

    # -- acting -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self, seconds: float = _LOCK_SECONDS) -> Iterator[None]:
        """One step at a time on this host, whoever takes it.

        :raises StepOutOfOrder: another step is still under way when the time is up.
        """
        self.layout.state.mkdir(parents=True, exist_ok=True)
        os.chmod(self.layout.root, 0o755)
        os.chmod(self.layout.state, 0o700)
        handle = os.open(self.layout.lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not Deadline(seconds).wait_until(lambda: try_lock(handle)):
                raise StepOutOfOrder(
                    f"Another step is under way on this host for more than {seconds:.0f} s.",
                    left="Nothing was changed on this host by this step.",
                    next_step=f"See what it does with: {self.layout.program} status",
                )
            yield
        finally:
            os.close(handle)

    def note(self, event: str, token: int, **data: Any) -> Event:
        """Write an event to the journal; see ``Journal.append``."""
        return self.journal.append(event, moment(), token, self.by, **data)

    def require(self, token: int) -> PoolState:
        """The state, if rollout ``token`` may change this host now.

        :raises StaleToken: it may not.
        """
        state = self.state()
        require_lease(state, moment(), token)
        return state

    def remember_pool(self) -> None:
        """Store what the host program has to know without a controller, and have a place for logs."""
        self.layout.logs.mkdir(exist_ok=True)
        raw = json.dumps(asdict(self.pool), sort_keys=True).encode()
        if read_if_there(self.layout.pool) != raw:
            write_file(self.layout.pool, raw, 0o600)

    def program_digest(self) -> str:
        """SHA-256 of the installed host program, "" when there is none."""
        program = read_if_there(self.layout.program)
        return "" if program is None else hashlib.sha256(program).hexdigest()

    def install_program(self, program: bytes) -> None:
        """Install the host program, once it is seen to run: the guard that it is would else fail where nobody looks.

        :raises HostUnfit: this host's Python can't run it; what was installed before stays.
        """
        path = self.layout.program
        path.parent.mkdir(parents=True, exist_ok=True)
        tried = path.with_name(f"{path.name}.new")
        write_file(tried, program, 0o755)
        try:
            done = run([self.pool.python, str(tried), "--help"], timeout=_PROGRAM_SECONDS)
            if done.code:
                raise HostUnfit(
                    f"This host would have no guard: {self.pool.python} can't run the host program: {done.last_words}",
                    left="Nothing was switched; what was installed before stays.",
                    next_step="Have Ansible use a whole Python from 3.9 on (ansible_python_interpreter); run again.",
                )
            os.replace(tried, path)
        finally:
            tried.unlink(missing_ok=True)
        fsync_directory(path.parent)

    def broker_url(self, masked: str) -> Optional[str]:
        """The present URL of a broker, with its secret; None when this host was never told."""
        return self._brokers().get(masked)

    def knows_broker(self, masked: str, url: str) -> bool:
        """Whether this host has the present secret of a broker."""
        return self.broker_url(masked) == url

    def remember_broker(self, masked: str, url: str) -> None:
        """Keep the present secret of a broker, apart from any release."""
        brokers = {**self._brokers(), masked: url}
        write_file(self.layout.brokers, json.dumps(brokers, sort_keys=True).encode(), 0o600)

    def _brokers(self) -> dict[str, str]:
        return dict(json.loads(read_if_there(self.layout.brokers) or b"{}"))

    def install_units(self, spec: Spec) -> None:
        """Make a release ready to be started: broker secret, log directory, config reachable, lock, units known."""
        url = self.broker_url(spec.broker)
        if url is None:
            raise ReleaseDamaged(
                f"This host has no URL for the broker {spec.broker} of release {spec.id}.",
                left="Nothing was switched.",
                next_step="Deploy any release of that broker here once.",
            )
        write_file(self.layout.broker_environment(spec.id), environment_file({spec.broker_variable: url}), 0o600)
        self.store.set_open(spec.id, True)
        if spec.scheduler.get("host") == self.pool.host:
            # Never replaced: whoever runs holds the lock on this very file. Whoever may read it can take that lock.
            os.close(os.open(self.layout.scheduler_lock, os.O_RDONLY | os.O_CREAT, 0o644))
            os.chmod(self.layout.scheduler_lock, 0o644)
        self.supervisor.install(spec.id, self.sealed_units(spec.id))

    def remove_units(self, release: str) -> None:
        """Undo ``install_units``; nothing of the release may be running."""
        self.supervisor.uninstall(release)
        self.layout.broker_environment(release).unlink(missing_ok=True)
        if self.layout.config(release).is_dir():
            self.store.set_open(release, False)

    def target_problem(self, state: PoolState, release: str) -> str:
        """Why a stored release could not be gone back to right now, or ""."""
        try:
            self.store.verify(release, state.releases[release].seal)
        except BackstepError as error:
            return error.message
        return ""


def _may_write(path: Path) -> bool:
    while not path.exists():
        path = path.parent
    return os.access(path, os.W_OK)


def try_lock(handle: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Take a lock on an open file, if nobody else holds one that excludes it."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def default_python() -> str:
    """The interpreter that launchers and the host program are started with from now on."""
    return os.path.realpath(sys.executable)
