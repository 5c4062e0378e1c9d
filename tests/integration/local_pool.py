# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pools on worker hosts without containers, moved by the very calls that the modules make."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ansible_collections.backstep.workers.plugins.module_utils._hook_args import hooks_of
from ansible_collections.backstep.workers.plugins.module_utils._host.clock import moment
from ansible_collections.backstep.workers.plugins.module_utils._host.hooks import hook_host
from ansible_collections.backstep.workers.plugins.module_utils._host.host import Host, default_python
from ansible_collections.backstep.workers.plugins.module_utils._host.layout import Part, Pool, Spec
from ansible_collections.backstep.workers.plugins.module_utils._host.leasing import give_back, take
from ansible_collections.backstep.workers.plugins.module_utils._host.moving import confirm_host, switch_host
from ansible_collections.backstep.workers.plugins.module_utils._host.staging import stage_host
from ansible_collections.backstep.workers.plugins.module_utils._host.store import Content
from ansible_collections.backstep.workers.plugins.module_utils._host.terms import Terms
from ansible_collections.backstep.workers.plugins.module_utils._release_args import manifest_of
from ansible_collections.backstep.workers.plugins.module_utils._rollout.ids import release_id
from ansible_collections.backstep.workers.plugins.module_utils._rollout.rules import Grant
from ansible_collections.backstep.workers.plugins.module_utils._scheduler_args import scheduler_of
from ansible_collections.backstep.workers.plugins.plugin_utils.host_program import build_host_program

from tests.support.local_hosts import LocalHost
from tests.support.servers import wait_for

USER = "nobody" if os.geteuid() == 0 else getpass.getuser()
# The workers' user can run it, wherever the tests' own interpreter lies.
PYTHON = "/usr/bin/python3"
BROKER = "redis://:hush-broker@127.0.0.1:6390/0"
MASKED_BROKER = "redis://127.0.0.1:6390/0"
TERMS = Terms(confirm_seconds=60.0, drain_seconds=10.0, keep=2)
WORKER = Path(__file__).resolve().parent / "files" / "worker.py"
_SECONDS = 60.0
# For a task that goes on until `end_task`.
ENDLESS = 600.0


