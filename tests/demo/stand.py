# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the demo runs on: a Redis server, for some engines a RabbitMQ node too, and three local hosts.

Everything carries the directory's name in its environment, so that nothing outlives the demo, whoever started it.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import redis

from tests.support.bench import Bench, bench_of
from tests.support.builds import DEMO, GOOD, put_together
from tests.support.environment import WHEELHOUSE, ansible_environment
from tests.support.local_hosts import LocalHost, end_marked
from tests.support.servers import free_port, rabbitmq_server
from tools.common import ToolError, run, wait_for
from tools.node import MODULES

HOSTS = ("w1", "w2", "w3")
POOL = "letters"
QUEUE = "letters"
PROCESSES = 2
MARK = "BACKSTEP_DEMO"
# Where in the ledger's database each worker says what it is.
REPORTS = "demo:reports"
_START_SECONDS = 15.0
_STOP_SECONDS = 10.0
# What a worker imports as it starts.
_CELERY = ("amqp", "billiard", "celery", "click", "dateutil", "kombu", "prompt_toolkit", "redis", "vine")
_IMPORTED = {
    "bullmq": ("redis",),
    "celery": _CELERY,
    "celery_rabbitmq": _CELERY,
    "dramatiq": ("dramatiq", "redis"),
    "dramatiq_rabbitmq": ("dramatiq", "pika", "redis"),
    "rabbitmq": ("pika", "redis"),
    "rq": ("click", "croniter", "dateutil", "redis", "rq"),
    "sidekiq": ("redis",),
    "streams": ("redis",),
}
# What a worker is besides Python.
_RUNTIMES = {
    "bullmq": "node", "celery_rabbitmq": "rabbitmq-server", "dramatiq_rabbitmq": "rabbitmq-server",
    "rabbitmq": "rabbitmq-server", "sidekiq": "sidekiq",
}  # fmt: skip
# Debian's account for what owns no files.
_UNPRIVILEGED = "nobody"


@dataclass(frozen=True)
class Stand:
    """Where things are while the demo runs."""

    folder: Path
    port: int
    user: str
    """Who the workers run as: never root."""
    python: str
    """The workers' interpreter."""
    engine: str = "rq"
    rabbitmq_url: str = ""
    """Of a node of its own, where the engine runs on one."""
    settings: dict[str, str] = field(default_factory=dict, compare=False)
    """More settings for Ansible, by their environment variables."""

    @property
    def broker_url(self) -> str:
        """The pool's broker."""
        return self.rabbitmq_url or f"redis://127.0.0.1:{self.port}/0"

    @property
    def ledger_url(self) -> str:
        """Where the ledger is kept, out of the queues' way."""
        return f"redis://127.0.0.1:{self.port}/15"

    @property
    def bench(self) -> Bench:
        """What enqueues tasks."""
        return bench_of(self.engine)(self.broker_url, ledger_url=self.ledger_url)

    @property
    def libraries(self) -> Path:
        """What the app imports."""
        return self.folder / "libraries"

    @property
    def node_modules(self) -> Path:
        """What an app on Node requires."""
        return self.folder / "node_modules"

    @property
    def inventory(self) -> Path:
        """Names the three hosts and everything that the pool's role has to know."""
        return self.folder / "inventory.json"

    @property
    def temporary(self) -> Path:
        """Where everything that the demo starts keeps its temporary files."""
        return self.folder / "tmp"

    @cached_property
    def hosts(self) -> list[LocalHost]:
        """The three hosts."""
        return [LocalHost(self.folder / name, self.environment()) for name in HOSTS]

    def root(self, host: str) -> Path:
        """The pool's root on a host."""
        return self.folder / host / "root"

    def environment(self) -> dict[str, str]:
        """For ``ansible-playbook`` of this very virtual environment."""
        return {
            **ansible_environment(Path(sys.executable).parent),
            "ANSIBLE_FORKS": str(len(HOSTS)),
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "ANSIBLE_LOCAL_TEMP": str(self.temporary / "controller"),
            "ANSIBLE_REMOTE_TEMP": str(self.temporary / "hosts"),
            "ANSIBLE_PIPELINING": "1",
            "TMPDIR": str(self.temporary),
            MARK: str(self.folder),
            **self.settings,
        }

    def build(self, name: str, kind: str = "") -> Path:
        """Put a build of the app together: the good one, with the files of a bad kind in place of its own."""
        return put_together(self.folder / "builds" / name, self.engine, kind or GOOD)


