# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cheap tests first, so that what is plainly broken is known before the first container starts."""

from __future__ import annotations

import functools
import time
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis.configuration import set_hypothesis_home_dir
from xdist.scheduler import LoadScopeScheduling

from tests.faults.table import Run, table_of
from tools.common import BUILD, CHECKOUT

# Later in this list is later in the run; a test without any of these marks comes first.
COSTS = ("lint", "container", "sanity", "matrix", "molecule")
# With several processes these are one's alone: hosts in containers at the same time would be slower, not faster.
_CONTAINERS = ("container", "molecule")
_CONTAINER_SCOPE = "containers"
# How a run with several processes spends its time: playbooks and checks compute, brokers and workers are waited for.
_CONTAINED, _COMPUTING, _WAITING, _SHORT = range(4)
_COMPUTE = ("tests/faults/", "tests/checks/", "tests/explore/")
_FIRST = (_CONTAINED, _COMPUTING, _WAITING, _SHORT)
_BESIDE = (_WAITING, _COMPUTING, _CONTAINED, _SHORT)
_FAULTS = BUILD / "faults" / "report.md"
_TRIED = "backstep-faults"
# Of a failure, said at once; the whole of it is in the summary.
_LAST_LINES = 30
_BEGAN = time.time()

set_hypothesis_home_dir(BUILD / "hypothesis")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which faults: by default a short selection, the same each time."""
    group = parser.getgroup("faults")
    group.addoption("--faults-all", action="store_true", help="also what is marked thorough")
    group.addoption("--faults-seed", type=int, default=1, help="what the selection and the order follow from")
    group.addoption("--faults-cases", type=int, default=1, help="how many kills in each part, at most")
    group.addoption("--faults-from", type=int, default=0, help="how many kills in each part have been tried already")
    group.addoption("--faults-only", default="", metavar="TEXT", help="only kills whose description has this in it")
    group.addoption("--faults-seconds", type=float, default=75.0, help="no kill is begun after that time")


def cost(item: pytest.Item) -> int:
    """Where in the run the test belongs."""
    return max((COSTS.index(mark.name) + 1 for mark in item.iter_markers() if mark.name in COSTS), default=0)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Give each process whole files, as the tests of one may follow from each other; all that start hosts to the same.

    Of a file with tests that are marked ``apart`` each test is given by itself.

    xdist's own groups do nothing with pytest 9.2, where a test's id can't be changed any more (seen with xdist 3.8).
    """
    return _ByFile(config, log)


class _ByFile(LoadScopeScheduling):
    """One process begins with what computes, the others with what waits: side by side they are done soonest."""

    def _split_scope(self, nodeid: str) -> str:
        return _scope(nodeid)

    def _assign_work_unit(self, node: Any) -> None:
        kinds = _FIRST if node.gateway.id == "gw0" else _BESIDE
        self.workqueue.move_to_end(min(self.workqueue, key=lambda scope: kinds.index(_kind(scope))), last=False)
        super()._assign_work_unit(node)


def _scope(nodeid: str) -> str:
    """What goes to one process as a whole."""
    path = nodeid.partition("::")[0]
    text = _text(path)
    if any(f"pytest.mark.{name}" in text for name in _CONTAINERS):
        return _CONTAINER_SCOPE
    return nodeid if "pytest.mark.apart" in text else path


@functools.cache
def _text(path: str) -> str:
    return (CHECKOUT / path).read_text(encoding="utf-8")


@functools.cache
def _kind(scope: str) -> int:
    """How the tests of a scope spend their time; what is over soonest is kept for the end."""
    if scope == _CONTAINER_SCOPE:
        return _CONTAINED
    path = scope.partition("::")[0]
    if path.startswith("tests/unit/"):
        return _SHORT
    return _COMPUTING if path.startswith(_COMPUTE) or "playbook" in _text(path).lower() else _WAITING


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests in the order of their cost, keeping the order of files and tests within a cost."""
    items.sort(key=cost)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Say at once what has failed: a run that is cut off has no summary."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        config.pluginmanager.register(_AtOnce(terminal))


class _AtOnce:
    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.ensure_newline()
            self._terminal.write_line(f"{report.nodeid}: {report.when} failed after {report.duration:.0f} s")
            self._terminal.write_line("\n".join(report.longreprtext.splitlines()[-_LAST_LINES:]))


def pytest_testnodedown(node: Any) -> None:
    """Take over the faults that another process of this run has tried."""
    tried = getattr(node, "workeroutput", {}).get(_TRIED, [])
    table_of(node.config).runs.extend(Run(**run) for run in tried)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave the table of the faults in build/faults."""
    table = table_of(session.config)
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[_TRIED] = [asdict(run) for run in table.runs]
    elif table.runs:
        table.write(_FAULTS.parent)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the table of the faults that this run has tried."""
    if _FAULTS.exists() and _FAULTS.stat().st_mtime >= _BEGAN:
        terminalreporter.section("faults")
        terminalreporter.write_line(_FAULTS.read_text(encoding="utf-8"))
