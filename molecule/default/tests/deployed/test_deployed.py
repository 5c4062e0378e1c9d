# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""After the first deploy, and a second one that changed nothing."""

from __future__ import annotations

import configparser

import pytest
import redis
from rq import Queue
from testinfra.host import Host as Seen

from tests.support.pool import UNITS, Pool
from tests.support.servers import wait_for

testinfra_hosts = ["ansible://workers"]
PROCESSES = 2
SECRETS = "hush-"


@pytest.fixture(scope="module")
def release(pool: Pool) -> str:
    """The id of the release that the first worker host reports."""
    (found,) = pool.view(pool.workers[0]).releases
    return found


def test_every_host_runs_the_release_as_its_processes_report(pool: Pool, release: str) -> None:
    for host in pool.workers:
        found = pool.view(host)
        assert found.releases == {release: PROCESSES}
        assert {process["user"] for process in found.processes} == {"postman"}


def test_units_come_up_at_boot_and_let_tasks_finish(host: Seen, pool: Pool, release: str) -> None:
    for index in range(1, PROCESSES + 1):
        unit = host.service(f"backstep-letters-{release}-{index}")
        assert unit.is_running
        assert unit.is_enabled
        properties = unit.systemd_properties
        assert (properties["KillMode"], properties["Restart"]) == ("mixed", "always")
        assert properties["TimeoutStopUSec"] == "infinity"


def test_config_is_what_was_asked_for_and_the_workers_can_read_it(host: Seen, pool: Pool, release: str) -> None:
    folder = host.file(f"{pool.root}/releases/{release}/config")
    config = host.file(f"{folder.path}/letters.ini")
    assert (folder.user, folder.group, folder.mode) == ("root", "postman", 0o750)
    assert (config.user, config.group, config.mode) == ("root", "postman", 0o640)
    settings = configparser.ConfigParser()
    settings.read_string(config.content_string)
    assert dict(settings["letters"]) == {"greeting": "Greetings from 1.0", "smtp_password": "hush-smtp"}


def test_state_is_for_root_only(host: Seen, pool: Pool) -> None:
    assert host.file(f"{pool.root}/state").mode == 0o700
    for name in host.file(f"{pool.root}/state").listdir():
        assert host.file(f"{pool.root}/state/{name}").mode == 0o600


def test_secrets_are_only_in_files_for_root_and_the_workers(host: Seen, pool: Pool) -> None:
    listed = host.run("grep -rlI --exclude-dir=app %s %s %s /run/systemd", SECRETS, pool.root, UNITS).stdout.split()
    assert listed
    for path in listed:
        found = host.file(path)
        assert path.startswith(pool.root)
        assert (found.user, found.mode & 0o007) == ("root", 0)
    for said in ("journalctl --no-pager", "ps -ww -eo args", f"cat {pool.root}/state/journal.jsonl"):
        assert SECRETS not in host.check_output(said)


def test_the_journal_and_what_it_seals_are_sound(pool: Pool) -> None:
    for host in pool.workers:
        assert pool.program(host, "verify").status == 0
        assert pool.view(host).events[-1] == "lease_released"


def test_a_task_is_finished(pool: Pool) -> None:
    with redis.Redis.from_url(pool.broker_url) as broker:
        job = Queue("letters", connection=broker).enqueue("letters.send", 1, 0.1)
        wait_for("the task is finished", lambda: job.get_status(refresh=True).value == "finished")


def test_a_rollback_fails_loudly_where_only_one_was_ever_good(pool: Pool, release: str) -> None:
    before = [pool.view(host).picture() for host in pool.workers]
    played = pool.play("rollback")
    assert played.status != 0
    assert f"{release} is the only one that was ever confirmed" in played.output
    assert [pool.view(host).picture() for host in pool.workers] == before