def open_to_workers(folder: Path) -> Path:
    """Make a directory in which the workers' user may write."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(folder, pwd.getpwnam(USER).pw_uid, -1)
    return folder


def open_to_all(path: Path, top: Path) -> bool:
    """Whether any user can read a file: its own mode and that of each directory above it."""
    if path.is_symlink():
        return False
    above = [parent for parent in path.parents if parent.is_relative_to(top)]
    return bool(path.stat().st_mode & 0o004) and all(parent.stat().st_mode & 0o001 for parent in above)


@dataclass
class LocalPool:
    """A pool on one local host, moved by the very calls that the modules make. ``token`` is its rollout's number."""

    at: LocalHost
    name: str
    processes: int = 1
    token: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    barrier: str = ""
    hooks: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    broker: str = BROKER
    masked_broker: str = MASKED_BROKER
    command: list[str] = field(default_factory=lambda: [PYTHON, "{app}/worker.py", "{worker}"])

    def __post_init__(self) -> None:
        self.hooked: list[dict[str, Any]] = []
        self.root = self.at.folder / self.name
        self.tasks = self.at.folder / f"{self.name}-tasks"
        for part in ("waiting", "executing", "over", "done", "started"):
            open_to_workers(self.tasks / part)
        self.code = self.at.folder / f"{self.name}-code"
        self.code.mkdir(exist_ok=True)
        shutil.copy(WORKER, self.code)

    @property
    def pool(self) -> Pool:
        """The pool as a module would be told of it."""
        socket, conf_dir = str(self.at.socket), str(self.at.conf_dir)
        return Pool(self.name, self.at.name, "supervisord", socket, conf_dir, default_python())

    def open(self, by: str = "controller") -> Host:
        """The host's side of the pool."""
        return Host(str(self.root), self.pool, by)

    # -- steps ------------------------------------------------------------------------------------------------------

    def lease(self, run: str = "ana", kind: str = "deploy", seconds: float = 60.0, adopt: str = "") -> Grant:
        """Take the lease under the next number."""
        self.owner = {"run": run, "user": run, "controller": "ops1", "pid": 4711}
        token = self.open().state().last_token + 1
        grant = take(self.open(), moment(), rollout=token, kind=kind, owner=self.owner, seconds=seconds, adopt=adopt)
        self.token = grant.token
        return grant

    def stage(self, version: str, config: str = "[app]\n", **environment: str) -> str:
        """Stage a release whose id follows from what is given; the id."""
        variables = {"TASKS": str(self.tasks), **self.environment, **environment}
        identity = {"config": config, "environment": variables, "processes": self.processes}
        identity.update(barrier=self.barrier, hooks=self.hooks, scheduler=self.scheduler, manifest=self.manifest)
        spec = Spec(
            id=release_id(version, identity),
            version=version,
            pool=self.name,
            engine="rq",
            queues=[["mail"]],
            processes=self.processes,
            command=self.command,
            user=USER,
            broker=self.masked_broker,
            broker_variable="RQ_REDIS_URL",
            identity=identity,
            barrier=self.barrier,
            hooks=hooks_of(self.hooks),
            scheduler=scheduler_of(self.scheduler),
            manifest=manifest_of(self.manifest, self.command, ""),
        )
        content = Content(
            archive="",
            directory=str(self.code),
            config={"app.ini": (config.encode(), 0o640)},
            environment=variables,
            build=[],
            build_seconds=10.0,
        )
        program = build_host_program()
        staged = stage_host(
            self.open(), spec, content, rollout=self.token, program=program, broker_url=self.broker, once=True
        )
        self.hooked = staged["hooks"]
        return spec.id

    def run_hooks(self, release: str, step: str, once: bool = True, check_mode: bool = False) -> dict[str, Any]:
        """Run what a release has for a step."""
        return hook_host(
            self.open(),
            release=release,
            step=step,
            rollout=self.token,
            once=once,
            given=hooks_of(self.hooks),
            check_mode=check_mode,
        )

    def switch(self, release: str, **terms: Any) -> dict[str, Any]:
        """Switch to a staged release."""
        return self._move(release, terms, owner=None, verdict="unknown")

    def back(self, verdict: str = "bad", wish: str = "", cross: bool = False, **terms: Any) -> dict[str, Any]:
        """Go back, under the lease that is held."""
        return self._move("previous", terms, owner=None, verdict=verdict, wish=wish, cross=cross)

    def _move(
        self, release: str, terms: dict[str, Any], *, owner: Any, verdict: str, wish: str = "", cross: bool = False
    ) -> dict[str, Any]:
        return switch_host(
            self.open(),
            replace(TERMS, **terms),
            release=release,
            wish=wish,
            rollout=self.token,
            owner=owner,
            adopt="",
            lease_seconds=60.0,
            verdict=verdict,
            reason="a test",
            check_mode=False,
            cross_barrier=cross,
        )

    def confirm(self, release: str, **terms: Any) -> dict[str, Any]:
        """Confirm what this rollout has brought the host to."""
        return confirm_host(self.open(), replace(TERMS, **terms), release=release, rollout=self.token, check_mode=False)

    def end(self) -> None:
        """Give the lease back."""
        give_back(self.open(), self.token, self.owner, "", "", check_mode=False)

    def deploy(self, version: str, **given: str) -> str:
        """A whole deploy that goes well; the release's id."""
        self.lease()
        release = self.stage(version, **given)
        self.run_hooks(release, "before_switch")
        self.switch(release, once=True)
        self.run_hooks(release, "after_switch")
        self.wait_running(release)
        self.run_hooks(release, "before_confirm")
        self.confirm(release)
        self.run_hooks(release, "after_confirm")
        self.end()
        return release

    # -- what is so -------------------------------------------------------------------------------------------------

    def running(self) -> dict[str, int]:
        """Worker processes by the release that they themselves belong to."""
        return {release: len(found) for release, found in self.open().running(Part.WORKERS).items()}

    def wait_running(self, release: str, seconds: float = _SECONDS) -> None:
        """Wait until this release alone runs, with all its workers having said so."""

        def said() -> bool:
            names = [path.name.rpartition(",")[2] for path in (self.tasks / "started").glob(f"{self.name},{release},*")]
            pids = {process.pid for found in self.open().running().values() for process in found}
            return len(pids & {int(pid) for pid in names}) == self.processes

        wait_for(f"{release} runs", said, seconds)

    def wait_only(self, release: str | None, seconds: float = _SECONDS) -> None:
        """Wait until nothing runs but this release."""
        wanted = {release: self.processes} if release else {}
        wait_for(f"only {release} runs", lambda: self.running() == wanted, seconds)

    def wait_settled(self, seconds: float = _SECONDS) -> None:
        """Wait until nothing drains any more."""
        wait_for("nothing drains", lambda: not self.open().state().draining, seconds)

    def started(self, release: str) -> list[dict[str, Any]]:
        """What each start of a worker of a release has said of itself, by index."""
        paths = sorted((self.tasks / "started").glob(f"{self.name},{release},*"))
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    def enqueue(self, name: str, seconds: float = 0.0) -> None:
        """Hand in a task."""
        new = self.tasks / name
        new.write_text(str(seconds), encoding="ascii")
        if os.geteuid() == 0:
            os.chown(new, pwd.getpwnam(USER).pw_uid, -1)
        new.rename(self.tasks / "waiting" / name)

    def end_task(self, name: str) -> None:
        """Have a task end now."""
        (self.tasks / "over" / name).touch()

    def wait_task(self, name: str, where: str, release: str) -> None:
        """Wait until a task is ``executing`` or ``done`` by a release."""
        wait_for(f"{name} is {where} by {release}", (self.tasks / where / f"{name},{release}").exists, _SECONDS)

    def wait_task_taken(self, release: str) -> None:
        """Wait until a release has done a task, whatever else runs."""
        name = f"for-{release}"

        def done() -> bool:
            if not (self.tasks / "waiting" / name).exists():
                self.enqueue(name)
            return (self.tasks / "done" / f"{name},{release}").exists()

        wait_for(f"{release} has done a task", done, _SECONDS)

    def events(self) -> list[str]:
        """The names of the journal's events."""
        return [event["event"] for event in self.open().journal.read()[0]]

    def program(self, *arguments: str, python: str = "", seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run ``bin/backstep`` as a person on the host would."""
        command = [str(self.root / "bin" / "backstep"), *arguments]
        return subprocess.run(
            [python, *command] if python else command,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            cwd="/",
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        )
