# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench``: how long a rollback takes, as ratios to floors that are measured in the same run on the same machine.

The floors are what nobody can do without: for a playbook, one that asks each host one question that does nothing; for
the host program, the start of its interpreter. Writes ``build/bench/rollback.json``: per measure ``seconds`` (of each
round), ``median``, and ``ratio`` to its floor.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.common import BUILD, COLLECTIONS, ToolError, main, run

# So that `ansible_collections.backstep.workers` is this checkout, whatever else the machine has.
sys.path.insert(0, str(COLLECTIONS))

from tests.demo.playbooks import play
from tests.demo.stand import HOSTS, Stand, a_stand

ROUNDS = 3
FOLDER = BUILD / "bench"
HEALTH = {"bake": 1, "canary_timeout": 20}
_SECONDS = 120


def _seconds(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return round(time.monotonic() - began, 3)


def _run(stand: Stand, *command: str) -> None:
    run(command, timeout=_SECONDS, env=stand.environment(), cwd=stand.folder)


def _deploy(stand: Stand, version: str, code: Path) -> None:
    source = {"directory": str(code)}
    played = play(
        stand, FOLDER, f"deploy-{version}", "deploy",
        pool_version=version, pool_source=source, pool_health=HEALTH, pool_waves=["100%"],
    )  # fmt: skip
    if played.status:
        raise ToolError(f"The deploy of {version} ended with {played.status}. See {FOLDER}")


def _floor_play(stand: Stand) -> str:
    path = stand.folder / "floor.yml"
    task = {"name": "Ask", "ansible.builtin.ping": {}}
    path.write_text(json.dumps([{"hosts": "workers", "gather_facts": False, "tasks": [task]}]), encoding="utf-8")
    return str(path)


def measure(stand: Stand) -> dict[str, list[float]]:
    """The seconds of each round, by measure."""
    code = stand.build("app")
    _deploy(stand, "1.0", code)
    floor = _floor_play(stand)
    inventory = ("-i", str(stand.inventory))
    programs = [str(stand.root(host) / "bin" / "backstep") for host in HOSTS]
    found: dict[str, list[float]] = {}
    for number in range(2, 2 + ROUNDS):
        _deploy(stand, f"{number}.0", code)
        measures: dict[str, Callable[[], Any]] = {
            "playbook floor": lambda: _run(stand, "ansible-playbook", *inventory, floor),
            "playbook rollback": lambda: _run(stand, "ansible-playbook", *inventory, "backstep.workers.rollback"),
            "playbook rollback, there already": lambda: _run(
                stand, "ansible-playbook", *inventory, "backstep.workers.rollback"
            ),
            "program floor": lambda: _run(stand, stand.python, "-I", "-c", "pass"),
            "program status": lambda: _run(stand, programs[0], "status"),
        }
        for name, work in measures.items():
            found.setdefault(name, []).append(_seconds(work))
    return found


def work() -> int:
    """Measure, show, and write it down."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with a_stand() as stand:
        found = measure(stand)
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    result = {
        name: {
            "seconds": seconds,
            "median": medians[name],
            "ratio": round(medians[name] / medians[f"{name.split()[0]} floor"], 2),
        }
        for name, seconds in found.items()
    }
    (FOLDER / "rollback.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\n{len(HOSTS)} hosts, {ROUNDS} rounds")
    for name, entry in result.items():
        print(f"  {name:<34} {entry['median']:>7.2f} s   {entry['ratio']:>6.2f} x its floor")
    return 0


if __name__ == "__main__":
    main(work)
