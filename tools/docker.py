# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Docker engine and the base image of the test hosts.

An engine that answers is used as it is. Only where none does, one is started, and ``make clean`` stops only that one.

Usage: ``tools/python -m tools.docker up|image|stop``.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from tools.common import BUILD, CHECKOUT, ToolError, main, run, say, wait_for

RECIPE = CHECKOUT / "tools" / "images" / "worker-host"
PID_FILE = BUILD / "dockerd.pid"
LOG = BUILD / "dockerd.log"
START_SECONDS = 60
BUILD_SECONDS = 900
# What this checkout's containers and networks carry, so that `make clean` finds what a killed test left behind.
LABEL = f"backstep.checkout={CHECKOUT}"


def complaint() -> str | None:
    """None if an engine answers, else what the client said."""
    try:
        answer = run(["docker", "version", "--format", "{{.Server.Version}}"], timeout=30, check=False)
    except ToolError as error:
        return str(error)
    return None if answer.returncode == 0 else answer.stdout.strip()


def programs() -> dict[str, str]:
    """The programs still needed for the engine and the image, each with its Debian package."""
    needed = {} if complaint() is None else {"docker": "docker.io", "dockerd": "docker.io", "iptables": "iptables"}
    if complaint() is not None or not image_there():
        needed["mmdebstrap"] = "mmdebstrap"
    return needed


def ensure_engine() -> None:
    """Have an engine that answers.

    :raises ToolError: none answers, and this user can't start one, or it didn't come up.
    """
    said = complaint()
    if said is None:
        return
    if os.geteuid() != 0:
        raise ToolError(f"No Docker engine answers this user, and only root can start one. The client said: {said}")
    say("starting a Docker engine")
    with LOG.open("ab") as log:
        # A session of its own, so that it outlives this tool and a Ctrl-C in its terminal.
        engine = subprocess.Popen(
            ["dockerd"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
        )
    PID_FILE.write_text(str(engine.pid), encoding="utf-8")

    def not_up() -> str | None:
        if engine.poll() is not None:
            raise ToolError(f"dockerd ended with status {engine.returncode}; see {LOG}")
        return complaint()

    wait_for(f"the Docker engine (its log is {LOG})", not_up, timeout=START_SECONDS)


def stop_engine() -> None:
    """Stop the engine that ``ensure_engine`` started, and no other."""
    if not PID_FILE.exists():
        return
    pid = int(PID_FILE.read_text(encoding="utf-8"))

    def still_there() -> str | None:
        # A process id is given out again after a reboot: only a dockerd is ours.
        try:
            name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
        except OSError:
            return None
        return f"process {pid} runs" if name == "dockerd" else None

    if still_there():
        say("stopping the Docker engine that was started here")
        os.kill(pid, signal.SIGTERM)
        wait_for("the Docker engine to stop", still_there, timeout=START_SECONDS)
    PID_FILE.unlink()


def remove_leftovers() -> None:
    """Remove the containers and networks of this checkout that a killed run left behind."""
    if complaint() is not None:
        return
    for listing, removal in ((["ps", "--all"], ["rm", "--force", "--volumes"]), (["network", "ls"], ["network", "rm"])):
        found = run(["docker", *listing, "--quiet", "--filter", f"label={LABEL}"], timeout=60).stdout.split()
        if found:
            run(["docker", *removal, *found], timeout=120)


def authorities() -> Path | None:
    """The machine's own bundle of certificate authorities, if it says that it has one."""
    named = os.environ.get("SSL_CERT_FILE")
    return Path(named) if named else None


def image_name() -> str:
    """The base image's name: its tag is the hash of everything it is made from."""
    content = hashlib.sha256()
    bundle = authorities()
    for path in [*sorted(RECIPE.iterdir()), *([bundle] if bundle else [])]:
        content.update(path.read_bytes())
    return f"backstep/worker-host:{content.hexdigest()[:12]}"


def image_there() -> bool:
    """Whether the engine has the base image."""
    return run(["docker", "image", "inspect", image_name()], timeout=30, check=False).returncode == 0


def ensure_image() -> str:
    """Have the base image, and return its name. It is made from Debian's packages, once per recipe."""
    name = image_name()
    if image_there():
        return name
    say(f"making the base image {name} (a minute)")
    root = BUILD / "worker-host.tar"
    listed = (RECIPE / "packages.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in listed if line and not line.startswith("#")]
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(wanted)}"]
    bundle = authorities()
    finish = [str(RECIPE / "customize"), *([str(bundle)] if bundle else [])]
    # mmdebstrap hands its hooks to a shell, with the root folder as $1.
    command.append(f'--customize-hook=ROOT="$1" {shlex.join(finish)}')
    try:
        run([*command, "bookworm", root], timeout=BUILD_SECONDS)
        run(["docker", "import", "--change", 'CMD ["/lib/systemd/systemd"]', root, name], timeout=BUILD_SECONDS)
    finally:
        root.unlink(missing_ok=True)
    return name


def work() -> None:
    verb = sys.argv[1] if len(sys.argv) == 2 else ""
    if verb == "up":
        ensure_engine()
        ensure_image()
    elif verb == "image":
        print(image_name())
    elif verb == "stop":
        stop_engine()
    else:
        raise ToolError("Usage: tools/python -m tools.docker up|image|stop")


if __name__ == "__main__":
    main(work)
