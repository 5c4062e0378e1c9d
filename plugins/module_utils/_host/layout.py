# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The spec of a release and of its pool on a host, and where each thing lies."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Optional

from .._rollout.drills import LATE
from .._rollout.names import worker_prefix

RELEASE_SCHEMA = 1

# The number of the process that runs a release's schedule; its workers are numbered from 1.
SCHEDULER_INDEX = 0
PART_VARIABLE = "BACKSTEP_PART"


class Part(Enum):
    """Some of the supervised processes of a release."""

    WORKERS = "workers"
    SCHEDULER = "scheduler"
    ALL = "all"

    def has(self, index: int) -> bool:
        """Whether the process with this number is among them."""
        return self is Part.ALL or (index == SCHEDULER_INDEX) == (self is Part.SCHEDULER)


@dataclass(frozen=True)
class Pool:
    """What the host program has to know of a pool without a controller. Stored as ``state/pool.json``.

    :param host: the name of this host in the inventory.
    :param supervisor: ``systemd`` or ``supervisord``.
    :param socket: the path of supervisord's socket, or "".
    :param conf_dir: where unit files or program sections are installed.
    :param python: the interpreter that runs the host program and the launcher.
    """

    name: str
    host: str
    supervisor: str
    socket: str
    conf_dir: str
    python: str


@dataclass(frozen=True)
class Spec:
    """A release as it is sealed, in ``release.json``. Secrets are not in here but in ``config/environment``.

    :param queues: one item per kind of worker process: the queues that it listens to, in order.
    :param processes: worker processes per item of ``queues``.
    :param command: the worker's arguments with ``{queues}``, ``{worker}``, ``{release}``, ``{app}`` left in.
    :param broker: the broker's URL without user and password; the secret is looked up at start.
    :param broker_variable: the environment variable in which the engine's worker expects the broker's URL.
    :param identity: everything that the id is a digest of.
    :param barrier: why the release can't be undone once it was switched to, or "".
    :param hooks: its commands by step, each with ``command``, ``timeout``, ``where`` and ``chdir``.
    :param scheduler: the process that runs its schedule: ``command`` (as for workers), ``host`` (the one that runs it,
        by its name in the inventory) and ``period`` (seconds); empty when it has none.
    :param extends: what is put before the values of environment variables: each a name, a separator of one character,
        and the text, with ``{config}`` left in.
    :param manifest: how it tells which tasks it can run: ``tasks``, a list of names, or ``command``, whose words may be
        ``{python}`` (the workers' interpreter) and ``{command}`` (their arguments); empty when nothing does.
    :param drill: how its workers are made to fail: ``kind``, ``of`` (the release that all the rest is from) and
        ``seconds`` (after which they do, where the kind is ``late``); empty for a release that is to work.
    """

    id: str
    version: str
    pool: str
    engine: str
    queues: list[list[str]]
    processes: int
    command: list[str]
    user: str
    broker: str
    broker_variable: str
    identity: dict[str, Any]
    barrier: str = ""
    hooks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    extends: list[str] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)
    drill: dict[str, Any] = field(default_factory=dict)
    schema: int = RELEASE_SCHEMA

    @property
    def instances(self) -> list[tuple[int, list[str]]]:
        """Worker processes: number from 1, and the queues of each."""
        each = [queues for queues in self.queues for copy in range(self.processes)]
        return list(enumerate(each, 1))

    def as_json(self) -> dict[str, Any]:
        """The spec as plain JSON."""
        return asdict(self)


class Layout:
    """Where the parts of a pool lie on a host."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.releases = root / "releases"
        self.current = root / "current"
        self.state = root / "state"
        self.journal = self.state / "journal.jsonl"
        self.lock = self.state / "lock"
        self.request = self.state / "request"
        self.pool = self.state / "pool.json"
        self.brokers = self.state / "brokers.json"
        self.program = root / "bin" / "backstep"
        self.scheduler_lock = root / "scheduler.lock"
        self.logs = root / "log"

    def release(self, release: str) -> Path:
        """The directory of a release."""
        return self.releases / release

    def app(self, release: str) -> Path:
        """The code of a release, which is the working directory of its workers."""
        return self.release(release) / "app"

    def config(self, release: str) -> Path:
        """The rendered config of a release."""
        return self.release(release) / "config"

    def unit(self, release: str) -> Path:
        """The rendered units of a release, and its launcher."""
        return self.release(release) / "unit"

    def launcher(self, release: str) -> Path:
        """The program that starts each process of a release."""
        return self.unit(release) / "launch.py"

    def manifest(self, release: str) -> Path:
        """The engine's program that tells which tasks a release can run."""
        return self.unit(release) / "manifest.py"

    def programs(self, release: str) -> list[Path]:
        """What lies beside the units of a release and is none."""
        return [self.launcher(release), self.manifest(release)]

    def broker_environment(self, release: str) -> Path:
        """The file with the broker's URL that a release's workers read at start; outside of the seal."""
        return self.state / f"broker-{release}.env"


