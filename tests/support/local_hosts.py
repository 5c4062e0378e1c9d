# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Worker hosts without containers: a supervisord each, with a directory of its own in the place of a machine.

Everything that a host starts carries the host's directory in its environment, so that nothing outlives its test.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tools.common import wait_for

MARK = "BACKSTEP_TEST_HOST"
_SECONDS = 15.0
# What the host program is asked for by a supervisor.
_CHORES = {b"guard", b"reap"}

_SUPERVISORD = """\
[unix_http_server]
file={folder}/supervisor.sock
chmod=0600
[supervisord]
nodaemon=true
silent=true
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
{user}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[include]
files={folder}/conf.d/*.conf
"""


def marked(name: str, value: object) -> list[int]:
    """The processes that have this variable with this value in the environment they were started with."""
    mark = f"{name}={value}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def end_marked(name: str, value: object) -> None:
    """Kill all that carries this mark, also what is started meanwhile.

    :raises ToolError: something outlives it.
    """

    def still_there() -> str | None:
        pids = marked(name, value)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return f"processes {pids}" if pids else None

    wait_for(f"everything marked {name}={value} to end", still_there, timeout=_SECONDS)


@dataclass
class LocalHost:
    """One host. ``environment`` is what its supervisord is started with, by default that of this process."""

    folder: Path
    environment: Mapping[str, str] | None = None
    _supervisord: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """Its name in an inventory."""
        return self.folder.name

    @property
    def socket(self) -> Path:
        """Where supervisord listens."""
        return self.folder / "supervisor.sock"

    @property
    def conf_dir(self) -> Path:
        """Where program sections are installed."""
        return self.folder / "conf.d"

    def power_on(self) -> None:
        """Start supervisord, and with it what is to start by itself; ``wait_booted`` is the caller's."""
        self.conf_dir.mkdir(parents=True, exist_ok=True)
        config = self.folder / "supervisord.conf"
        user = "user=root" if os.geteuid() == 0 else ""
        config.write_text(_SUPERVISORD.format(folder=self.folder, user=user), encoding="utf-8")
        with (self.folder / "start.log").open("ab") as log:
            self._supervisord = subprocess.Popen(
                [sys.executable, "-m", "supervisor.supervisord", "-c", config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**(os.environ if self.environment is None else self.environment), MARK: str(self.folder)},
                # A session of its own: Ctrl-C is for whoever started it alone.
                start_new_session=True,
            )

    def wait_booted(self) -> None:
        """Wait until supervisord listens."""
        wait_for(f"supervisord of {self.name}", lambda: None if self.socket.exists() else "silent", timeout=_SECONDS)

    def boot(self) -> None:
        """Start supervisord; returns once it listens."""
        self.power_on()
        self.wait_booted()

    def processes(self) -> list[int]:
        """Every process that this host has started, supervisord included."""
        return marked(MARK, self.folder)

    def chores(self) -> list[int]:
        """The guards and reapers that run here: each ends by itself when it is not needed, and says so in its log."""
        found = []
        for pid in self.processes():
            with suppress(OSError):
                if _CHORES & set(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")):
                    found.append(pid)
        return found

    def power_cut(self) -> None:
        """Kill supervisord first, who would start others again, and then all that is left."""
        if self._supervisord:
            self._supervisord.kill()
            self._supervisord.wait(_SECONDS)
            self._supervisord = None
        end_marked(MARK, self.folder)
        self.socket.unlink(missing_ok=True)


@contextmanager
def local_hosts(count: int) -> Iterator[list[LocalHost]]:
    """Hosts ``w1`` and so on, started; killed and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="backstep-test-"))
    folder.chmod(0o755)
    hosts = [LocalHost(folder / f"w{number}") for number in range(1, count + 1)]
    try:
        for host in hosts:
            host.folder.mkdir()
            host.boot()
        yield hosts
    finally:
        for host in hosts:
            host.power_cut()
        shutil.rmtree(folder)
