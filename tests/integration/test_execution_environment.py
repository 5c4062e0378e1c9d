# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks, in the execution environment that users build, played as AWX plays jobs, on real hosts by SSH.

The tests share one pool; each of them leaves it on a good release, with nothing open.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine

from tests.demo.production import Production
from tests.support.awx_jobs import LIBRARIES, Job, Launcher, a_launcher, build_image, have_libraries
from tests.support.builds import put_together
from tests.support.ledger import balance, unfinished
from tests.support.ledger_tasks import STARTED
from tests.support.pool import Pool, not_consuming, on_last_good, prepared_pool
from tools.common import CHECKOUT, run, wait_for

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]
QUEUES = ["letters"]
PROJECT = "/runner/project"
# Made up, and looked for wherever they must not be.
PASSPHRASE, SMTP_PASSWORD, WEBHOOK, GIT_TOKEN = "hush-passphrase", "hush-smtp", "hush-webhook", "hush-git"
CONFIRM_SECONDS, GRACE_SECONDS = 40, 20
LEASE_SECONDS = 45
REST_SECONDS = 120
EVENT_SECONDS = 90
# Longer than a job takes from its launch to the middle of its drain.
TASK_SECONDS = 60.0
# What the survey of the rollback's template answers by itself.
ROLLBACK = {"pool_to": "previous", "pool_reason": "", "pool_leave_queues": "", "pool_cross_barrier": "false"}
# Long enough to be cancelled, or cut off, while it watches.
LONG_WATCH: dict[str, Any] = {
    "pool_confirm_timeout": CONFIRM_SECONDS,
    "pool_lease_timeout": LEASE_SECONDS,
    "pool_step_timeout": 20,
    "pool_health": {"bake": 30, "canary_timeout": 5},
}
# The old release has a task while it is drained, before the new one starts.
LONG_DRAIN: dict[str, Any] = {
    "pool_confirm_timeout": CONFIRM_SECONDS,
    "pool_lease_timeout": LEASE_SECONDS,
    "pool_step_timeout": 20,
    "pool_mode": "replace",
    "pool_drain": {"timeout": 25, "on_timeout": "abort"},
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The execution environment of this checkout."""
    return build_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Two empty worker hosts and a broker."""
    with prepared_pool(2, tmp_path_factory.mktemp("pool")) as prepared:
        have_libraries(prepared.workers, tmp_path_factory.mktemp("wheels") / "libraries")
        yield prepared


@pytest.fixture(scope="module")
def awx(image: str, pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """What launches jobs at them, with the pool's variables in its inventory and every secret in a credential."""
    folder = tmp_path_factory.mktemp("awx")
    secrets = {"pool_broker_url": pool.broker_url, "ledger_url": pool.ledger_url, "smtp_password": SMTP_PASSWORD}
    secrets |= {"chat_url": f"http://{pool.broker.name}:9/{WEBHOOK}?token={WEBHOOK}", "git_token": GIT_TOKEN}
    with a_launcher(image, pool.workers, folder, inventory(pool), secrets, PASSPHRASE) as launcher:
        for kind in ("good", "crash"):
            put_together(folder / "project" / "builds" / kind, "rq", kind)
        shutil.copy(CHECKOUT / "molecule" / "shared" / "letters.ini.j2", folder / "project")
        yield launcher


def inventory(pool: Pool) -> dict[str, Any]:
    """As AWX's inventory script prints it: what the pool's own inventory has, without secrets and paths of here."""
    found = json.loads(pool.inventory.read_text(encoding="utf-8"))["all"]["children"]["workers"]["vars"]
    variables = {name: value for name, value in found.items() if name not in ("broker", "pool_broker_url")}
    variables |= {
        "ansible_python_interpreter": "/usr/bin/python3",
        "pool_engine": "rq",
        "pool_source": {"directory": f"{PROJECT}/builds/good"},
        "pool_config": [{"src": f"{PROJECT}/letters.ini.j2", "dest": "letters.ini"}],
        "pool_env": {**found["pool_env"], "LEDGER_URL": "{{ ledger_url }}", "PYTHONPATH": LIBRARIES},
        "pool_build": [],
        "pool_command": ["/usr/bin/python3", "{app}/worker.py", "{worker}", "{queues}"],
        "pool_waves": ["100%"],
        "pool_health": {"bake": 1, "canary_timeout": 10},
        "pool_notify": [{"module": "ansible.builtin.uri", "args": {"url": "{{ chat_url }}", "method": "POST"}}],
    }
    names = [host.name for host in pool.workers]
    hostvars = {name: {"remote_tower_enabled": "true", "remote_tower_id": 1} for name in names}
    return {
        "_meta": {"hostvars": hostvars},
        "all": {"children": ["ungrouped", "workers"]},
        "workers": {"hosts": names, "vars": variables},
    }


@pytest.fixture(scope="module")
def engine(pool: Pool) -> Iterator[Engine]:
    """The pool's engine, asked from here."""
    with open_engine("rq", pool.broker_url, 5.0) as opened:
        yield opened


@pytest.fixture(scope="module")
def secrets(pool: Pool, awx: Launcher) -> list[str]:
    """What AWX may store nowhere."""
    key = awx.credentials.ssh_key.splitlines()[1]
    broker_password = pool.broker_url.partition("://:")[2].partition("@")[0]
    return [broker_password, PASSPHRASE, SMTP_PASSWORD, WEBHOOK, GIT_TOKEN, key]


def leaks(job: Job, secrets: list[str]) -> list[str]:
    """Where AWX would store a secret: in events, output, artifacts, the command with its environment, or facts."""
    paths = [path for path in job.stored.rglob("*") if path.is_file()]
    assert {"command", "stdout", "rc"} <= {path.name for path in paths}, paths
    assert any(path.parent.name == "job_events" for path in paths)
    return [
        f"{path.relative_to(job.stored)}: {secret}"
        for path in paths
        for secret in secrets
        if secret.encode() in path.read_bytes()
    ]


def test_the_image_has_what_the_controllers_side_needs_and_no_more(image: str) -> None:
    def inside(*command: str) -> str:
        return run(["docker", "run", "--rm", "--network", "none", image, *command], timeout=120).stdout

    assert "git version" in inside("git", "--version")
    assert "OpenSSH" in inside("ssh", "-V")
    listed = inside("/opt/ansible/bin/pip", "list", "--format", "freeze", "--not-required")
    names = {line.partition("==")[0] for line in listed.split() if "==" in line}
    assert names - {"pip", "setuptools"} == {"ansible-core", "ansible-runner", "awxkit", "dumb-init", "pika", "redis"}
    assert "backstep.workers" in inside("ansible-galaxy", "collection", "list")


def test_a_deploy_leaves_its_word_and_nothing_that_is_secret(pool: Pool, awx: Launcher, secrets: list[str]) -> None:
    status, deploy = awx.play("deploy", {"pool_version": "1.0", "pool_reason": ""})
    assert status == "successful"
    assert leaks(deploy, secrets) == []
    told = deploy.artifact()["backstep"]
    assert (told["schema"], told["pool"], told["what"], told["ok"]) == (1, "letters", "deployed", True)
    assert told["now"] == on_last_good(pool)
    # What it says of its own is in the events, each line whole.
    assert f"Pool letters goes from nothing to {told['now']} on 2 of 2 hosts" in deploy.output


@pytest.mark.thorough
def test_a_rollback_by_the_answers_that_the_survey_has_already(
    pool: Pool, awx: Launcher, secrets: list[str], good: str
) -> None:
    assert awx.play("deploy", {"pool_version": "2.0"})[0] == "successful"
    second = on_last_good(pool)
    status, rollback = awx.play("rollback", ROLLBACK)
    assert status == "successful"
    assert leaks(rollback, secrets) == []
    told = rollback.artifact()["backstep"]
    assert (told["what"], told["from"], told["now"]) == ("rolled_back", second, good)
    assert on_last_good(pool) == good


@pytest.mark.thorough
@pytest.mark.usefixtures("good")
def test_nothing_secret_is_told_at_verbosity_3_nor_by_what_fails(awx: Launcher, pool: Pool, secrets: list[str]) -> None:
    base = {"pool_version": "9.0"}
    sources = [
        {"git": f"http://u:{{{{ git_token }}}}@{pool.broker.name}:9/x.git", "ref": "v1"},
        {"archive": f"http://{pool.broker.name}:9/x.tar?token={{{{ git_token }}}}", "checksum": "sha256:00"},
    ]
    for source in sources:
        status, job = awx.play("deploy", {**base, "pool_source": source}, "-vvv")
        assert status == "failed"
        assert leaks(job, secrets) == []
    for playbook in ("deploy", "status", "report", "rollback"):
        status, job = awx.play(playbook, {"pool_version": "2.5"} if playbook == "deploy" else {}, "-vvv")
        assert status == "successful"
        assert leaks(job, secrets) == []


class Work:
    """Tasks that come in, and what became of all of them so far."""

    def __init__(self, pool: Pool, engine: Engine) -> None:
        self._pool, self._engine = pool, engine
        self._number = 0

    @contextmanager
    def coming_in(self) -> Iterator[None]:
        """Tasks come in as long as the block runs."""
        with Production(self._pool, self._number) as production:
            try:
                yield
            finally:
                production.stop()
                self._number = production.number

    def begin_long(self) -> None:
        """Have a worker begin a task that takes a while."""
        self._number += 1
        number = str(self._number)
        self._pool.bench.enqueue(QUEUES[0], self._number, TASK_SECONDS, task="letters.send")
        with redis.Redis.from_url(self._pool.ledger_url, decode_responses=True) as notes:
            wait_for(
                "a long task to begin", lambda: None if notes.hget(STARTED, number) else "waits", timeout=REST_SECONDS
            )

    def require_none_lost(self, *jobs: Job) -> None:
        """Once the workers have done what they can reach, no task is lost, and each that ran twice was named."""
        wait_for(
            "the workers to finish", lambda: unfinished(self._engine, self._pool.bench, QUEUES[0]), timeout=REST_SECONDS
        )
        said = "\n".join(job.output for job in jobs)
        found = balance(self._engine, self._pool.ledger_url, QUEUES, set(re.findall(r"task-\d+", said)))
        assert found.balanced, found.counts()


@pytest.fixture(scope="module")
def work(pool: Pool, engine: Engine) -> Work:
    """Of the whole file, as the ledger is."""
    return Work(pool, engine)


@pytest.fixture
def good(pool: Pool, awx: Launcher) -> str:
    """The release that every host is on before the fault."""
    if not all(pool.view(host).processes for host in pool.workers):
        assert awx.play("deploy", {"pool_version": "1.0"})[0] == "successful"
    return on_last_good(pool)


def wait_event(pool: Pool, *events: str) -> None:
    """Wait until the last thing in each host's journal is one of these events."""

    def others() -> str | None:
        last = {host.name: pool.view(host).events[-1] for host in pool.workers}
        return None if set(last.values()) <= set(events) else str(last)

    wait_for(f"{events}", others, timeout=EVENT_SECONDS)


def wait_only(pool: Pool, release: str, seconds: float) -> None:
    """Wait until each host runs the workers of a release, and no others."""

    def others() -> str | None:
        found = {host.name: pool.view(host).releases for host in pool.workers}
        return None if all(runs == {release: pool.processes} for runs in found.values()) else str(found)

    wait_for(f"only {release} to run", others, timeout=seconds)


@pytest.mark.thorough
def test_a_job_that_is_cancelled_in_mid_switch_is_mended_by_the_hosts_and_named_by_the_next(
    pool: Pool, awx: Launcher, engine: Engine, work: Work, good: str
) -> None:
    with work.coming_in():
        cancelled = awx.launch("deploy", {"pool_version": "3.0", **LONG_WATCH})
        wait_event(pool, "switched")
        assert cancelled.cancel() != "successful"
        status, refused = awx.play("deploy", {"pool_version": "3.1"})
        assert status == "failed"
        assert f"The pool is held: all 2 hosts by ana (AWX job {cancelled.number}) for a deploy." in refused.output
        wait_only(pool, good, CONFIRM_SECONDS + GRACE_SECONDS)
        wait_for(
            f"{good} to consume",
            lambda: not_consuming(pool, engine, pool.workers, good),
            timeout=GRACE_SECONDS,
        )
        wait_for("the leases to run out", lambda: held(pool), timeout=LEASE_SECONDS)
        status, after = awx.play("deploy", {"pool_version": "3.2"})
        assert status == "successful"
        assert on_last_good(pool).startswith("3.2-")
    work.require_none_lost(cancelled, refused, after)


def held(pool: Pool) -> str | None:
    """None once no host's lease binds."""
    for host in pool.workers:
        told = json.loads(pool.program(host, "status", "--json").output)
        if told["lease"]:
            return f"{host.name}: {told['lease']}"
    return None


@pytest.mark.thorough
def test_a_rollback_takes_over_at_once_from_a_job_that_was_cancelled_in_mid_drain(
    pool: Pool, awx: Launcher, engine: Engine, work: Work, good: str
) -> None:
    work.begin_long()
    with work.coming_in():
        cancelled = awx.launch("deploy", {"pool_version": "4.0", **LONG_DRAIN})
        wait_for("a drain to begin", lambda: not_draining(pool), timeout=EVENT_SECONDS)
        cancelled.wait_said("... ")
        assert cancelled.cancel() != "successful"
        # Not green if the long task outlasts its proof: a worker of the good release has that still to finish.
        _status, rollback = awx.play("rollback", ROLLBACK)
        wait_for(
            f"{good} to consume",
            lambda: not_consuming(pool, engine, pool.workers, good),
            timeout=TASK_SECONDS + GRACE_SECONDS,
        )
        assert awx.play("rollback", {**ROLLBACK, "pool_to": good})[0] == "successful"
    assert on_last_good(pool) == good
    assert f"takes over from ana (AWX job {cancelled.number}), whose deploy holds the pool" in rollback.output
    work.require_none_lost(cancelled, rollback)


def not_draining(pool: Pool) -> str | None:
    """None once a host waits for the tasks of its old release."""
    last = {host.name: pool.view(host).events[-1] for host in pool.workers}
    return None if "drain_started" in last.values() else str(last)


@pytest.mark.thorough
def test_a_relaunch_on_failed_hosts_is_refused_and_says_what_to_press(pool: Pool, awx: Launcher, good: str) -> None:
    before = {host.name: pool.view(host).events for host in pool.workers}
    failed = pool.workers[0].name
    for playbook, answers in (("deploy", {"pool_version": "5.0"}), ("rollback", ROLLBACK)):
        status, refused = awx.play(playbook, answers, "-l", failed)
        assert status == "failed"
        assert f"--limit leaves out {pool.workers[1].name}" in refused.output
        assert "Launch the template again, not 'Relaunch on failed hosts'" in refused.output
        assert "-e pool_partial" not in refused.output
    assert {host.name: pool.view(host).events for host in pool.workers} == before
    assert on_last_good(pool) == good


@pytest.mark.thorough
def test_a_job_that_loses_its_network_fails_and_the_hosts_mend_themselves(
    pool: Pool, awx: Launcher, engine: Engine, work: Work, good: str
) -> None:
    with work.coming_in():
        cut = awx.launch("deploy", {"pool_version": "6.0", **LONG_WATCH})
        wait_event(pool, "switched")
        run(["docker", "network", "disconnect", awx.network, cut.container], timeout=60)
        wait_only(pool, good, CONFIRM_SECONDS + GRACE_SECONDS)
        wait_for(
            f"{good} to consume", lambda: not_consuming(pool, engine, pool.workers, good), timeout=GRACE_SECONDS
        )
        assert cut.wait() == "failed"
        wait_for("the leases to run out", lambda: held(pool), timeout=LEASE_SECONDS)
        status, after = awx.play("deploy", {"pool_version": "6.1"})
        assert status == "successful"
        assert on_last_good(pool).startswith("6.1-")
    work.require_none_lost(cut, after)
