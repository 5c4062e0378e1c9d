# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is needed to try alerts on the demo's hosts: two good releases, and what the journals say of rollbacks.

``hosts`` are those of the pool: one where one will do, as each takes its time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.demo.playbooks import Played, play
from tests.demo.stand import HOSTS, Stand


def deploy(stand: Stand, logs: Path, version: str, hosts: Sequence[str] = HOSTS) -> str:
    """Deploy a good version; the release's id."""
    code = stand.build("app")
    given = {"pool_version": version, "pool_source": {"directory": str(code)}, "pool_waves": ["100%"]}
    played = play(stand, logs, f"deploy-{version}", "deploy", **given, **settings(hosts))
    assert played.status == 0, played.output
    return current(stand, hosts)[hosts[0]]


def settings(hosts: Sequence[str]) -> dict[str, Any]:
    """What all plays are given."""
    return {"pool_hosts": ",".join(hosts), "pool_health": {"bake": 1, "canary_timeout": 20}}


def ask(stand: Stand, logs: Path, alert: dict[str, Any], hosts: Sequence[str] = HOSTS) -> Played:
    """Ask for a rollback because of an alert."""
    return play(stand, logs, "rollback", "rollback", pool_alert=alert, **settings(hosts))


def current(stand: Stand, hosts: Sequence[str] = HOSTS) -> dict[str, str]:
    """By host, the release that ``current`` names."""
    return {host: (stand.root(host) / "current").resolve().name for host in hosts}


def events(stand: Stand, host: str, name: str) -> list[dict[str, Any]]:
    """The events of a host's journal that have this name."""
    lines = (stand.root(host) / "state" / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def reasons(stand: Stand, hosts: Sequence[str] = HOSTS) -> dict[str, list[str]]:
    """By host, the reason of each rollback that was begun there."""
    return {host: [event["reason"] for event in events(stand, host, "rollback_started")] for host in hosts}
