# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pool on real hosts, driven by the collection's playbooks as a person drives it, and seen from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine

from tests.support.bench import Bench, bench_of
from tests.support.environment import ansible_environment
from tests.support.hosts import Host, worker_hosts
from tools.common import CHECKOUT, VENV, run

PLAY_SECONDS = 240
END_SECONDS = 120
PREPARE_SECONDS = 180
# The pool of the Molecule scenarios is the pool of every test on such hosts.
_SCENARIOS = CHECKOUT / ".config" / "molecule" / "config.yml"
_PREPARE = CHECKOUT / "molecule" / "shared" / "prepare.yml"
UNITS = "/etc/systemd/system"
_RECAP = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)
# With a report of the rollout, and without one when there was nothing to do but that.
_CUT_OFF = re.compile(r'(?:were cut off; |"msg": "task-).*', re.MULTILINE)


@dataclass(frozen=True)
class Played:
    """How a playbook ended."""

    status: int
    output: str

    @property
    def changed(self) -> int:
        """Changed tasks, over all hosts."""
        return sum(int(changed) for _host, changed, *_rest in _RECAP.findall(self.output))

    @property
    def announced(self) -> set[str]:
        """The tasks of which it was said that they may run twice."""
        return {task for line in _CUT_OFF.findall(self.output) for task in re.findall(r"task-\d+", line)}


@dataclass(frozen=True)
class View:
    """What a host shows of the pool at one moment; see ``tests/support/probe.py``."""

    processes: list[dict[str, Any]]
    files: dict[str, dict[str, Any]]
    journal: list[dict[str, Any]]

    @property
    def releases(self) -> dict[str, int]:
        """Worker processes by the release that they themselves report."""
        return dict(Counter(process["environment"]["BACKSTEP_RELEASE"] for process in self.processes))

    @property
    def workers(self) -> list[str]:
        """The names of the worker processes."""
        return [process["environment"]["BACKSTEP_WORKER"] for process in self.processes]

    @property
    def events(self) -> list[str]:
        """The kinds of the journal's events, oldest first."""
        return [event["event"] for event in self.journal]

    def picture(self) -> dict[str, Any]:
        """What a rollback has to bring back byte for byte: what runs, units and what is enabled, config, link."""
        (release,) = self.releases
        kept = {
            path: entry
            for path, entry in self.files.items()
            if path.startswith(UNITS) or f"/releases/{release}/" in path or path.endswith("/current")
        }
        return {"runs": self.releases, "files": kept}


@dataclass(frozen=True)
class Pool:
    """A pool and how to reach it. ``broker`` is the host with Redis, and with RabbitMQ where that is the broker."""

    inventory: Path
    workers: tuple[Host, ...]
    broker: Host
    broker_url: str
    name: str = "letters"
    processes: int = 2
    engine: str = "rq"
    redis_url: str = ""
    """Of what keeps the ledger, where the broker is another one."""

    @property
    def root(self) -> str:
        """Where it lies on each host."""
        return f"/opt/backstep/{self.name}"

    @property
    def ledger_url(self) -> str:
        """Where the tasks note what they do, out of the queues' way."""
        return (self.redis_url or self.broker_url).rsplit("/", 1)[0] + "/15"

    @property
    def bench(self) -> Bench:
        """What enqueues tasks."""
        return bench_of(self.engine)(self.broker_url, ledger_url=self.ledger_url)

    def command(self, playbook: str, variables: Mapping[str, Any] | None = None) -> list[Any]:
        """The command that runs a playbook of the collection."""
        ansible = [VENV / "bin" / "ansible-playbook", "-i", self.inventory]
        return [*ansible, f"backstep.workers.{playbook}", "-e", json.dumps(variables or {})]

    def play(self, playbook: str, *options: str, **variables: Any) -> Played:
        """Run a playbook of the collection to its end, with extra variables; printed for whoever reads a failure."""
        command = [*self.command(playbook, variables), *options]
        done = run(command, timeout=PLAY_SECONDS, check=False, env=ansible_environment())
        print(done.stdout)
        return Played(done.returncode, done.stdout)

    @contextmanager
    def under_way(self, playbook: str, **variables: Any) -> Iterator[subprocess.Popen[str]]:
        """A playbook that runs on while the block does something to it; killed at its end, and printed."""
        process = subprocess.Popen(
            [str(word) for word in self.command(playbook, variables)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=ansible_environment(),
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            print(process.communicate(timeout=END_SECONDS)[0])

    def view(self, host: Host) -> View:
        """Look at a host now."""
        script = Path(__file__).with_name("probe.py").read_text(encoding="utf-8")
        said = host.run("python3", "-c", script, self.root, f"backstep-{self.name}-")
        return View(**json.loads(said.stdout))

    def program(self, host: Host, *words: str, check: bool = True) -> Played:
        """Run the host program on a host."""
        done = host.run(f"{self.root}/bin/backstep", *words, check=check)
        print(done.stdout)
        return Played(done.returncode, done.stdout)


def not_consuming(pool: Pool, engine: Engine, hosts: Sequence[Host], release: str) -> str | None:
    """None once each host runs all its workers of the release, nothing else, and each of them has finished a task."""
    for host in hosts:
        found = pool.view(host)
        finished = {worker.name: worker.finished for worker in engine.workers()}
        if found.releases != {release: pool.processes}:
            return f"{host.name} runs {found.releases}; its last event is {found.events[-1]}"
        idle = [name for name in found.workers if not finished.get(name)]
        if idle:
            return f"nothing finished by {idle}"
    return None


def on_last_good(pool: Pool) -> str:
    """The release that every host runs now, by its processes."""
    (release,) = {name for host in pool.workers for name in pool.view(host).releases}
    return release


@contextmanager
def prepared_pool(count: int, folder: Path, **variables: Any) -> Iterator[Pool]:
    """Worker hosts and a host with Redis, prepared like those of the Molecule scenarios, with their pool's variables.

    :param count: how many worker hosts.
    :param folder: for the inventory and the builds; empty.
    :param variables: of the pool, in place of the scenarios' own.
    """
    with worker_hosts(count + 1) as group:
        *workers, broker = group.hosts
        inventory = folder / "inventory.json"
        inventory.write_text(json.dumps(_inventory(workers, broker, folder, variables)), encoding="utf-8")
        command = [VENV / "bin" / "ansible-playbook", "-i", inventory, _PREPARE]
        run(command, timeout=PREPARE_SECONDS, env=ansible_environment())
        password = _scenario_variables(folder)["all"]["broker_password"]
        yield Pool(inventory, tuple(workers), broker, f"redis://:{password}@{broker.address()}:6379/0")


def _scenario_variables(folder: Path) -> dict[str, dict[str, Any]]:
    places = {**ansible_environment(), "MOLECULE_EPHEMERAL_DIRECTORY": str(folder)}
    text = Template(_SCENARIOS.read_text(encoding="utf-8")).safe_substitute(places)
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)["provisioner"]["inventory"]["group_vars"]
    return found


def _inventory(workers: list[Host], broker: Host, folder: Path, variables: Mapping[str, Any]) -> dict[str, Any]:
    scenario = _scenario_variables(folder)
    hosts = {host.name: {"ansible_connection": "community.docker.docker"} for host in (*workers, broker)}
    groups = {
        "workers": {"hosts": {host.name: {} for host in workers}, "vars": {**scenario["workers"], **variables}},
        "brokers": {"hosts": {broker.name: {}}},
    }
    return {"all": {"hosts": hosts, "vars": scenario["all"], "children": groups}}
