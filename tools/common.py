# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tools share: where things are, how a command is run, how one of them fails."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
BUILD = CHECKOUT / "build"
VENV = BUILD / "venv"
COLLECTIONS = BUILD / "collections"
LOCKS = CHECKOUT / "requirements"


class ToolError(Exception):
    """A foreseeable failure. The text says what happened and what to type next; the tool ends with status 2."""


def say(text: str) -> None:
    """One line of progress for a person, on stderr so that stdout stays a tool's answer."""
    print(text, file=sys.stderr, flush=True)


def run(
    command: Sequence[Any],
    *,
    timeout: float,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path = CHECKOUT,
) -> subprocess.CompletedProcess[str]:
    """Run a command without a shell and without input, output kept.

    :param command: text and paths.
    :param timeout: seconds.
    :param env: the whole environment of the command; that of this process by default.
    :raises ToolError: it isn't there, took too long, or (with ``check``) ended with a status other than 0.
    """
    line = " ".join(str(part) for part in command)
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            env=env,
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError as error:
        raise ToolError(f"{command[0]} is not on this machine: {line} was not run.") from error
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{line} took more than {timeout:.0f} s and was ended.") from error
    if check and done.returncode != 0:
        raise ToolError(f"{line} ended with status {done.returncode}:\n{done.stdout.strip()}")
    return done


def wait_for(what: str, predicate: Callable[[], str | None], *, timeout: float, interval: float = 0.2) -> None:
    """Poll until the predicate has nothing left to complain about.

    :param what: what is waited for, as it should read after "Waited for".
    :param predicate: None when it holds, else what was seen instead.
    :param timeout: seconds.
    :raises ToolError: the deadline passed; the text says what was seen last.
    """
    deadline = time.monotonic() + timeout
    while (seen := predicate()) is not None:
        if time.monotonic() > deadline:
            raise ToolError(f"Waited {timeout:.0f} s for {what}; last seen: {seen}")
        time.sleep(interval)


def main(work: Callable[[], int | None]) -> None:
    """Run a tool, and end the process with its status: 2 for a ``ToolError``, 130 after Ctrl-C."""
    try:
        sys.exit(work() or 0)
    except ToolError as error:
        say(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
