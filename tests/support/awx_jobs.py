# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs as AWX plays them: ansible-runner hands one over, and plays it in a container of the execution environment.

``transmit`` (where AWX is) packs the job's folder, ``worker`` (in the container, its only input and output) plays it
and tells its events, ``process`` (where AWX is) keeps them. What is in the folder, and under which name, follows
AWX 24.6.1 (awx/main/tasks/jobs.py).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.environment import WHEELHOUSE, ansible_environment
from tests.support.hosts import Host
from tools import docker, ee
from tools.common import CHECKOUT, VENV, ToolError, run, wait_for

DEFINITION = CHECKOUT / "extensions" / "execution_environment" / "execution-environment.yml"
PROJECT = CHECKOUT / "extensions" / "awx" / "project"
BUILD_SECONDS = 300
JOB_SECONDS = 240.0
# How long AWX, and what runs its containers, wait between SIGTERM and SIGKILL.
GRACE_SECONDS = 5
USER = "ops"
LIBRARIES = "/libraries"
_RUNNER = "/runner"
# As AWX gives them to each job.
_ENVIRONMENT = {
    "ANSIBLE_FORCE_COLOR": "True", "ANSIBLE_HOST_KEY_CHECKING": "False", "ANSIBLE_INVENTORY_UNPARSED_FAILED": "True",
    "ANSIBLE_PARAMIKO_RECORD_HOST_KEYS": "False", "ANSIBLE_RETRY_FILES_ENABLED": "False",
    "ANSIBLE_SSH_CONTROL_PATH_DIR": f"{_RUNNER}/cp", "ANSIBLE_UNSAFE_WRITES": "1", "AWX_HOST": "https://awx.example.org",
    "ANSIBLE_COLLECTIONS_PATH":
        f"{_RUNNER}/requirements_collections:~/.ansible/collections:/usr/share/ansible/collections",
    "ANSIBLE_ROLES_PATH":
        f"{_RUNNER}/requirements_roles:~/.ansible/roles:/usr/share/ansible/roles:/etc/ansible/roles",
    "MAX_EVENT_RES": "700000",
}  # fmt: skip
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SCRIPT = "#! /usr/bin/env python3\n# -*- coding: utf-8 -*-\nprint({json!r})\n"


def build_image(folder: Path) -> str:
    """Build the execution environment of this checkout from the definition that users have; its name.

    :param folder: empty, for the build's context.
    """
    programs, base = ee.ensure(), ee.ensure_base()
    name = f"backstep/execution-environment:{ansible_environment()['BACKSTEP_HOSTS'].rpartition('-')[2]}"
    shutil.copy(DEFINITION, folder)
    run([VENV / "bin" / "ansible-galaxy", "collection", "build", "--output-path", folder], timeout=BUILD_SECONDS,
        env=ansible_environment())  # fmt: skip
    command = [programs / "ansible-builder", "build", "--verbosity", "3", "--container-runtime", "docker"]
    run([*command, "--tag", name, "--file", folder / DEFINITION.name, "--context", folder / "context", "--build-arg",
         f"EE_BASE_IMAGE={base}"], timeout=BUILD_SECONDS, env=ansible_environment(programs))  # fmt: skip
    return name


@dataclass(frozen=True)
class Credentials:
    """What AWX keeps encrypted, and hands to a job in files of its own."""

    ssh_key: str
    passphrase: str
    variables: Mapping[str, str]
    """What the injectors of credential types make extra variables."""


