# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens in the demo, in order, and whether it went as told."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine

from tests.demo.evidence import HostEvidence, look
from tests.demo.playbooks import Played, play
from tests.demo.production import Production
from tests.demo.stand import HOSTS, POOL, PROCESSES, QUEUE, Stand
from tests.support.bench import Bench
from tests.support.ledger import Balance, balance, unfinished
from tools.common import ToolError, wait_for

BROKER_SECONDS = 5.0
DRAIN_SECONDS = 25.0
# Two hosts get B first: enough to see that all touched hosts go back, and that the third is never touched.
WAVES_OF_B = [2, "100%"]
# Seconds. Builds that crash need a bake that is longer than they live; the others have no time to lose.
HEALTH_OF_A = {"bake": 1, "canary_timeout": 20}
HEALTH_OF_B = {"bake": 2, "canary_timeout": 5}
BAKES_OF_B = {"crash": 5, "crash-later": 5}
_WIDTH = 100
_LINE = "─" * _WIDTH
EXTENSIONS = ("html", "json", "md")


@dataclass(frozen=True)
class Ending:
    """All that is known when the demo is over."""

    first: Played
    second: Played
    report: dict[str, Any]
    hosts: dict[str, HostEvidence]
    release: str
    config: bytes | None
    balance: Balance
    seconds: float

    def complaints(self) -> list[str]:
        """Everything that did not go as told."""
        found = [] if self.second.status else ["the deploy of B ended with status 0"]
        if self.report["ended"] != "rolled_back":
            found.append(f"the rollout of B ended as '{self.report['ended']}'")
        for host, seen in self.hosts.items():
            if not seen.runs_only(self.release, PROCESSES):
                found.append(f"{host} runs {seen.releases or 'nothing'}")
            if seen.config != self.config:
                found.append(f"the config on {host} is not A's")
        if self.balance.lost:
            found.append(f"lost: {', '.join(sorted(self.balance.lost))}")
        unannounced = self.balance.duplicated - self.balance.announced
        if unannounced:
            found.append(f"ran twice, unannounced: {', '.join(sorted(unannounced))}")
        return found


