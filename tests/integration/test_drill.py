# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drills as a person meets them: three hosts under load, each kind of failure, a controller that dies."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.drills import CRASH, LATE, NEVER_CONSUMES

from tests.demo.evidence import look
from tests.demo.playbooks import command
from tests.demo.production import Production
from tests.demo.stand import HOSTS, PROCESSES, QUEUE, Stand, a_stand
from tests.support.ledger import balance, unfinished
from tests.support.servers import wait_for

pytestmark = pytest.mark.timeout(900)
SECONDS = 60.0
# Of a whole playbook, on a machine that has a lot to do.
_PLAYS = 240.0
KINDS = [CRASH, *(pytest.param(kind, marks=pytest.mark.thorough) for kind in (NEVER_CONSUMES, LATE))]
# From which number on the tasks of each go.
NUMBERS = {CRASH: 0, NEVER_CONSUMES: 100_000, LATE: 200_000}
# A crash is seen in no time.
HEALTH = {CRASH: {"bake": 1, "canary_timeout": 20}, LATE: {"bake": 4, "canary_timeout": 20}}
Told = subprocess.CompletedProcess[str]


@contextmanager
def under_way(stand: Stand, playbook: str, *options: str, **variables: Any) -> Iterator[subprocess.Popen[str]]:
    """A playbook, killed if it is still there in the end. All hosts but one are touched: that one goes on consuming."""
    given = {"pool_waves": [2, "100%"], "pool_health": HEALTH[CRASH], **variables}
    with subprocess.Popen(
        command(stand, playbook, *options, **given), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env=stand.environment(), cwd=stand.folder, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def play(stand: Stand, playbook: str, *options: str, **variables: Any) -> Told:
    """A playbook to its end."""
    with under_way(stand, playbook, *options, **variables) as process:
        said = process.communicate(timeout=_PLAYS)[0]
        return subprocess.CompletedProcess(process.args, process.returncode, said, "")


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    """Three hosts on release 1, on which each test leaves them."""
    with a_stand() as started:
        first = play(started, "deploy", pool_version="1", pool_source={"directory": str(started.build("good"))})
        assert first.returncode == 0, first.stdout
        yield started


@pytest.fixture
def release(stand: Stand) -> str:
    """What every host is on."""
    (found,) = {(stand.root(host) / "current").readlink().name for host in HOSTS}
    return found


def journal(stand: Stand, host: str) -> bytes:
    """A host's, as it lies there."""
    return (stand.root(host) / "state" / "journal.jsonl").read_bytes()


def events(stand: Stand, host: str, name: str) -> list[dict[str, Any]]:
    """Those of one name in a host's journal."""
    found = [json.loads(line) for line in journal(stand, host).splitlines()]
    return [event for event in found if event["event"] == name]


def taken_back(stand: Stand, host: str) -> dict[str, Any]:
    """The end of a host's last way back."""
    return {"token": 0, **(events(stand, host, "rolled_back") or [{}])[-1]}


def require_back(stand: Stand, release: str) -> None:
    """Every host runs the release, whole and alone; of the drill there is nothing left."""
    for host in HOSTS:
        wait_for(f"{host} is back", lambda name=host: look(stand, name).runs_only(release, PROCESSES), SECONDS)
        assert [path.name for path in (stand.root(host) / "releases").iterdir()] == [release]


def test_nobody_drills_a_pool_that_was_not_meant_for_it(stand: Stand) -> None:
    before = [journal(stand, host) for host in HOSTS]
    refused = play(stand, "drill", pool_drill=True, pool_production=True)
    assert refused.returncode != 0
    assert "-e pool_drill_production=true" in refused.stdout
    assert [journal(stand, host) for host in HOSTS] == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_drill_under_load_comes_back_loses_nothing_and_is_remembered(
    stand: Stand, release: str, tmp_path: Path, kind: str
) -> None:
    notify = {"path": str(tmp_path / "told"), "line": "{{ pool_event.what }}", "create": True, "mode": "0600"}
    told = [{"name": "file", "module": "ansible.builtin.lineinfile", "args": notify}]
    with open_engine("rq", stand.broker_url, 5.0) as engine, Production(stand, NUMBERS[kind]) as production:
        wait_for("there is work", lambda: production.number > NUMBERS[kind], SECONDS)
        done = play(
            stand, "drill", pool_drill=True, pool_drill_kind=kind, pool_production=True, pool_drill_production=True,
            pool_health=HEALTH.get(kind, HEALTH[CRASH]), pool_notify=told,
        )  # fmt: skip
        production.stop()
        assert done.returncode == 0, done.stdout
        wait_for("all is finished", lambda: unfinished(engine, production.bench, QUEUE) is None, SECONDS)
        found = balance(engine, stand.ledger_url, [QUEUE])
    assert (found.balanced, found.lost, found.duplicated) == (True, set(), set())
    require_back(stand, release)
    assert (tmp_path / "told").read_text(encoding="utf-8") == "drilled\n"

    assert f"The drill ({kind}) of pool letters passed: every host is back on" in done.stdout
    ended = [events(stand, host, "drilled")[-1] for host in HOSTS]
    assert {(event["kind"], event["passed"], event["ended"]) for event in ended} == {(kind, True, ended[0]["ended"])}
    times = ended[0]["times"]
    assert times["gap"] == 0.0, "the third host was never touched"
    assert min(times["detect"], times["decide"], times["restore"]) >= 0
    number = ended[0]["token"]
    began = {host: [event["token"] for event in events(stand, host, "switch_started")] for host in HOSTS}
    assert [host for host in HOSTS if number in began[host]] == list(HOSTS[:2])
    for act in ("Close the gates that a rollback closes", "Park those", "See which tasks died in this rollout"):
        assert act not in done.stdout, "the queues were left alone"
    status = play(stand, "status", pool_status_file=str(tmp_path / "status.json"))
    said = rf"last drill: {kind} on \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(rollout {number}\): passed"
    assert re.search(said, status.stdout), status.stdout
    drill = json.loads((tmp_path / "status.json").read_text(encoding="utf-8"))["drill"]
    assert drill == {name: ended[0][name] for name in ("kind", "token", "ended", "passed")}
    program = [str(stand.root(HOSTS[2]) / "bin" / "backstep"), "status"]
    assert f"drill     {kind} on " in subprocess.run(program, capture_output=True, text=True, check=True).stdout


@pytest.mark.thorough
def test_a_drill_that_is_looked_at_first_writes_nothing(stand: Stand, release: str) -> None:
    before = [journal(stand, host) for host in HOSTS]
    looked = play(stand, "drill", "--check", "--diff", pool_drill=True)
    assert looked.returncode == 0, looked.stdout
    assert f"would be back on {release}" in looked.stdout
    assert [journal(stand, host) for host in HOSTS] == before
    require_back(stand, release)


@pytest.mark.thorough
def test_a_drill_whose_controller_dies_goes_back_and_the_next_one_is_none_the_worse(stand: Stand, release: str) -> None:
    given = {"pool_drill": True, "pool_drill_kind": NEVER_CONSUMES, "pool_confirm_timeout": 60}
    had = len(events(stand, HOSTS[0], "switched"))
    with under_way(stand, "drill", **given) as process:
        wait_for("the first host is switched", lambda: len(events(stand, HOSTS[0], "switched")) > had, _PLAYS)
        os.killpg(process.pid, signal.SIGKILL)
    token = events(stand, HOSTS[0], "switched")[-1]["token"]
    for host in HOSTS:
        if token in [event["token"] for event in events(stand, host, "switch_started")]:
            wait_for(f"{host} is back", lambda name=host: taken_back(stand, name)["token"] == token, 3 * SECONDS)
            assert taken_back(stand, host)["by"] == "guard"
    assert token not in [event["token"] for event in events(stand, HOSTS[0], "drilled")]

    again = play(stand, "drill", pool_drill=True)
    assert again.returncode == 0, again.stdout
    require_back(stand, release)
