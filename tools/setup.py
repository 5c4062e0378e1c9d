# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make setup`: makes this machine able to run the demo, or the tests too. A second run does nothing.

Usage: ``tools/python -m tools.setup demo|fast|test``: for the demo, for the tests without containers, for all tests.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tools import content, docker, node, packages, venv
from tools.common import BUILD, VENV, ToolError, main
from tools.pythons import Python, newest

PROFILES = ("demo", "fast", "test")


@contextmanager
def alone() -> Iterator[None]:
    """Let one set-up run at a time in this checkout; a second one waits for the first.

    :raises ToolError: another user's set-up made build/.
    """
    BUILD.mkdir(exist_ok=True)
    if not os.access(BUILD, os.W_OK):
        raise ToolError(f"{BUILD} belongs to another user. Nothing was changed. Remove it, or work as that user.")
    with (BUILD / ".setup.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def missing_packages(profile: str) -> list[str]:
    """The Debian packages to install so that the profile's programs are all there."""
    wanted = {"redis-server": "redis-server"}
    if profile != "demo":
        # Sidekiq, Node and RabbitMQ are what the tests of their engines run.
        wanted |= {"git": "git", "rabbitmq-server": "rabbitmq-server", "sidekiq": "ruby-sidekiq", **node.programs()}
        # What reads the metrics: promtool checks text and alerts, node exporter serves them.
        wanted |= {"promtool": "prometheus", "prometheus-node-exporter": "prometheus-node-exporter"}
        # The report is looked at as people see it.
        wanted |= {"chromium": "chromium"}
    if profile == "test":
        wanted |= docker.programs()
    return [package for program, package in wanted.items() if not packages.have(program)]


def usable_python(lock: str) -> Python:
    """The newest Python that will do, after installing Debian's if there is none."""
    found = newest(lock)
    if found is None:
        packages.install(["python3", "python3-venv"])
        found = newest(lock)
    if found is None:
        raise ToolError("No Python with venv and pip was found that requirements/ has a lock file for.")
    return found


def work() -> None:
    profile = sys.argv[1] if len(sys.argv) == 2 else ""
    if profile not in PROFILES:
        raise ToolError(f"Usage: tools/python -m tools.setup {'|'.join(PROFILES)}")
    with alone():
        packages.install(missing_packages(profile))
        lock = "demo" if profile == "demo" else "test"
        python = usable_python(lock)
        venv.ensure(VENV, python, lock)
        content.link_checkout()
        content.ensure_wheelhouse()
        if profile != "demo":
            node.ensure()
        if profile == "test":
            content.ensure_driver_collections(python)
            docker.ensure_engine()
            docker.ensure_image()


if __name__ == "__main__":
    main(work)
