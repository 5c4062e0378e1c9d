# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""supervisord: one program per process, one group for a release's workers, one more program per chore."""

from __future__ import annotations

import http.client
import re
import shlex
import socket
import xmlrpc.client
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from ..._rollout.errors import BadInput, SupervisorError
from ..clock import uptime
from ..commands import run
from ..files import read_if_there, write_file
from ..layout import SCHEDULER_INDEX, Part, Spec, programs
from .base import MainProcess, Supervisor

_SECONDS = 30.0
# supervisord has no "never": this is 68 years, the largest number of seconds that it takes.
_NEVER = 2147483647
# One that has exited by itself is started again in a moment.
_WANTED = frozenset(("STARTING", "RUNNING", "BACKOFF", "EXITED"))
# Fault codes of supervisor/xmlrpc.py (supervisor 4.3).
_BAD_NAME = 10
_ALREADY_STARTED = 60
_NOT_RUNNING = 70
_ALREADY_ADDED = 90
_STILL_RUNNING = 91

_PROGRAM = """\
[program:{name}]
command={command}
directory={app}
environment={environment}
autostart={autostart}
autorestart=true
startsecs=1
startretries={never}
; The main process alone is told to stop; only a drain policy that says so kills.
stopsignal=TERM
stopasgroup=false
stopwaitsecs={never}
redirect_stderr=true
stdout_logfile={log}
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=2

"""

_CHORE = """\
[program:{name}]
command={command}
autostart=true
autorestart=unexpected
exitcodes=0
startsecs=0
redirect_stderr=true
stdout_logfile={log}
stdout_logfile_maxbytes=1MB
stdout_logfile_backups=1
"""


def _plain(value: object) -> str:
    """A value of supervisord's configuration file, which reads ``%`` as the start of an expression."""
    return str(value).replace("%", "%%")


def _log(path: str) -> str:
    """The path of a log file, whose expressions supervisord (seen in 4.3) fills in twice."""
    return _plain(_plain(path))


def _command(words: Sequence[str]) -> str:
    """A command for supervisord's configuration file, in which white space and ``;`` or ``#`` begin a comment.

    ``shlex`` puts a word with white space into single quotes: closing and opening them again keeps the two apart.
    """
    return _plain(re.sub(r"(\s)([;#])", r"\1''\2", shlex.join(words)))


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_SECONDS)
        self.sock.connect(self._path)


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return _Connection(self._path)


