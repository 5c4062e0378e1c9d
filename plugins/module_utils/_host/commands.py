# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running a program: always a list of arguments, never a shell."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Callable, Optional

from .._waiting.deadline import Deadline

# Of what a program says, so many bytes at its end are kept.
_KEPT = 1 << 16
ENDED = "ended"
TIMED_OUT = "timeout"
NOT_RUN = "not_run"


@dataclass(frozen=True)
class Outcome:
    """What a program left behind. ``code`` is its exit status; 127 when it isn't there.

    ``how``: ``ended`` (by itself), ``timeout`` (killed) or ``not_run``.
    """

    code: int
    out: str
    err: str
    how: str = ENDED

    @property
    def last_words(self) -> str:
        """The end of what it said, for a message."""
        lines = [line for line in (self.err + "\n" + self.out).splitlines() if line.strip()]
        return " / ".join(lines[-4:])[-600:]


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    directory: Optional[str] = None,
    user: Optional[str] = None,
    environment: Optional[Mapping[str, str]] = None,
) -> Outcome:
    """Run a program to its end.

    :param timeout: seconds after which it is killed; then ``code`` is 124.
    :param user: run as this user with its groups (needs root); None or the present user runs as is.
    :param environment: the whole environment; None gives a plain one (PATH, LANG, HOME).
    """
    try:
        # The host program runs where there is no Ansible, so no AnsibleModule.run_command.
        done = subprocess.run(  # pylint: disable=ansible-bad-function  # see above
            list(argv),
            cwd=directory,
            env=dict(environment) if environment is not None else plain_environment(user),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
            **_identity(user),
        )
    except FileNotFoundError as error:
        return Outcome(127, "", str(error), NOT_RUN)
    except PermissionError as error:
        return Outcome(126, "", str(error), NOT_RUN)
    except subprocess.TimeoutExpired as error:
        said = f"{_text(error.stderr)}\nno end after {timeout:.0f} s"
        return Outcome(124, _text(error.stdout), said, TIMED_OUT)
    return Outcome(done.returncode, _text(done.stdout), _text(done.stderr))


def run_group(
    argv: Sequence[str],
    *,
    timeout: float,
    directory: str,
    user: str,
    environment: Mapping[str, str],
    give_up: Callable[[], bool] = lambda: False,
    kept: int = 0,
) -> Outcome:
    """Run a program that may start others; whatever of its process group is left when it ends, or when its time is up,
    is killed. ``out`` is the end of what all of them have said, ``err`` empty.

    :param user: run as this user with its groups, when we are root.
    :param give_up: asked again and again whether its time is up already.
    :param kept: keep so many bytes of its output, and what it says of errors apart in ``err``.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            # A file and no pipe: a child that outlives the program would keep a pipe open.
            process = subprocess.Popen(  # pylint: disable=ansible-bad-function  # see run
                list(argv),
                cwd=directory,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors if kept else subprocess.STDOUT,
                start_new_session=True,
                **_identity(user),
            )
        except FileNotFoundError as error:
            return Outcome(127, "", str(error), NOT_RUN)
        except OSError as error:
            return Outcome(126, "", str(error), NOT_RUN)
        Deadline(timeout).wait_until(lambda: _has_ended(process.pid) or give_up(), poll=0.05)
        ended = _has_ended(process.pid)
        # Before it is waited for: until then its number can't be another's.
        _kill_group(process.pid)
        code = process.wait()
        return Outcome(code, _end_of(output, kept or _KEPT), _end_of(errors, _KEPT), ENDED if ended else TIMED_OUT)


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def kill_process(pid: int) -> None:
    """Kill a process, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _end_of(output: IO[bytes], most: int) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - most))
    kept = output.read()
    # A line that was cut could hold half a secret, which nobody would recognise.
    return _text(kept.partition(b"\n")[2] if size > most else kept)


def plain_environment(user: Optional[str]) -> dict[str, str]:
    """What every program gets: PATH and LANG, and HOME of another user."""
    plain = {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "LANG": "C.UTF-8"}
    if user and os.geteuid() == 0:
        plain["HOME"] = pwd.getpwnam(user).pw_dir
    return plain


def _identity(user: Optional[str]) -> dict[str, Any]:
    if not user or os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam(user)
    groups = os.getgrouplist(user, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}


def _text(raw: object) -> str:
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else ""
