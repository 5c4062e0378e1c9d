# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can't be done is refused by name, with what to type next, before anything is changed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.integration.local_pool import PYTHON, USER, LocalPool, open_to_all
from tests.support.environment import WHEELHOUSE, ansible_environment
from tests.support.local_hosts import LocalHost, local_hosts
from tests.support.servers import redis_server, wait_for

ROOT = os.geteuid() == 0
BROKER_SECRET, ENV_SECRET, CONFIG_SECRET = "hush-broker-3f9", "hush-env-77a", "hush-config-c01"
_SECONDS = 280.0


@dataclass
class Stage:
    """Two hosts on which release 1.0 of the pool is good, with a real broker, and the playbooks' inventory."""

    folder: Path
    hosts: list[LocalHost]
    pools: list[LocalPool]
    broker_url: str
    variables: dict[str, Any] = field(default_factory=dict)

    def play(self, playbook: str, *options: str, **changed: Any) -> subprocess.CompletedProcess[str]:
        """Run ``ansible-playbook`` with variables changed."""
        command = ["ansible-playbook", "-i", str(self.inventory()), playbook, "-e", json.dumps(changed), *options]
        environment = ansible_environment(Path(sys.executable).parent)
        return subprocess.run(
            command,
            env={**environment, **self.settings},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS,
            check=False,
        )

    @property
    def settings(self) -> dict[str, str]:
        """Ansible's own."""
        temporary = str(self.folder / "ansible")
        return {"ANSIBLE_LOCALHOST_WARNING": "0", "ANSIBLE_LOCAL_TEMP": temporary, "ANSIBLE_PIPELINING": "1"}

    def inventory(self) -> Path:
        """Both hosts, with everything that the role has to know."""
        where = {
            host.name: {
                "pool_root": str(pool.root),
                "pool_supervisor_socket": str(host.socket),
                "pool_supervisor_conf_dir": str(host.conf_dir),
            }
            for host, pool in zip(self.hosts, self.pools, strict=True)
        }
        inventory = {"all": {"children": {"workers": {"hosts": where, "vars": self.variables}}}}
        path = self.folder / "inventory.json"
        path.write_text(json.dumps(inventory), encoding="utf-8")
        return path

    def everything(self, *more: Path) -> dict[str, Any]:
        """Every file of the pools, every unit and whatever lies in ``more``, with its times, and the workers."""
        seen: dict[str, Any] = {}
        for host, pool in zip(self.hosts, self.pools, strict=True):
            for top in (pool.root, host.conf_dir, *more):
                for path in sorted(top.rglob("*")):
                    status = path.lstat()
                    seen[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino)
            running = pool.open().running()
            seen[f"{host.name} runs"] = {
                release: [process.pid for process in found] for release, found in running.items()
            }
        return seen


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """Shared by all tests of this file: none of them may change anything."""
    with ExitStack() as undo:
        hosts = undo.enter_context(local_hosts(2))
        folder = hosts[0].folder.parent
        (folder / "redis").mkdir()
        url = undo.enter_context(redis_server(folder / "redis"))
        with redis.Redis.from_url(url) as client:
            client.config_set("requirepass", BROKER_SECRET)
        url = url.replace("://", f"://:{BROKER_SECRET}@")
        pools = [LocalPool(host, "mail") for host in hosts]
        for pool in pools:
            pool.deploy("1.0")
        for host in hosts:
            wait_for(f"nothing of {host.name} writes to a log any more", lambda at=host: not at.chores())
        libraries = folder / "libraries"
        for wheel in WHEELHOUSE.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(libraries)
        (folder / "template.j2").write_text("[app]\nhost={{ inventory_hostname | length }}\n", encoding="utf-8")
        yield Stage(folder, hosts, pools, url, _variables(folder, pools[0].code, url))


def _variables(folder: Path, code: Path, url: str) -> dict[str, Any]:
    return {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "pool_name": "mail",
        "pool_engine": "rq",
        "pool_broker_url": url,
        "pool_queues": ["mail"],
        "pool_user": USER,
        "pool_version": "2.0",
        "pool_supervisor": "supervisord",
        "pool_source": {"directory": str(code)},
        "pool_command": [PYTHON, "-m", "rq.cli", "worker", "--name", "{worker}", "{queues}"],
        "pool_config": [{"src": str(folder / "template.j2"), "dest": "app.ini"}],
        "pool_env": {"PYTHONPATH": str(folder / "libraries"), "TASKS": str(folder / "w1" / "mail-tasks")},
        "pool_health": {"bake": 1, "canary_timeout": 10},
        "pool_broker_timeout": 2,
    }


