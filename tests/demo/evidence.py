# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What really runs on the hosts, from the processes themselves and from the files they read: not from the journal."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.demo.stand import MARK, REPORTS, Stand
from tests.support.local_hosts import marked


@dataclass(frozen=True)
class HostEvidence:
    """One host: how many worker processes of which release, and the config."""

    releases: dict[str, int]
    """Worker processes by release."""
    configs: frozenset[str]
    """SHA-256 of the config that these processes have read."""
    config: bytes | None
    """The config file of the current release; None when it isn't there."""

    def runs_only(self, release: str, processes: int) -> bool:
        """Whether it runs this many workers of the release, all with the config as it lies there, and nothing else."""
        read = frozenset((hashlib.sha256(self.config or b"").hexdigest(),))
        return self.releases == {release: processes} and self.configs == read


def live_workers(stand: Stand) -> dict[str, dict[str, str]]:
    """The environment of the main process of each living worker, by the worker's name."""
    found = {}
    for pid in marked(MARK, stand.folder):
        with suppress(OSError):
            raw = Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace")
            environment = dict(item.partition("=")[::2] for item in raw.split("\0"))
            name = environment.get("BACKSTEP_WORKER", "")
            # A worker's name ends in its process id, which tells it from the children that execute its tasks.
            if name.endswith(f"/{pid}"):
                found[name] = environment
    return found


def versions(stand: Stand) -> list[str]:
    """The versions that run, one for each worker."""
    return sorted(environment["BACKSTEP_VERSION"] for environment in live_workers(stand).values())


def look(stand: Stand, host: str) -> HostEvidence:
    """Look at one host now."""
    root = stand.root(host)
    releases: dict[str, int] = {}
    configs = set()
    with redis.Redis.from_url(stand.ledger_url) as notes:
        reports = {name.decode(): json.loads(report) for name, report in notes.hgetall(REPORTS).items()}
    for name, environment in live_workers(stand).items():
        if environment["BACKSTEP_ROOT"] == str(root):
            report = reports.get(name, {"release": "silent", "config": "unread"})
            releases[report["release"]] = releases.get(report["release"], 0) + 1
            configs.add(report["config"])
    config = root / "current" / "config" / "letters.ini"
    return HostEvidence(releases, frozenset(configs), config.read_bytes() if config.is_file() else None)