@dataclass(frozen=True)
class Program:
    """One process of a release, as a supervisor has to start it.

    :param options: the launcher's own.
    :param environment: what it finds in its environment besides ``pool_env`` and the broker's URL. No secrets.
    """

    index: int
    queues: list[str]
    options: list[str]
    command: list[str]
    environment: dict[str, str]


def programs(spec: Spec, pool: Pool, layout: Layout) -> list[Program]:
    """The processes of a release on the pool's host: its workers, and on the host that has it the scheduler."""
    found = []
    for index, queues in spec.instances:
        environment = worker_environment(spec, pool, layout, index, queues)
        options = ["--worker", environment.pop("BACKSTEP_WORKER")]
        options += [f"--extend={fill_in(extension, spec.id, layout)}" for extension in spec.extends]
        options += _failing(spec.drill)
        command = expand_command(spec.command, spec.id, layout, queues)
        found.append(Program(index, queues, options, command, environment))
    if spec.scheduler.get("host") == pool.host:
        queues = list(dict.fromkeys(queue for group in spec.queues for queue in group))
        environment = worker_environment(spec, pool, layout, SCHEDULER_INDEX, queues)
        options = ["--worker", environment.pop("BACKSTEP_WORKER"), "--lock", str(layout.scheduler_lock)]
        command = expand_command(spec.scheduler["command"], spec.id, layout, queues)
        environment[PART_VARIABLE] = Part.SCHEDULER.value
        found.insert(0, Program(SCHEDULER_INDEX, queues, options, command, environment))
    return found


def _failing(drill: dict[str, Any]) -> list[str]:
    """The launcher's option for a worker that a drill makes to fail."""
    if not drill:
        return []
    return ["--fail", f"late:{drill['seconds']}" if drill["kind"] == LATE else drill["kind"]]


def expand_command(command: list[str], release: str, layout: Layout, queues: list[str]) -> list[str]:
    """The arguments of one process; ``{worker}`` stays in, as the launcher alone knows the process id."""
    result: list[str] = []
    for given in command:
        filled = fill_in(given, release, layout)
        if given == "{queues}":
            result.extend(queues)
        elif "{queue}" in given:
            result.extend(filled.replace("{queue}", queue) for queue in queues)
        else:
            result.append(filled.replace("{queues}", ",".join(queues)))
    return result


def fill_in(word: str, release: str, layout: Layout) -> str:
    """A word of a command with ``{release}``, ``{app}``, ``{config}`` and ``{manifest}`` as the paths of these."""
    places = {
        "release": layout.release(release),
        "app": layout.app(release),
        "config": layout.config(release),
        "manifest": layout.manifest(release),
    }
    for name, path in places.items():
        word = word.replace("{" + name + "}", str(path))
    return word


def worker_environment(spec: Spec, pool: Pool, layout: Layout, index: int, queues: list[str]) -> dict[str, str]:
    """What each worker process finds in its environment besides ``pool_env`` and the broker's URL. No secrets."""
    return {
        "BACKSTEP_ROOT": str(layout.root),
        "BACKSTEP_POOL": pool.name,
        "BACKSTEP_RELEASE": spec.id,
        "BACKSTEP_VERSION": spec.version,
        "BACKSTEP_CONFIG": str(layout.config(spec.id)),
        "BACKSTEP_QUEUES": ",".join(queues),
        "BACKSTEP_WORKER": worker_prefix(pool.name, spec.id, pool.host, index),
    }


def environment_file(variables: dict[str, str]) -> bytes:
    """Variables in the one notation that systemd's ``EnvironmentFile`` and POSIX word splitting read alike."""
    lines = []
    for name, value in sorted(variables.items()):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'{name}="{escaped}"\n')
    return "".join(lines).encode()


def read_link(link: Path) -> Optional[str]:
    """The release that ``current`` names; None when there is no such link."""
    if not link.is_symlink():
        return None
    return Path(link.readlink() if hasattr(link, "readlink") else link.resolve()).name