DEPLOY, ROLLBACK = "backstep.workers.deploy", "backstep.workers.rollback"


def refused(stage: Stage, playbook: str, *options: str, **changed: Any) -> str:
    """Run what has to be refused; what it said, after making sure that nothing has changed."""
    before = stage.everything()
    done = stage.play(playbook, *options, **changed)
    assert done.returncode != 0, done.stdout
    assert stage.everything() == before
    assert "Traceback" not in done.stdout
    return " ".join(done.stdout.replace("\\n", " ").replace('\\"', '"').split())


BAD_VALUES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown engine": ({"pool_engine": "kafka"}, ["pool_engine", "kafka", "rq"]),
    "no version": ({"pool_version": None}, ["pool_version"]),
    "version": ({"pool_version": "../1"}, ["pool_version '../1' can't be used", "Nothing was changed."]),
    "pool name": ({"pool_name": "Mail/1"}, ["pool_name 'Mail/1' can't be used", "Nothing was changed."]),
    "no queues": ({"pool_queues": []}, ["names no queue"]),
    "queue name": ({"pool_queues": ["a b"]}, ["queue name 'a b' can't be used"]),
    "user that is unknown": (
        {"pool_user": "backstep-nobody-knows"},
        ["pool_user 'backstep-nobody-knows' doesn't exist on this host", "ansible.builtin.user"],
    ),
    "user root": ({"pool_user": "root"}, ["workers never run as root", "Name a user"]),
    "template that is not there": (
        {"pool_config": [{"src": "/no/such.j2", "dest": "app.ini"}]},
        ["the template /no/such.j2 is not there", "Nothing was changed."],
    ),
    "template that can't be rendered": (
        {"pool_config": [{"content": "{{ no_such_variable }}", "dest": "app.ini"}]},
        ["no_such_variable"],
    ),
    "config outside": ({"pool_config": [{"content": "x", "dest": "../x"}]}, ["has to be a path below config"]),
    "config of ours": ({"pool_config": [{"content": "x", "dest": "backstep/x"}]}, ["where Backstep's files lie"]),
    "config open to all": (
        {"pool_config": [{"content": "x", "dest": "x", "mode": "0666"}]},
        ["mode '0666' of x", "nobody else write"],
    ),
    "source that is not there": (
        {"pool_source": {"directory": "/no/such/app"}},
        ["/no/such/app is not a directory on the controller", "Nothing was changed."],
    ),
    "two sources": ({"pool_source": {"directory": "/a", "path": "/b"}}, ["exactly one of", "directory and path"]),
    "archive that is not there": (
        {"pool_source": {"archive": "/no/app.tar", "checksum": "sha256:00"}},
        ["/no/app.tar is not a file on the controller"],
    ),
    "worker that gives up before the drain": (
        {"pool_engine": "sidekiq", "pool_command": ["sidekiq"]},
        ["after 25 s by itself", "pool_command --timeout (seconds)"],
    ),
    "waves": ({"pool_waves": ["half"]}, ["pool_waves has 'half'"]),
    "waves that take too long": (
        {"pool_confirm_timeout": 5},
        ["don't fit into pool_confirm_timeout (5 s)", "Set pool_confirm_timeout to more than"],
    ),
    "environment": ({"pool_env": {"A B": "x"}}, ["'A B' can't be the name of a variable"]),
    "root that is a file": (
        {"pool_root": "{odd}/file"},
        ["{odd}/file is not a directory", "Choose another pool_root."],
    ),
    "current that is a directory": (
        {"pool_root": "{odd}/real"},
        ["{odd}/real/current is a real directory, not a link", "choose another pool_root"],
    ),
    "current that points nowhere": (
        {"pool_root": "{odd}/dangling"},
        ["{odd}/dangling/current points nowhere (to releases/gone)", "remove the link"],
    ),
    "root that supervisord can't be told of": ({"pool_root": "{odd}/a;b"}, ["can't be used under supervisord"]),
    "no room": ({"pool_min_free_mib": 999_999_999}, ["MiB are free below", "Make room"]),
    "broker that gives no answer": (
        {"pool_broker_url": f"redis://:{BROKER_SECRET}@127.0.0.1:1/0"},
        ["redis at 127.0.0.1:1", "Connection refused"],
    ),
    "broker with another password": ({"pool_broker_url": "redis://:wrong@127.0.0.1:{port}/0"}, ["password"]),
    "supervisor": ({"pool_supervisor": "runit"}, ["pool_supervisor", "supervisord"]),
    "supervisor that gives no answer": (
        {"pool_supervisor_socket": "/no/such.sock"},
        ["supervisord at /no/such.sock", "supervisorctl status"],
    ),
    "units' directory": ({"pool_supervisor_conf_dir": "/no/conf.d"}, ["/no/conf.d", "pool_supervisor_conf_dir"]),
}


