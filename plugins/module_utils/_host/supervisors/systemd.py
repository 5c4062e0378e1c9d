# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd: one service per worker process, transient timers for chores, one enabled service for the next boot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

from ..._rollout.errors import SupervisorError
from ..clock import uptime
from ..commands import Outcome, run
from ..files import read_if_there, write_file
from ..layout import SCHEDULER_INDEX, Part, Program, Spec, programs
from .base import MainProcess, Supervisor

_SECONDS = 60.0
# After so many seconds a chore that has died begins anew.
_AGAIN_SECONDS = 5

_SERVICE = """\
[Unit]
Description=Backstep pool {pool}, release {release}, {what}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
User={user}
WorkingDirectory={app}
{environment}
# The later one counts: pool_env can give the workers another broker URL than Backstep's own.
EnvironmentFile={broker}
EnvironmentFile={config}/environment
ExecStart={command}
# The main process alone is told to stop: TERM to the whole control group kills the task that a worker is executing.
KillMode=mixed
KillSignal=SIGTERM
# Never killed by the clock: only a drain policy that says so kills.
TimeoutStopSec=infinity
Restart=always
RestartSec=1

[Install]
WantedBy=multi-user.target
"""

_BOOT = """\
[Unit]
Description=Backstep pool {pool}: after a boot in the middle of a rollout, back to the last good release
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={python} {program} guard --boot --wait
Restart=on-failure
RestartSec=5

[Install]
WantedBy=multi-user.target
"""


