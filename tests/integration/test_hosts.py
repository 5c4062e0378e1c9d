# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts that other tests stand on: real systemd, and nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.environment import ansible_environment
from tests.support.hosts import WHEELHOUSE_ON_HOST, Group, worker_hosts
from tools.common import VENV, ToolError, run

pytestmark = pytest.mark.container


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    with worker_hosts(2) as started:
        yield started


def test_systemd_is_the_first_process(group: Group) -> None:
    for host in group.hosts:
        assert host.run("cat", "/proc/1/comm").stdout.strip() == "systemd"


def test_redis_waits_until_it_is_asked_for(group: Group) -> None:
    host = group.hosts[0]
    assert host.run("systemctl", "is-active", "redis-server", check=False).stdout.strip() == "inactive"
    host.run("systemctl", "start", "redis-server")
    assert host.run("redis-cli", "ping").stdout.strip() == "PONG"
    host.run("systemctl", "stop", "redis-server")


def test_workers_install_without_a_network(group: Group) -> None:
    host = group.hosts[0]
    host.run("python3", "-m", "venv", "/opt/probe")
    wheels = ["--no-index", "--find-links", WHEELHOUSE_ON_HOST, "--require-hashes"]
    host.run("/opt/probe/bin/pip", "install", *wheels, "--requirement", f"{WHEELHOUSE_ON_HOST}/requirements.txt")
    assert "rq" in host.run("/opt/probe/bin/rq", "--version").stdout


def test_ansible_reaches_them(group: Group, tmp_path: Path) -> None:
    inventory = group.inventory(tmp_path / "hosts.ini")
    command = [VENV / "bin" / "ansible", "-i", inventory, "workers", "--one-line", "-m", "ansible.builtin.ping"]
    said = run(command, timeout=120, env=ansible_environment()).stdout
    assert said.count("SUCCESS") == len(group.hosts)


def test_they_come_back_after_a_reboot_and_a_power_cut(group: Group) -> None:
    host = group.hosts[1]
    host.run("sh", "-c", "echo kept >/var/lib/probe")
    host.restart()
    host.kill()
    host.power_on()
    assert host.run("cat", "/var/lib/probe").stdout.strip() == "kept"


def test_one_can_be_cut_off(group: Group) -> None:
    near, far = group.hosts
    far.disconnect()
    assert near.run("getent", "hosts", far.name, check=False).returncode != 0
    far.connect()
    assert near.run("getent", "hosts", far.name).stdout.split()[0] == far.address()


def test_nothing_is_left_behind_when_a_test_fails() -> None:
    def fail() -> None:
        with worker_hosts(1) as started:
            names.append(started.hosts[0].name)
            raise KeyboardInterrupt

    names: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        fail()
    with pytest.raises(ToolError):
        run(["docker", "inspect", names[0]], timeout=30)
    networks = run(["docker", "network", "ls", "--format", "{{json .Name}}"], timeout=30).stdout.splitlines()
    assert names[0].removesuffix("-w1") not in [json.loads(line) for line in networks]