if ROOT:
    BAD_VALUES |= {
        "disk that is too small": (
            {"pool_root": "{odd}/small/mail"},
            ["8 MiB are free below {odd}/small/mail", "Make room"],
        ),
    }


@pytest.fixture(scope="module")
def odd(stage: Stage) -> Iterator[Path]:
    """Roots that a pool can't have."""
    odd = stage.folder / "odd"
    (odd / "real" / "current").mkdir(parents=True)
    (odd / "dangling").mkdir()
    (odd / "dangling" / "current").symlink_to("releases/gone")
    (odd / "file").write_text("x", encoding="utf-8")
    (odd / "small").mkdir()
    if not ROOT:
        yield odd
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "backstep", str(odd / "small")], check=True)
    yield odd
    subprocess.run(["umount", str(odd / "small")], check=True)


@pytest.fixture(scope="module")
def filled_in(stage: Stage, odd: Path) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """The bad values, with the places of this run."""
    port = stage.broker_url.rpartition(":")[2].partition("/")[0]
    text = json.dumps(BAD_VALUES).replace("{odd}", str(odd)).replace("{port}", port)
    return {name: (changed, words) for name, (changed, words) in json.loads(text).items()}


@pytest.fixture(scope="module")
def answers(stage: Stage, filled_in: dict[str, tuple[dict[str, Any], list[str]]]) -> dict[str, str]:
    """What a deploy says to each of them: one play tries them all, as starting Ansible is what takes the time."""
    tasks: list[dict[str, Any]] = []
    for number, (changed, _words) in enumerate(filled_in.values()):
        role = {"name": "backstep.workers.pool", "tasks_from": "deploy"}
        note = {f"case_{number}": "{{ ansible_failed_result | to_json }}"}
        tasks.append(
            {
                "block": [{"ansible.builtin.include_role": role, "vars": changed}],
                "rescue": [{"ansible.builtin.set_fact": note}],
            }
        )
    names = ", ".join(f"case_{number} | default('it went through')" for number in range(len(filled_in)))
    told = stage.folder / "answers.json"
    tasks.append({"ansible.builtin.copy": {"content": f"{{{{ [{names}] | to_json }}}}", "dest": str(told)}})
    play = stage.folder / "bad-values.yml"
    settings = {"pool_hosts": "w1"}
    play.write_text(json.dumps([{"hosts": "w1", "gather_facts": False, "vars": settings, "tasks": tasks}]), "utf-8")
    before = stage.everything(stage.folder / "odd")
    done = stage.play(str(play))
    assert done.returncode == 0, done.stdout
    assert stage.everything(stage.folder / "odd") == before
    assert BROKER_SECRET not in done.stdout
    return dict(zip(filled_in, json.loads(told.read_text(encoding="utf-8")), strict=True))


@pytest.mark.parametrize("name", sorted(BAD_VALUES))
def test_a_deploy_with_a_bad_value_says_what_is_wrong_and_changes_nothing(
    answers: dict[str, str], filled_in: dict[str, tuple[dict[str, Any], list[str]]], name: str
) -> None:
    for word in filled_in[name][1]:
        assert word in answers[name]


def test_a_source_that_is_not_there(stage: Stage) -> None:
    said = refused(stage, DEPLOY, pool_source={"directory": "/no/such/app"})
    assert "The rollout was not begun. all 2 hosts: pool_source can't be used: /no/such/app is not" in said


def test_a_wrong_checksum(stage: Stage) -> None:
    archive = stage.folder / "app.tar"
    archive.write_bytes(b"bytes")
    said = refused(stage, DEPLOY, pool_source={"archive": str(archive), "checksum": f"sha256:{'0' * 64}"})
    assert f"is sha256:{hashlib.sha256(b'bytes').hexdigest()}, not sha256:{'0' * 64}" in said
    assert "before you change the checksum" in said


def test_a_limit_to_part_of_the_pool(stage: Stage) -> None:
    said = refused(stage, DEPLOY, "--limit", "w1")
    assert "--limit leaves out w2" in said
    assert "pool_partial=true" in said