def _quote(word: str) -> str:
    """One word of ExecStart: systemd reads ``%`` and ``$`` even inside quotes."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return escaped if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", escaped) else f'"{escaped}"'


def _what(program: Program) -> str:
    queues = ", ".join(program.queues).replace("%", "%%")
    return "scheduler" if program.index == SCHEDULER_INDEX else f"worker {program.index} ({queues})"


class Systemd(Supervisor):
    """Speaks to systemd by ``systemctl`` and ``systemd-run``."""

    name = "systemd"

    def _ask(self, *argv: str, refused_ok: bool = False) -> Outcome:
        outcome = run(argv, timeout=_SECONDS)
        if outcome.code and not refused_ok:
            raise SupervisorError(
                f"`{' '.join(argv)}` failed ({outcome.code}): {outcome.last_words}",
                left="What ran before goes on.",
                next_step=f"Look at: journalctl -u '{self.unit_prefix}*' -n 50",
            )
        return outcome

    def check(self) -> str:
        outcome = run(["systemctl", "show", "--property=Version", "--value"], timeout=_SECONDS)
        if outcome.code or not outcome.out.strip():
            raise SupervisorError(
                f"systemd doesn't answer on this host ({outcome.last_words or 'no version'}).",
                left="Nothing was changed.",
                next_step="Set pool_supervisor: supervisord if the host's workers run under supervisord.",
            )
        return outcome.out.strip()

    def _unit(self, release: str, index: int) -> str:
        return f"{self.unit_prefix}{release}-{index}.service"

    def _path(self, name: str) -> Path:
        return Path(self.pool.conf_dir) / name

    def render(self, spec: Spec) -> dict[str, bytes]:
        files = {}
        for program in programs(spec, self.pool, self.layout):
            launcher = [self.pool.python, str(self.layout.launcher(spec.id))]
            command = [*launcher, *program.options, "--", *program.command]
            variables = program.environment
            files[self._unit(spec.id, program.index)] = _SERVICE.format(
                pool=spec.pool,
                release=spec.id,
                what=_what(program),
                user=spec.user,
                app=self.layout.app(spec.id),
                config=self.layout.config(spec.id),
                broker=self.layout.broker_environment(spec.id),
                environment="\n".join(f"Environment={_quote(f'{key}={value}')}" for key, value in variables.items()),
                command=" ".join(_quote(word) for word in command),
            ).encode()
        return files

    def _names(self, release: str, part: Part = Part.ALL) -> list[str]:
        start = f"{self.unit_prefix}{release}-"
        found = {}
        for path in Path(self.pool.conf_dir).glob(f"{start}*.service"):
            index = path.name[len(start) : -len(".service")]
            if index.isdigit() and part.has(int(index)):
                found[int(index)] = path.name
        return [found[index] for index in sorted(found)]

    def installed(self, release: str) -> dict[str, bytes]:
        return {name: self._path(name).read_bytes() for name in self._names(release)}

    def install(self, release: str, files: dict[str, bytes]) -> None:
        boot = f"{self.unit_prefix}boot.service"
        wanted = {
            **files,
            boot: _BOOT.format(pool=self.pool.name, python=self.pool.python, program=self.layout.program).encode(),
        }
        changed = [name for name, content in wanted.items() if read_if_there(self._path(name)) != content]
        for name in changed:
            write_file(self._path(name), wanted[name], 0o644)
        if changed:
            self._ask("systemctl", "daemon-reload")
        if boot in changed:
            self._ask("systemctl", "enable", "--quiet", boot)

    def uninstall(self, release: str) -> None:
        names = self._names(release)
        if not names:
            return
        self.disable(release)
        for name in names:
            self._path(name).unlink()
        self._ask("systemctl", "daemon-reload")
        self._ask("systemctl", "reset-failed", *names, refused_ok=True)

    def start(self, release: str) -> None:
        self.start_stopped(release)

    def start_stopped(self, release: str, part: Part = Part.WORKERS) -> None:
        # A start job takes the place of a stop job that is still waiting for a task to end; the unit starts after that.
        # What a unit has died of before counts no more: NRestarts would speak against it until somebody stopped it.
        names = self._names(release, part)
        self._ask("systemctl", "reset-failed", *names, refused_ok=True)
        self._ask("systemctl", "start", "--no-block", *names)

    def quiet(self, release: str, part: Part = Part.ALL) -> None:
        names = self._names(release, part)
        if names:
            self._ask("systemctl", "stop", "--no-block", *names)

    def processes(self, release: str, part: Part = Part.ALL) -> list[MainProcess]:
        names = self._names(release, part)
        if not names:
            return []
        wanted = "--property=Id,MainPID,ActiveState,SubState,NRestarts,Job"
        blocks = self._ask("systemctl", "show", wanted, *names).out.strip().split("\n\n")
        found = []
        for block in blocks:
            values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
            index = int(values["Id"][: -len(".service")].rpartition("-")[2])
            pid = int(values.get("MainPID") or 0) or None
            active = values["ActiveState"]
            found.append(
                MainProcess(
                    index,
                    pid,
                    values.get("SubState", active),
                    active in ("active", "activating", "reloading"),
                    int(values.get("NRestarts") or 0),
                )
            )
        return sorted(found, key=lambda process: process.index)

    def where_to_look(self, release: str, index: int) -> str:
        return f"journalctl -u {self._unit(release, index)}"

    def enable(self, release: str) -> None:
        self._ask("systemctl", "enable", "--quiet", *self._names(release))

    def disable(self, release: str) -> None:
        names = self._names(release)
        if names:
            self._ask("systemctl", "disable", "--quiet", *names)

    def enabled(self, release: str) -> bool:
        names = self._names(release)
        if not names:
            return False
        words = self._ask("systemctl", "is-enabled", *names, refused_ok=True).out.split()
        if len(words) != len(names):
            raise SupervisorError(f"systemd doesn't tell which workers of {release} start at boot.")
        return "enabled" in words

    def _timers(self, chore: str) -> list[str]:
        pattern = f"{self.unit_prefix}{chore}-*.timer"
        listed = self._ask("systemctl", "list-units", "--all", "--plain", "--no-legend", "--full", pattern)
        return [line.split()[0] for line in listed.out.splitlines() if line.split()]

    def arm_chore(self, chore: str, token: int, seconds: Optional[float]) -> None:
        before = self._timers(chore)
        name = f"{self.unit_prefix}{chore}-{token}-{uptime() * 1000:.0f}"
        once = [f"--on-active={seconds or 0.0:.3f}"]
        when = [*once, f"--on-unit-inactive={_AGAIN_SECONDS}"] if seconds is None else once
        self._ask(
            "systemd-run",
            "--quiet",
            "--collect",
            f"--unit={name}",
            *when,
            "--timer-property=AccuracySec=100ms",
            # It tries again by itself; this is for one that was killed.
            "--property=Restart=on-failure",
            "--property=RestartSec=5",
            "--property=StartLimitIntervalSec=0",
            self.pool.python,
            str(self.layout.program),
            chore,
            "--wait",
        )
        if f"{name}.timer" not in self._timers(chore):
            raise SupervisorError(
                f"{name}.timer was asked for and is not there.",
                left="What ran before goes on.",
            )
        if before:
            self._ask("systemctl", "stop", *before)

    def disarm_chore(self, chore: str) -> None:
        # Its timer alone: the service may be the one that asks.
        timers = self._timers(chore)
        if timers:
            self._ask("systemctl", "stop", *timers)

    def chore_armed(self, chore: str) -> bool:
        return bool(self._timers(chore))