@dataclass
class Job:
    """One launch. ``folder``: what AWX stores of it is below ``artifacts``."""

    number: int
    folder: Path
    container: str
    worker: subprocess.Popen[bytes]
    processor: subprocess.Popen[bytes]

    @property
    def stored(self) -> Path:
        """Everything that AWX would store."""
        return self.folder / "stored" / "artifacts" / str(self.number)

    @property
    def output(self) -> str:
        """What a person sees of it so far, without colours: the text of its events."""
        said = "\n".join(event["stdout"] for event in self.events() if event["stdout"])
        return _COLOUR.sub("", said).replace("\r\n", "\n")

    def running(self) -> bool:
        """Whether it is still under way."""
        return self.processor.poll() is None

    def wait(self, seconds: float = JOB_SECONDS) -> str:
        """Wait for its end; what AWX calls its status: successful, failed, canceled, error."""
        try:
            self.processor.wait(seconds)
            self.worker.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ToolError(f"The job took more than {seconds:.0f} s:\n{self.output[-3000:]}") from None
        print(self.output)
        with suppress(FileNotFoundError):
            return (self.stored / "status").read_text(encoding="ascii")
        return "error"

    def events(self) -> list[dict[str, Any]]:
        """Its events so far, in their order."""
        found = []
        for path in (self.stored / "job_events").glob("*.json"):
            # One that is being written now is there the next time.
            with suppress(json.JSONDecodeError):
                found.append(json.loads(path.read_text(encoding="utf-8")))
        return sorted(found, key=lambda event: int(event["counter"]))

    def artifact(self) -> dict[str, Any]:
        """What it has left by ``set_stats``; empty if nothing."""
        for event in self.events():
            if event["event"] == "playbook_on_stats":
                found: dict[str, Any] = event["event_data"].get("artifact_data", {})
                return found
        return {}

    def wait_said(self, text: str, seconds: float = JOB_SECONDS) -> None:
        """Wait until its output has this."""

        def not_said() -> str | None:
            if text in self.output:
                return None
            if not self.running():
                raise ToolError(f"The job ended without '{text}':\n{self.output[-3000:]}")
            return self.output[-300:]

        wait_for(f"'{text}'", not_said, timeout=seconds)

    def cancel(self) -> str:
        """As AWX cancels: SIGTERM for the container, SIGKILL some seconds later; the job's status."""
        run(["docker", "stop", "--time", str(GRACE_SECONDS), self.container], timeout=60)
        return self.wait()

    def end(self) -> None:
        """Nothing of it is left."""
        run(["docker", "rm", "--force", "--volumes", self.container], timeout=60, check=False)
        for process in (self.worker, self.processor):
            if process.poll() is None:
                process.kill()
            process.wait(60)