def test_serial_in_a_play_of_the_user_s_own(stage: Stage) -> None:
    play = stage.folder / "serial.yml"
    tasks = [{"ansible.builtin.include_role": {"name": "backstep.workers.pool", "tasks_from": "deploy"}}]
    play.write_text(json.dumps([{"hosts": "workers", "gather_facts": False, "serial": 1, "tasks": tasks}]), "utf-8")
    said = refused(stage, str(play))
    assert "This play has 'serial'" in said
    assert "set pool_waves instead" in said


def test_a_rollback_with_no_good_release_before(stage: Stage) -> None:
    said = refused(stage, ROLLBACK)
    assert "There is no good release to go back to" in said
    assert "ansible-playbook backstep.workers.deploy -e pool_version=..." in said or "Nothing was changed." in said


def test_a_journal_that_was_changed_by_hand(stage: Stage) -> None:
    journal = stage.pools[0].root / "state" / "journal.jsonl"
    raw = journal.read_bytes()
    journal.write_bytes(raw.replace(b'"1.0"', b'"6.6"'))
    try:
        said = refused(stage, ROLLBACK)
    finally:
        journal.write_bytes(raw)
    assert f"of {journal} was changed or cut" in said


@pytest.mark.skipif(not ROOT, reason="somebody else than root is tried")
def test_no_privilege(stage: Stage) -> None:
    unprivileged = {
        "ansible_become": True,
        "ansible_become_user": USER,
        "ansible_become_method": "ansible.builtin.su",
        "ansible_become_flags": "-s /bin/sh",
        "ansible_python_interpreter": PYTHON,
    }
    privileged = stage.variables
    stage.variables = {**privileged, **unprivileged}
    try:
        said = refused(stage, DEPLOY)
    finally:
        stage.variables = privileged
    assert f"may not write below {stage.pools[0].root}" in said
    assert "Run the play with become: true." in said


# -- secrets ------------------------------------------------------------------------------------------------------


class Watch:
    """Looks at the arguments of every process, again and again, until it is told to end."""

    def __init__(self, *words: str) -> None:
        self._words = [word.encode() for word in words]
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.looks = 0
        self.found: set[bytes] = set()

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._enough.set()
        self._thread.join(10)

    def _look(self) -> None:
        while not self._enough.wait(0.05):
            self.looks += 1
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    words = path.read_bytes()
                except OSError:
                    continue
                if any(word in words for word in self._words):
                    self.found.add(words)


def test_secrets_are_nowhere(stage: Stage) -> None:
    """A whole deploy that goes well, one that goes back, and one that fails in its build, as loud as Ansible gets."""
    secrets = (BROKER_SECRET, ENV_SECRET, CONFIG_SECRET)
    reports = stage.folder / "reports"
    variables = stage.folder / "secrets.json"
    given = {
        "pool_env": {**stage.variables["pool_env"], "TOKEN": ENV_SECRET},
        "pool_config": [{"content": f"key={CONFIG_SECRET}\n", "dest": "app.ini"}],
        "pool_report_dir": str(reports),
        "pool_broker_timeout": 5,
    }
    variables.write_text(json.dumps(given), encoding="utf-8")
    options = ("-vvv", "--diff", "-e", f"@{variables}")
    with Watch(*secrets) as watch:
        good = stage.play(DEPLOY, *options)
        build = stage.play(DEPLOY, *options, pool_version="3.0", pool_build=["false"])
        crash = stage.play(DEPLOY, *options, pool_version="4.0", pool_command=["false"])
        status = stage.play("backstep.workers.status", *options)
    assert good.returncode == 0, good.stdout
    assert (build.returncode, crash.returncode, status.returncode) == (2, 2, 0)
    assert "The build command `false` ended with 1" in build.stdout
    assert watch.looks > 10
    assert watch.found == set()
    for done in (good, build, crash, status):
        for secret in secrets:
            assert secret not in done.stdout
    assert len(list(reports.iterdir())) >= 2
    told = [path for path in reports.rglob("*") if path.is_file()]
    for host, pool in zip(stage.hosts, stage.pools, strict=True):
        told += [pool.root / "state" / "journal.jsonl", pool.root / "state" / "pool.json", *pool.root.glob("log/*")]
        told += host.conf_dir.iterdir()
        told += [path for path in pool.root.rglob("*") if path.is_file() and open_to_all(path, stage.folder)]
    leaks = {str(path) for path in told for secret in secrets if secret.encode() in path.read_bytes()}
    assert leaks == set()
