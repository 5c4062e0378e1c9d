# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts one worker process: stands in the release's ``unit`` directory and is sealed with it.

Usage: ``launch.py [--environment FILE]... [--user NAME] --worker PREFIX [--extend=EXTENSION]... [--fail HOW]
[--lock FILE] -- COMMAND...``. Gives the worker a name that ends with its process id, then becomes the command (same
process id). Under systemd the unit sets user and environment; under supervisord this program does, so that secrets stay
in root-only files and out of supervisord's own. An extension (a variable's name, a separator of one character, and a
text) is put before what the variable says already. With ``--fail`` it does what a drill wants instead: ``crash`` (end
at once), ``never_consumes`` (wait to be told to stop) or ``late:SECONDS`` (run the command as a child, and have it end
in good order after that time). With ``--lock`` it first waits until nobody else holds the lock on that file. The
command inherits it, so that the kernel lets go of it in the moment in which the command ends, however that comes.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pwd
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import MutableMapping
from typing import Any

_STOPS = (signal.SIGTERM, signal.SIGINT)


def extend(environment: MutableMapping[str, str], extension: str) -> None:
    """Put a text before what a variable says already."""
    name, separator, text = re.split(r"(\W)", extension, maxsplit=1)
    environment[name] = separator.join(filter(None, (text, environment.get(name))))


def become(user: str) -> None:
    """Go on as this user."""
    entry = pwd.getpwnam(user)
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    os.environ.update(HOME=entry.pw_dir, USER=user, LOGNAME=user)


def fail(how: str, command: list[str]) -> int:
    """Fail as a drill wants it; the exit status. No task is cut off by that."""
    waits = how == "never_consumes"
    if waits:
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    sys.stderr.write(f"A drill: this worker is made to fail ({how}).\n")
    sys.stderr.flush()
    if waits:
        signal.sigwait(_STOPS)
    if waits or how == "crash":
        return 0 if waits else 1
    return _end_late(command, float(how.partition(":")[2]))


def _end_late(command: list[str], seconds: float) -> int:
    children: list[subprocess.Popen[bytes]] = []
    told: list[int] = []

    def end(number: int, _frame: Any = None) -> None:
        told.append(number)
        # Once: many workers take a second signal for an order to drop their task.
        if children and len(told) == 1:
            children[0].terminate()

    for number in _STOPS:
        signal.signal(number, end)
    # Not a module of Ansible's, which this runs without.
    children.append(subprocess.Popen(command))  # pylint: disable=ansible-bad-function  # see above
    if told:
        children[0].terminate()
    try:
        return children[0].wait(seconds)
    except subprocess.TimeoutExpired:
        in_time = not told
        end(signal.SIGTERM)
        code = children[0].wait()
        return code or 1 if in_time else code


def main() -> None:
    """Become the worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--environment", action="append", default=[])
    parser.add_argument("--user", default="")
    parser.add_argument("--worker", required=True)
    parser.add_argument("--extend", action="append", default=[])
    parser.add_argument("--fail", default="")
    parser.add_argument("--lock", default="")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    for path in options.environment:
        with open(path, encoding="utf-8") as stream:
            for word in shlex.split(stream.read()):
                name, value = word.split("=", 1)
                os.environ[name] = value
    for extension in options.extend:
        extend(os.environ, extension)
    # What execvp imports to look for a program on PATH may lie where the worker's user can't read it.
    os.get_exec_path()
    if options.user and os.geteuid() == 0:
        become(options.user)
    if options.lock:
        # For reading: the file is root's, and the command's user has no more right to it.
        handle = os.open(options.lock, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.set_inheritable(handle, True)
    worker = f"{options.worker}/{os.getpid()}"
    os.environ["BACKSTEP_WORKER"] = worker
    command = [word.replace("{worker}", worker) for word in options.command]
    if options.fail:
        # A program of its own, with no module's answer to give.
        sys.exit(fail(options.fail, command))  # pylint: disable=ansible-bad-function  # see above
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