@dataclass
class Launcher:
    """What launches jobs at a pool: an AWX with one project, one inventory and one set of credentials."""

    image: str
    network: str
    folder: Path
    inventory: dict[str, Any]
    credentials: Credentials
    jobs: list[Job] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def launch(self, playbook: str, answers: Mapping[str, Any] | None = None, *options: str) -> Job:
        """Launch a template and return at once.

        :param answers: of the survey, and the template's own variables.
        :param options: what AWX adds to ``ansible-playbook``, such as ``--limit`` for a relaunch.
        """
        number = next(self._numbers)
        folder = self.folder / f"job-{number}"
        self._prepare(folder / "job", number, answers or {}, options)
        container = f"{self.network}-job-{number}"
        runner = str(ee.HOME / "bin" / "ansible-runner")
        packed = folder / "packed"
        with packed.open("wb") as stream:
            self._run([runner, "transmit", str(folder / "job"), "-p", f"{playbook}.yml", "-i", str(number)], stream)
        command = ["docker", "run", "--interactive", "--rm", "--name", container, "--network", self.network]
        command += ["--label", docker.LABEL, self.image, "ansible-runner", "worker", f"--private-data-dir={_RUNNER}"]
        with packed.open("rb") as stream, (folder / "worker.log").open("wb") as log:
            worker = subprocess.Popen(command, stdin=stream, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
        # Holds what the job was sent, secrets too; AWX keeps none of it either.
        packed.unlink()
        with (folder / "process.log").open("wb") as log:
            processor = subprocess.Popen(
                [runner, "process", str(folder / "stored"), "-i", str(number)], stdin=worker.stdout, stdout=log,
                stderr=log, env=ansible_environment(ee.HOME / "bin"), start_new_session=True,
            )  # fmt: skip
        assert worker.stdout is not None  # asked for above
        worker.stdout.close()
        job = Job(number, folder, container, worker, processor)
        self.jobs.append(job)
        return job

    def play(self, playbook: str, answers: Mapping[str, Any] | None = None, *options: str) -> tuple[str, Job]:
        """Launch a template and wait for its end; its status."""
        job = self.launch(playbook, answers, *options)
        return job.wait(), job

    def _run(self, command: Sequence[str], output: Any) -> None:
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, check=False, timeout=60,
                              env=ansible_environment(ee.HOME / "bin"))  # fmt: skip
        if done.returncode:
            raise ToolError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.decode()}")

    def _prepare(self, job: Path, number: int, answers: Mapping[str, Any], options: Sequence[str]) -> None:
        """What AWX calls the private data directory."""
        env = job / "env"
        env.mkdir(parents=True, mode=0o700)
        shutil.copytree(self.folder / "project", job / "project")
        script = job / "inventory" / "hosts"
        script.parent.mkdir()
        script.write_text(_SCRIPT.format(json=json.dumps(self.inventory)), encoding="utf-8")
        script.chmod(0o700)
        told = {"awx_job_id": number, "awx_user_name": "ana", "awx_job_template_name": "a template"}
        words = ["-u", USER, "--become", "--become-method", "sudo", "-f", "20", *options]
        files: dict[str, Any] = {
            "extravars": {**told, **{name.replace("awx", "tower"): value for name, value in told.items()}, **answers},
            "envvars": {**_ENVIRONMENT, "JOB_ID": str(number)},
            "settings": {"idle_timeout": 0, "job_timeout": 0, "suppress_ansible_output": True},
            "passwords": {r"Enter passphrase for .*:\s*?$": self.credentials.passphrase},
            "tmpbroker": dict(self.credentials.variables),
        }
        for name, content in files.items():
            (env / name).write_text(json.dumps(content), encoding="utf-8")
        (env / "cmdline").write_text(shlex.join([*words, "-e", f"@{_RUNNER}/env/tmpbroker"]), encoding="utf-8")
        (env / "ssh_key").write_text(self.credentials.ssh_key, encoding="utf-8")


def let_in(hosts: Sequence[Host], key: Path) -> None:
    """Have the SSH servers of hosts let in who has a key, as a user that may become root."""
    for host in hosts:
        host.run("useradd", "--create-home", "--shell", "/bin/bash", USER)
        host.run("install", "-d", "-m", "700", "-o", USER, "-g", USER, f"/home/{USER}/.ssh")
        host.put(key.with_suffix(".pub"), f"/home/{USER}/.ssh/authorized_keys")
        host.run("chown", f"{USER}:{USER}", f"/home/{USER}/.ssh/authorized_keys")
        host.run("sh", "-c", f"echo '{USER} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/{USER}")
        host.run("systemctl", "start", "ssh.service")


def have_libraries(hosts: Sequence[Host], folder: Path) -> None:
    """Have what the app imports in ``LIBRARIES`` on the hosts, so that no release has to install it.

    :param folder: a new one, to put it together.
    """
    for wheel in WHEELHOUSE.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    for host in hosts:
        host.put(folder, LIBRARIES)


@contextmanager
def a_launcher(
    image: str, hosts: Sequence[Host], folder: Path, inventory: dict[str, Any], secrets: Mapping[str, str],
    passphrase: str,
) -> Iterator[Launcher]:  # fmt: skip
    """An AWX that reaches these hosts by SSH. Its project is AWX's own; the caller may put builds into it.

    :param secrets: extra variables that only credentials hand over.
    :param passphrase: of the key in the machine's credential.
    """
    key = folder / "key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "awx", "-f", key], timeout=30)
    let_in(hosts, key)
    shutil.copytree(PROJECT, folder / "project")
    credentials = Credentials(key.read_text(encoding="ascii"), passphrase, secrets)
    launcher = Launcher(image, hosts[0].network, folder, inventory, credentials)
    try:
        yield launcher
    finally:
        for job in launcher.jobs:
            job.end()
        os.remove(key)
