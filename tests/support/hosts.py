# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Worker hosts for tests: containers with systemd as PID 1, on a network of their own.

They leave nothing behind: ``worker_hosts`` removes them when its block ends, on an error and on Ctrl-C too.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.environment import WHEELHOUSE
from tools.common import ToolError, run, wait_for
from tools.docker import LABEL, image_name

BOOT_SECONDS = 90
COMMAND_SECONDS = 120
# Where every host has the wheels that a release installs.
WHEELHOUSE_ON_HOST = "/wheelhouse"
# What lets systemd run as PID 1, also on kernels without user namespaces and in machines that can't give --privileged.
SYSTEMD_OPTIONS = (
    *("--cap-add", "SYS_ADMIN"),
    *("--security-opt", "seccomp=unconfined"),
    *("--security-opt", "apparmor=unconfined"),
    "--cgroupns=host",
    *("--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw"),
    *("--tmpfs", "/run"),
    *("--tmpfs", "/run/lock"),
    *("--env", "container=docker"),
    # systemd's word for "shut down"; at SIGTERM it would only load itself again.
    *("--stop-signal", "SIGRTMIN+3"),
    *("--label", LABEL),
)


@dataclass(frozen=True)
class Host:
    """One container. Every call is bounded in time and raises ``ToolError`` with the client's answer if it fails."""

    name: str
    network: str

    def start(self, options: Sequence[str] = ()) -> None:
        """Create it and start it; ``wait_booted`` is the caller's. ``options`` go to ``docker run``."""
        command = ["docker", "run", "--detach", "--name", self.name, "--hostname", self.name, "--network", self.network]
        command += ["--volume", f"{WHEELHOUSE}:{WHEELHOUSE_ON_HOST}:ro", *SYSTEMD_OPTIONS, *options, image_name()]
        run(command, timeout=COMMAND_SECONDS)

    def wait_booted(self) -> None:
        """Wait until systemd has started everything.

        :raises ToolError: not within ``BOOT_SECONDS``, or with failed units, which the text names.
        """

        def not_booted() -> str | None:
            state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
            if state == "degraded":
                raise ToolError(f"{self.name} booted with failed units: {self.run('systemctl', '--failed').stdout}")
            return None if state == "running" else state

        wait_for(f"{self.name} to boot", not_booted, timeout=BOOT_SECONDS)

    def run(
        self, *command: str, check: bool = True, timeout: float = COMMAND_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host as root; its output is in ``stdout``, errors included."""
        return run(["docker", "exec", self.name, *command], timeout=timeout, check=check)

    def put(self, source: Path, target: str) -> None:
        """Copy a file or a folder onto the host."""
        run(["docker", "cp", str(source), f"{self.name}:{target}"], timeout=COMMAND_SECONDS)

    def get(self, source: str, target: Path) -> None:
        """Copy a file or a folder off the host, which may be stopped."""
        run(["docker", "cp", f"{self.name}:{source}", str(target)], timeout=COMMAND_SECONDS)

    def address(self) -> str:
        """Its address on the network of its group."""
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return run(["docker", "inspect", "--format", form, self.name], timeout=COMMAND_SECONDS).stdout.strip()

    def restart(self) -> None:
        """Reboot it in good order, and wait until it is up."""
        run(["docker", "restart", "--time", "30", self.name], timeout=COMMAND_SECONDS)
        self.wait_booted()

    def kill(self) -> None:
        """Cut its power: every process gets SIGKILL. ``power_on`` boots it again."""
        run(["docker", "kill", "--signal", "KILL", self.name], timeout=COMMAND_SECONDS)

    def power_on(self) -> None:
        """Boot it after ``kill``, and wait until it is up."""
        run(["docker", "start", self.name], timeout=COMMAND_SECONDS)
        self.wait_booted()

    def freeze(self) -> None:
        """Stop every process where it is; the host answers nothing, and connections stay open."""
        run(["docker", "pause", self.name], timeout=COMMAND_SECONDS)

    def thaw(self) -> None:
        """Undo ``freeze``."""
        run(["docker", "unpause", self.name], timeout=COMMAND_SECONDS)

    def disconnect(self) -> None:
        """Cut it off from the other hosts. ``run`` still works: it doesn't use the network."""
        run(["docker", "network", "disconnect", self.network, self.name], timeout=COMMAND_SECONDS)

    def connect(self) -> None:
        """Undo ``disconnect``."""
        run(["docker", "network", "connect", self.network, self.name], timeout=COMMAND_SECONDS)


@dataclass(frozen=True)
class Group:
    """The hosts of one test, in the order of their names."""

    hosts: tuple[Host, ...]

    def inventory(self, path: Path, group: str = "workers", variables: Mapping[str, str] | None = None) -> Path:
        """Write an Ansible inventory with all hosts in one group, reached without SSH, and return its path.

        :param variables: of the group, written as they are (INI inventory).
        """
        settings = {"ansible_connection": "community.docker.docker", "ansible_python_interpreter": "/usr/bin/python3"}
        lines = [f"[{group}]", *(host.name for host in self.hosts), "", f"[{group}:vars]"]
        lines += [f"{key}={value}" for key, value in {**settings, **(variables or {})}.items()]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


@contextmanager
def worker_hosts(count: int, options: Sequence[str] = ()) -> Iterator[Group]:
    """Start hosts named ``backstep-<random>-w1`` and so on, wait until all have booted, and remove them at the end.

    :param count: how many hosts.
    :param options: more options for each ``docker run``, such as ``("--tmpfs", "/opt/backstep:size=8m")``.
    :raises ToolError: one of them did not start or boot.
    """
    network = f"backstep-{secrets.token_hex(3)}"
    group = Group(tuple(Host(f"{network}-w{number}", network) for number in range(1, count + 1)))
    try:
        run(["docker", "network", "create", "--label", LABEL, network], timeout=COMMAND_SECONDS)
        for host in group.hosts:
            host.start(options)
        for host in group.hosts:
            host.wait_booted()
        yield group
    finally:
        names = [host.name for host in group.hosts]
        run(["docker", "rm", "--force", "--volumes", *names], timeout=COMMAND_SECONDS, check=False)
        run(["docker", "network", "rm", network], timeout=COMMAND_SECONDS)