@contextmanager
def a_stand(engine: str = "rq") -> Iterator[Stand]:
    """Start everything, and remove every trace of it at the end.

    :param engine: the queue library of the demo's app.
    :raises ToolError: something did not start.
    """
    runtime = _RUNTIMES.get(engine)
    if runtime and (shutil.which(runtime) is None or (engine == "bullmq" and not MODULES.exists())):
        raise ToolError(f"The demo with {engine} needs {runtime}. Nothing was started. Run: make setup")
    with ExitStack() as undo:
        folder = Path(tempfile.mkdtemp(prefix="backstep-demo-"))
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        # At the very end whatever the hosts and Ansible have started, and is still there.
        undo.callback(end_marked, MARK, folder)
        folder.chmod(0o755)
        rabbitmq_url = undo.enter_context(_rabbitmq(folder)) if bench_of(engine).broker == "rabbitmq" else ""
        stand = Stand(folder, free_port(), _worker_user(), _worker_python(), engine, rabbitmq_url)
        stand.temporary.mkdir()
        stand.temporary.chmod(0o1777)
        redis_server = _start_redis(stand)
        undo.callback(redis_server.wait, _STOP_SECONDS)
        undo.callback(redis_server.kill)
        for host in stand.hosts:
            host.folder.mkdir()
            undo.callback(host.power_cut)
            host.power_on()
        _write_inventory(stand)
        _unpack_libraries(stand)
        wait_for("Redis and three supervisord to answer", lambda: _not_ready(stand), timeout=_START_SECONDS)
        yield stand


def _worker_user() -> str:
    return _UNPRIVILEGED if os.geteuid() == 0 else getpass.getuser()


def _worker_python() -> str:
    """An interpreter that the workers' user can run: this one's may lie in a home that nobody else can enter."""
    own = os.path.realpath(sys.executable)
    for python in (own, "/usr/bin/python3"):
        command = [python, "-I", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        user = _UNPRIVILEGED if os.geteuid() == 0 else None
        with suppress(OSError):
            done = subprocess.run(command, check=False, user=user, cwd="/", capture_output=True, timeout=_START_SECONDS)
            if done.returncode == 0:
                return python
    raise ToolError(f"{_UNPRIVILEGED} can run neither {own} nor /usr/bin/python3 from 3.11 on. Install python3.")


def _start_redis(stand: Stand) -> subprocess.Popen[bytes]:
    folder = stand.folder / "redis"
    folder.mkdir()
    options = ["--port", str(stand.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with (folder / "redis.log").open("wb") as output:
        # A session of its own: Ctrl-C is for the demo alone, which then ends everything in good order.
        return subprocess.Popen(
            ["redis-server", *options], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder,
            env=stand.environment(), start_new_session=True,
        )  # fmt: skip


@contextmanager
def _rabbitmq(folder: Path) -> Iterator[str]:
    (folder / "rabbitmq").mkdir()
    with rabbitmq_server(folder / "rabbitmq") as url:
        yield url


def _unpack_libraries(stand: Stand) -> None:
    for wheel in WHEELHOUSE.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(stand.libraries)
    if stand.engine == "bullmq":
        shutil.copytree(MODULES, stand.node_modules)
    # The workers' user can't write here, so without this each start of a worker would compile everything again.
    packages = [stand.libraries / name for name in _IMPORTED[stand.engine]]
    run([stand.python, "-m", "compileall", "-q", "-j", "0", *packages], timeout=60, env=stand.environment())


def _not_ready(stand: Stand) -> str | None:
    try:
        with redis.Redis(port=stand.port) as client:
            client.ping()
    except redis.ConnectionError as error:
        return str(error)
    missing = [host.name for host in stand.hosts if not host.socket.exists()]
    return f"no supervisord on {', '.join(missing)}" if missing else None


def _write_inventory(stand: Stand) -> None:
    variables: dict[str, Any] = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "pool_name": POOL,
        "pool_engine": stand.engine,
        "pool_broker_url": stand.broker_url,
        "pool_queues": [QUEUE],
        "pool_processes": PROCESSES,
        "pool_user": stand.user,
        "pool_supervisor": "supervisord",
        "pool_root": f"{stand.folder}/{{{{ inventory_hostname }}}}/root",
        "pool_supervisor_socket": f"{stand.folder}/{{{{ inventory_hostname }}}}/supervisor.sock",
        "pool_supervisor_conf_dir": f"{stand.folder}/{{{{ inventory_hostname }}}}/conf.d",
        "pool_command": [stand.python, "{app}/worker.py", "{worker}", "{queues}"],
        "pool_config": [{"src": str(DEMO / "letters.ini.j2"), "dest": "letters.ini"}],
        "pool_env": {
            "LEDGER_URL": stand.ledger_url,
            "REPORTS": REPORTS,
            "PYTHONPATH": str(stand.libraries),
            "NODE_PATH": str(stand.node_modules),
        },
        "pool_drain": {"timeout": 20, "on_timeout": "abort"},
        "pool_confirm_timeout": 120,
    }
    hosts: dict[str, Any] = {host: {} for host in HOSTS}
    inventory = {"all": {"children": {"workers": {"hosts": hosts, "vars": variables}}}}
    stand.inventory.write_text(json.dumps(inventory, indent=1), encoding="utf-8")
