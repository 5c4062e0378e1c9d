# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make sanity`: runs ansible-test sanity on a copy of the files that git doesn't ignore.

ansible-test wants to be inside ``ansible_collections/<namespace>/<name>``, and build/ has a link there already.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from tools.common import BUILD, CHECKOUT, VENV, ToolError, main, run

COPY = BUILD / "sanity" / "ansible_collections" / "backstep" / "workers"
SECONDS = 1500
# What ansible-test says when it can't download pip's installer; it takes the file if it is there.
WANTED = re.compile(r"can be manually downloaded and saved to: (\S+)")
INSTALLER = "import ensurepip; ensurepip.bootstrap(upgrade=True)\n"


def copy_sources() -> None:
    """Make the copy afresh. Folders that hold no part of the collection stay out: their Python is newer than 3.9."""
    shutil.rmtree(COPY, ignore_errors=True)
    listed = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], timeout=30).stdout
    for name in filter(None, listed.split("\0")):
        source = CHECKOUT / name
        if source.is_file() and not name.startswith("tools/"):
            target = COPY / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    # A repository of its own, or ansible-test asks ours, which ignores everything in build/, and checks nothing.
    run(["git", "init", "--quiet", COPY], timeout=30)


def sanity(tests: list[str]) -> tuple[int, str]:
    """Run it once: its status and its output."""
    command = [VENV / "bin" / "ansible-test", "sanity", "--local", "--requirements", "--color", "no"]
    command += ["--python", f"{sys.version_info[0]}.{sys.version_info[1]}", *(f"--test={test}" for test in tests)]
    environment = {**os.environ, "PATH": f"{VENV / 'bin'}:{os.environ.get('PATH', os.defpath)}"}
    done = run(command, timeout=SECONDS, check=False, cwd=COPY, env=environment)
    return done.returncode, done.stdout


def work() -> int:
    """Print what ansible-test says; its status. Arguments: names of single tests, all of them by default."""
    if Path(sys.prefix) != VENV:
        raise ToolError("Run this with build/venv/bin/python: ansible-test checks with the Python that runs it.")
    copy_sources()
    status, output = sanity(sys.argv[1:])
    wanted = WANTED.search(output)
    if wanted:
        installer = Path(wanted[1])
        installer.parent.mkdir(parents=True, exist_ok=True)
        installer.write_text(INSTALLER, encoding="utf-8")
        status, output = sanity(sys.argv[1:])
    print(output)
    if "All targets skipped" in output:
        raise ToolError("ansible-test found no file to check.")
    return status


if __name__ == "__main__":
    main(work)
