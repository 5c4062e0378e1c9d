# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The real ansible-rulebook with a rulebook of the collection, on the demo's hosts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.demo.stand import Stand
from tests.support.servers import wait_for
from tools import eda

# Java takes its time, and each playbook too.
SECONDS = 240.0
_STOP_SECONDS = 60.0


@dataclass
class Rulebook:
    """One that runs."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        """What it and its playbooks have said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_said(self, text: str, times: int = 1) -> None:
        """Wait until it has said this so many times."""
        wait_for(f"'{text}' {times} times in {self.log}", lambda: self._has_said(text, times), SECONDS)

    def _has_said(self, text: str, times: int) -> bool:
        assert self.process.poll() is None, self.output
        return self.output.count(text) >= times

    def stop(self) -> None:
        """End it as its service would; whatever doesn't end is killed with all that it has started."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(_STOP_SECONDS)


def with_variables(stand: Stand, **variables: Any) -> None:
    """Have the inventory say this too: a rulebook gives its playbooks nothing but the alert."""
    inventory = json.loads(stand.inventory.read_text(encoding="utf-8"))
    inventory["all"]["vars"] = {**inventory["all"].get("vars", {}), **variables}
    stand.inventory.write_text(json.dumps(inventory), encoding="utf-8")


@contextmanager
def rulebook(stand: Stand, name: str, log: Path, variables: dict[str, Any]) -> Iterator[Rulebook]:
    """Run ``backstep.workers.<name>``."""
    given = log.with_suffix(".vars.json")
    given.write_text(json.dumps(variables), encoding="utf-8")
    program = eda.ensure()
    command = [str(program), "--rulebook", f"backstep.workers.{name}", "-i", str(stand.inventory)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--vars", str(given), "--verbose"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=stand.environment(),
            cwd=stand.folder,
            start_new_session=True,
        )
    running = Rulebook(process, log)
    try:
        yield running
    finally:
        running.stop()
