# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rulebooks, run by the real ansible-rulebook: alerts and health that make one rollback, and no more."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xmlrpc.client import ServerProxy

import pytest
from supervisor.xmlrpc import SupervisorTransport

from tests.demo.playbooks import play
from tests.demo.stand import HOSTS, POOL, Stand, a_stand
from tests.support.alarms import current, deploy, events, reasons, settings
from tests.support.rulebooks import SECONDS, Rulebook, rulebook, with_variables
from tests.support.servers import free_port, wait_for

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(1200)]
ONE = HOSTS[:1]
TOKEN = "hush-token"  # noqa: S105  # made up


@pytest.fixture
def stand() -> Iterator[Stand]:
    """Three hosts, of which one will do."""
    with a_stand() as stand:
        with_variables(stand, **settings(ONE))
        yield stand


def post(port: int, alerts: list[dict[str, Any]]) -> bool:
    """Send alerts as Alertmanager does; whether anybody has taken them."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/alerts",
        json.dumps({"version": "4", "status": "firing", "alerts": alerts}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  # a server of this test
            return bool(answer.status == 200)
    except urllib.error.URLError:
        return False


def alert(release: str, fingerprint: str, at: float, summary: str) -> dict[str, Any]:
    """One of Alertmanager's."""
    return {
        "status": "firing",
        "fingerprint": fingerprint,
        "startsAt": datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "labels": {"alertname": "LettersFail", "backstep": "rollback", "pool": POOL, "release": release},
        "annotations": {"summary": summary},
    }


def wait_back(stand: Stand, release: str) -> None:
    """Wait until the pool is on a release, and nobody is at work on it any more."""

    def there() -> bool:
        granted, released = (len(events(stand, ONE[0], name)) for name in ("lease_granted", "lease_released"))
        return current(stand, ONE) == {ONE[0]: release} and granted == released

    wait_for(f"the pool on {release}", there, SECONDS)


def listen(running: Rulebook, port: int, alerts: list[dict[str, Any]]) -> None:
    """Send alerts once it listens."""
    assert running.process.poll() is None, running.output
    wait_for("the webhook", lambda: post(port, alerts), SECONDS)


def test_a_hundred_alerts_make_one_rollback_and_an_old_one_makes_none(stand: Stand, tmp_path: Path) -> None:
    old = deploy(stand, tmp_path, "1.0", ONE)
    new = deploy(stand, tmp_path, "2.0", ONE)
    port, broken_in = free_port(), stand.folder / "broken-in"
    webhook = {"webhook_host": "127.0.0.1", "webhook_port": port, "webhook_token": TOKEN}
    variables = {"pool_name": POOL, "pool_hosts": ONE[0], **webhook}
    with rulebook(stand, "alertmanager", tmp_path / "first.log", variables) as running:
        listen(running, port, [alert(new, "f0", time.time() - 3 * 86_400, "long ago")])
        running.wait_said("stays where it is")
        assert "the alert began at" in running.output
        assert current(stand, ONE) == {ONE[0]: new}
        hostile = f"{{{{ lookup('ansible.builtin.pipe', 'touch {broken_in}') }}}}"
        same = alert(new, "f1", time.time(), hostile)
        for _post in range(20):
            assert post(port, [same] * 5)
        wait_back(stand, old)
    (reason,) = reasons(stand, ONE)[ONE[0]]
    assert reason.startswith("alert alertmanager-f1-2")
    assert "LettersFail: lookup(" in reason
    assert not broken_in.exists()
    with rulebook(stand, "alertmanager", tmp_path / "second.log", variables) as running:
        listen(running, port, [same] * 5)
        running.wait_said(f"it went back from {new} already")
    assert reasons(stand, ONE) == {ONE[0]: [reason]}
    assert current(stand, ONE) == {ONE[0]: old}
    assert not broken_in.exists()
    assert TOKEN not in (tmp_path / "first.log").read_text("utf-8")


def stop_workers(stand: Stand) -> None:
    """Have no worker run, without anybody having said so to the collection."""
    host = next(host for host in stand.hosts if host.name == ONE[0])
    transport = SupervisorTransport(None, None, f"unix://{host.socket}")
    stopped = ServerProxy("http://127.0.0.1", transport=transport).supervisor.stopAllProcesses()
    assert stopped


def test_a_pool_that_turns_bad_goes_back_once_also_over_a_restart(stand: Stand, tmp_path: Path) -> None:
    old = deploy(stand, tmp_path, "1.0", ONE)
    new = deploy(stand, tmp_path, "2.0", ONE)
    status = tmp_path / "status.json"
    kept = Path(f"{status}.health")

    def look() -> None:
        assert play(stand, tmp_path, "status", "status", pool_status_file=str(status), **settings(ONE)).status == 0

    def known() -> dict[str, Any]:
        return dict(json.loads(kept.read_text("utf-8"))) if kept.exists() else {}

    variables = {"pool_name": POOL, "pool_hosts": ONE[0], "pool_status_file": str(status)}
    stop_workers(stand)
    with rulebook(stand, "pool_health", tmp_path / "first.log", variables):
        look()
        wait_for("a first reading", lambda: known().get("count") == 1, SECONDS)
    assert reasons(stand, ONE) == {ONE[0]: []}
    with rulebook(stand, "pool_health", tmp_path / "second.log", variables):
        look()
        wait_back(stand, old)
        wait_for("what was told", lambda: known().get("health") == "bad", SECONDS)
    told = known()["event"]
    (reason,) = reasons(stand, ONE)[ONE[0]]
    assert reason.startswith(f"alert {told}: pool_health: w1: worker 1 doesn't run")
    # The status is as old as it was; it is only started anew.
    with rulebook(stand, "pool_health", tmp_path / "third.log", variables):
        for number in (1, 2):
            look()
            wait_for("a reading", lambda: known()["health"] == "good" or known()["count"] == number, SECONDS)  # noqa: B023
        wait_for("the pool to be good", lambda: known()["health"] == "good", SECONDS)
    assert reasons(stand, ONE) == {ONE[0]: [reason]}
    assert new != old