class Supervisord(Supervisor):
    """Speaks XML-RPC to supervisord's Unix socket."""

    name = "supervisord"

    def _call(self, method: str, *arguments: Any, harmless: tuple[int, ...] = ()) -> Any:
        """One call; a fault in ``harmless`` says that what was asked for is so already, and gives None."""
        proxy = xmlrpc.client.ServerProxy("http://localhost", transport=_Transport(self.pool.socket))
        try:
            return getattr(proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode in harmless:
                return None
            what = fault.faultString
        except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
            what = str(error) or type(error).__name__
        raise SupervisorError(
            f"supervisord at {self.pool.socket} refused {method}: {what}",
            left="What ran before goes on.",
            next_step="Look at it with: supervisorctl status",
        )

    def check(self) -> str:
        for path in (self.layout.root, self.pool.conf_dir):
            if re.search(r'[;#"\s]', str(path).replace(" ", "")):
                raise BadInput(
                    f"{path} can't be used under supervisord: its configuration files can't hold such a path.",
                    left="Nothing was changed.",
                    next_step='Choose one without ";", "#", double quotes, tabs and line breaks.',
                )
        return f"supervisord {self._call('getSupervisorVersion')}"

    def _group(self, release: str) -> str:
        return f"{self.unit_prefix}{release}"

    def _groups(self, release: str, part: Part = Part.ALL) -> list[str]:
        """The groups of a release: its workers', and that of its scheduler, a program that is a group by itself."""
        workers = self._group(release)
        scheduler = f"{workers}-{SCHEDULER_INDEX}"
        has_one = f"\n[program:{scheduler}]\n".encode() in (read_if_there(self._path(release)) or b"")
        groups = {1: workers, SCHEDULER_INDEX: scheduler} if has_one else {1: workers}
        return [group for index, group in groups.items() if part.has(index)]

    def _path(self, release: str) -> Path:
        return Path(self.pool.conf_dir) / f"{self._group(release)}.conf"

    def render(self, spec: Spec) -> dict[str, bytes]:
        group = self._group(spec.id)
        names = [f"{group}-{index}" for index, _queues in spec.instances]
        text = f"[group:{group}]\nprograms={','.join(names)}\n\n"
        # The later one counts: pool_env can give the workers another broker URL than Backstep's own.
        files = [str(self.layout.broker_environment(spec.id)), f"{self.layout.config(spec.id)}/environment"]
        for program in programs(spec, self.pool, self.layout):
            launcher = [self.pool.python, str(self.layout.launcher(spec.id))]
            for path in files:
                launcher += ["--environment", path]
            launcher += ["--user", spec.user, *program.options, "--"]
            text += _PROGRAM.format(
                name=f"{group}-{program.index}",
                command=_command(launcher + program.command),
                app=_plain(self.layout.app(spec.id)),
                environment=_plain(",".join(f'{key}="{value}"' for key, value in program.environment.items())),
                autostart="false",
                never=_NEVER,
                log=_log(f"{self.layout.logs}/{spec.id}-{program.index}.log"),
            )
        return {f"{group}.conf": text.encode()}

    def installed(self, release: str) -> dict[str, bytes]:
        content = read_if_there(self._path(release))
        if content is None:
            return {}
        return {self._path(release).name: content.replace(b"\nautostart=true\n", b"\nautostart=false\n")}

    def install(self, release: str, files: dict[str, bytes]) -> None:
        if self.installed(release) != files:
            write_file(self._path(release), files[self._path(release).name], 0o600)
        # Also when the file is there: whoever wrote it may have died before supervisord read it.
        self._call("reloadConfig")
        for group in self._groups(release):
            self._call("addProcessGroup", group, harmless=(_ALREADY_ADDED,))

    def _forget(self, groups: Sequence[str], path: Path) -> None:
        path.unlink(missing_ok=True)
        self._call("reloadConfig")
        for group in groups:
            self._call("removeProcessGroup", group, harmless=(_BAD_NAME, _STILL_RUNNING))

    def uninstall(self, release: str) -> None:
        if self._path(release).exists():
            self._forget(self._groups(release), self._path(release))

    def start(self, release: str) -> None:
        self.start_stopped(release)
        if any(not process.wanted for process in self.processes(release, Part.WORKERS)):
            # Still finishing a task: supervisord can't queue a start behind a stop, so a process of ours does.
            program = [self.pool.python, str(self.layout.program), "resume", "--detach", release]
            outcome = run(program, timeout=_SECONDS)
            if outcome.code:
                raise SupervisorError(f"The workers of {release} can't be started again: {outcome.last_words}")

    def start_stopped(self, release: str, part: Part = Part.WORKERS) -> None:
        for group in self._groups(release, part):
            self._call("startProcessGroup", group, False, harmless=(_ALREADY_STARTED,))

    def quiet(self, release: str, part: Part = Part.ALL) -> None:
        for group in self._groups(release, part):
            self._call("stopProcessGroup", group, False, harmless=(_BAD_NAME, _NOT_RUNNING))

    def processes(self, release: str, part: Part = Part.ALL) -> list[MainProcess]:
        groups = self._groups(release, part)
        found = []
        for info in self._call("getAllProcessInfo") if groups else ():
            if info["group"] in groups:
                found.append(
                    MainProcess(
                        index=int(info["name"].rpartition("-")[2]),
                        pid=info["pid"] or None,
                        state=info["statename"].lower(),
                        wanted=info["statename"] in _WANTED,
                        # supervisord counts no restarts: the process ids noted at the switch tell (see release_state).
                        restarts=1 if info["statename"] == "BACKOFF" else 0,
                    )
                )
        return sorted(found, key=lambda process: process.index)

    def where_to_look(self, release: str, index: int) -> str:
        return f"{self.layout.logs}/{release}-{index}.log"

    def _set_autostart(self, release: str, value: str) -> None:
        content = read_if_there(self._path(release))
        if content is not None:
            new = re.sub(rb"(?m)^autostart=(true|false)$", b"autostart=" + value.encode(), content)
            if new != content:
                write_file(self._path(release), new, 0o600)

    def enable(self, release: str) -> None:
        self._set_autostart(release, "true")

    def disable(self, release: str) -> None:
        self._set_autostart(release, "false")

    def enabled(self, release: str) -> bool:
        return b"\nautostart=true\n" in (read_if_there(self._path(release)) or b"")

    def _chore_paths(self, chore: str) -> list[Path]:
        # No pool and no release can have a plus sign in its name.
        return sorted(Path(self.pool.conf_dir).glob(f"{self.unit_prefix}+{chore}-*.conf"))

    def _at_work(self) -> set[str]:
        infos = self._call("getAllProcessInfo")
        return {str(info["name"]) for info in infos if info["statename"] in ("STARTING", "RUNNING")}

    def arm_chore(self, chore: str, token: int, seconds: Optional[float]) -> None:
        # A name of its own each time: the guard of the rollout before may be about to end just now, and supervisord
        # would call it started. The new one reads its deadline from the journal.
        before = self._chore_paths(chore)
        name = f"{self.unit_prefix}+{chore}-{token}-{uptime() * 1000:.0f}"
        log = f"{self.layout.logs}/{chore}.log"
        command = _command([self.pool.python, str(self.layout.program), chore, "--wait"])
        path = Path(self.pool.conf_dir) / f"{name}.conf"
        write_file(path, _CHORE.format(name=name, command=command, log=_log(log)).encode(), 0o600)
        self._call("reloadConfig")
        self._call("addProcessGroup", name, harmless=(_ALREADY_ADDED,))
        self._call("startProcess", name, False, harmless=(_ALREADY_STARTED,))
        if name not in self._at_work():
            raise SupervisorError(
                f"{name} was asked for and doesn't run under supervisord.",
                left="What ran before goes on.",
                next_step=f"Look at {log}",
            )
        for old in before:
            self._forget([old.stem], old)

    def disarm_chore(self, chore: str) -> None:
        # They end by themselves once the journal says that they are not needed; none may be stopped from within.
        for path in self._chore_paths(chore):
            self._forget([path.stem], path)

    def chore_armed(self, chore: str) -> bool:
        return bool({path.stem for path in self._chore_paths(chore)} & self._at_work())