class Story:
    """Release A, release B, the way back, the ledger."""

    def __init__(self, stand: Stand, output: Path, kind: str, what: str) -> None:
        self._stand, self._output, self._kind, self._what = stand, output, kind, what

    def tell(self) -> int:
        """Do everything and sum it up; 0 when it went as told."""
        began = time.monotonic()
        stand = self._stand
        with open_engine(stand.engine, stand.broker_url, BROKER_SECONDS) as engine, Production(stand) as production:
            first = self._deploy("A", "1.0", ["100%"], HEALTH_OF_A)
            release, config = self._require_good(first)
            health = {**HEALTH_OF_B, "bake": BAKES_OF_B.get(self._kind, HEALTH_OF_B["bake"])}
            second = self._deploy("B", "2.0", WAVES_OF_B, health, self._kind)
            production.stop()
            report = self._keep_report()
            announced = {task["id"] for task in report["recovered"]}
            self._drain(engine, production.bench)
            ending = Ending(
                first, second, report, {host: look(stand, host) for host in HOSTS}, release, config,
                balance(engine, stand.ledger_url, [QUEUE], announced), time.monotonic() - began,
            )  # fmt: skip
        (self._output / "ledger.json").write_text(json.dumps(ending.balance.counts(), indent=1) + "\n", "utf-8")
        print("\n" + "\n".join(self._summary(ending)), flush=True)
        return 1 if ending.complaints() else 0

    def _deploy(self, name: str, version: str, waves: list[Any], health: dict[str, int], kind: str = "") -> Played:
        source = {"directory": str(self._stand.build(name, kind))}
        return play(
            self._stand, self._output, f"deploy-{name}", "deploy",
            pool_version=version, pool_source=source, pool_waves=waves, pool_health=health,
            pool_report_dir=str(self._output),
        )  # fmt: skip

    def _require_good(self, played: Played) -> tuple[str, bytes | None]:
        """A's id and the bytes of its config.

        :raises ToolError: A is not good everywhere, so there is nothing to tell.
        """
        seen = {host: look(self._stand, host) for host in HOSTS}
        releases = {release for evidence in seen.values() for release in evidence.releases}
        configs = {evidence.config for evidence in seen.values()}
        if played.status or len(releases) != 1 or len(configs) != 1:
            raise ToolError(f"Release A is not good on every host: status {played.status}, running {sorted(releases)}.")
        return releases.pop(), configs.pop()

    def _keep_report(self) -> dict[str, Any]:
        # Each rollout's number is larger than the last one's; B's is the last.
        newest = max(self._output.glob(f"{POOL}-*.json"), key=lambda path: int(path.stem.rpartition("-")[2]))
        for extension in EXTENSIONS:
            shutil.copy(newest.with_suffix(f".{extension}"), self._output / f"report.{extension}")
        report: dict[str, Any] = json.loads(newest.read_text(encoding="utf-8"))
        return report

    def _drain(self, engine: Engine, bench: Bench) -> None:
        """Let A finish what there is, and the hosts' reapers what is left of B."""

        def not_let_go() -> str | None:
            still = [host for host in HOSTS if len(look(self._stand, host).releases) > 1]
            return f"two releases on {', '.join(still)}" if still else None

        wait_for("A to finish what it can reach", lambda: unfinished(engine, bench, QUEUE), timeout=DRAIN_SECONDS)
        wait_for("B to end everywhere", not_let_go, timeout=DRAIN_SECONDS)

    def _summary(self, ending: Ending) -> list[str]:
        report, counts, complaints = ending.report, ending.balance.counts(), ending.complaints()
        touched = [host for host, entry in report["hosts"].items() if entry["touched"]]
        untouched = [host for host in HOSTS if host not in touched]
        detect, restore = (_seconds(report["times"][name]) for name in ("detect", "restore"))
        rows = [
            ("release A", f"{ending.release}: good on {', '.join(HOSTS)}, in {ending.first.seconds:.0f} s"),
            ("release B", f"{report['release']}: {self._what}"),
            ("", f"came to {', '.join(touched)}" + (f", never to {', '.join(untouched)}" if untouched else "")),
            ("noticed", f"{detect} after the first switch:"),
            *(("", shorten(f"{host}: {report['hosts'][host]['reason']}", _WIDTH)) for host in touched),
            ("way back", f"{restore} until A ran again on {', '.join(touched)}"),
            ("", f"the deploy ended with status {ending.second.status}, as a deploy that went back has to"),
            *((f"now on {host}", self._now(ending, seen)) for host, seen in ending.hosts.items()),
            ("ledger", "{enqueued} tasks = {finished} finished + {listed} listed + {lost} lost".format(**counts)),
            ("", "{duplicated} ran twice, {announced} of them announced".format(**counts)),
            ("report", str(self._output / "report.html")),
        ]
        head = "The bad release was noticed, every host is back on the good one, no task is lost."
        head = f"NOT AS TOLD: {'; '.join(complaints)}" if complaints else head
        return [_LINE, f"{head} ({ending.seconds:.0f} s)", *(f"  {name:<11}{text}" for name, text in rows), _LINE]

    def _now(self, ending: Ending, seen: HostEvidence) -> str:
        runs = ", ".join(f"{count} workers of {release}" for release, count in sorted(seen.releases.items()))
        return f"{runs or 'nothing'}, with {'the config of A' if seen.config == ending.config else 'ANOTHER CONFIG'}"


def _seconds(value: float | None) -> str:
    return "an unknown time" if value is None else f"{value:.1f} s"


def smoke(stand: Stand, output: Path) -> int:
    """Run every play once, on the shortest way; 0 when each did what it has to."""
    one = {"pool_hosts": HOSTS[0]}
    settings: dict[str, Any] = {
        **one,
        "pool_version": "1.0",
        "pool_source": {"directory": str(stand.build("A"))},
        "pool_waves": ["100%"],
        "pool_health": HEALTH_OF_A,
    }
    deployed = play(stand, output, "smoke-deploy", "deploy", **settings)
    again = play(stand, output, "smoke-again", "deploy", **settings)
    status = play(stand, output, "smoke-status", "status", **one)
    refused = play(stand, output, "smoke-rollback", "rollback", **one)
    reported = play(stand, output, "smoke-report", "report", **one, pool_report_dir=str(output))
    complaints = {
        "the deploy failed": deployed.status != 0,
        "the second deploy changed something": again.status != 0 or set(again.changed.values()) != {0},
        "status failed": status.status != 0 or "1.0-" not in status.output,
        "a rollback to nothing was not refused": refused.status == 0 or "no good release" not in refused.output,
        "no report was written": reported.status != 0
        or not all((output / f"{POOL}-1.{e}").stat().st_size for e in EXTENSIONS),
    }
    wrong = [text for text, holds in complaints.items() if holds]
    print(
        "\n" + (f"NOT AS TOLD: {'; '.join(wrong)}" if wrong else "All playbooks did what they have to."),
        flush=True,
    )
    return 1 if wrong else 0
