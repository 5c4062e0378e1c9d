# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report of the fault suite: what was done to a pool, and what came of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

_TABLE = pytest.StashKey["Table"]()
COLUMNS = ("fault", "step", "runs", "converged", "lost", "duplicated and announced", "s until consuming")


@dataclass
class Run:
    """One fault. ``complaints`` is what did not go as promised; ``seconds`` until every host consumed again."""

    fault: str
    step: str
    lost: int = 0
    duplicated: int = 0
    announced: int = 0
    seconds: float | None = None
    complaints: list[str] = field(default_factory=list)


@dataclass
class Table:
    """All runs of this session, in order."""

    seed: int
    runs: list[Run] = field(default_factory=list)

    def rows(self) -> list[tuple[str, ...]]:
        """One row for each fault and step."""
        groups: dict[tuple[str, str], list[Run]] = {}
        for run in self.runs:
            groups.setdefault((run.fault, run.step), []).append(run)
        return [(*what, *_sums(runs)) for what, runs in sorted(groups.items())]

    def lines(self) -> list[str]:
        """The table as Markdown, which is also how it is shown."""
        rows = [COLUMNS, *self.rows()]
        widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
        padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
        shown = [f"| {' | '.join(cells)} |" for cells in padded]
        shown.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return shown

    def write(self, folder: Path) -> None:
        """Leave the report in a folder, as ``report.md`` and ``report.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        complaints = [f"- {run.fault}, {run.step}: {text}" for run in self.runs for text in run.complaints]
        text = [f"# Faults (seed {self.seed})", "", *self.lines(), "", *(complaints or ["No complaints."])]
        (folder / "report.md").write_text("\n".join(text) + "\n", encoding="utf-8")
        data = {"seed": self.seed, "runs": [asdict(run) for run in self.runs]}
        (folder / "report.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def table_of(config: pytest.Config) -> Table:
    """The table of this process of a test run."""
    return config.stash.setdefault(_TABLE, Table(config.getoption("faults_seed")))


def _sums(runs: list[Run]) -> tuple[str, ...]:
    times = [run.seconds for run in runs if run.seconds is not None]
    duplicated, announced = (sum(getattr(run, name) for run in runs) for name in ("duplicated", "announced"))
    return (
        str(len(runs)),
        str(sum(not run.complaints for run in runs)),
        str(sum(run.lost for run in runs)),
        f"{duplicated} and {announced}",
        f"{max(times):.1f}" if times else "-",
    )
