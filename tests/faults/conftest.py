# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ground on which faults happen, which of them, and the table at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.ground import Ground, a_ground
from tests.faults.table import Table
from tools.common import BUILD

_TABLE = pytest.StashKey[Table]()


@pytest.fixture(scope="session")
def table(pytestconfig: pytest.Config) -> Table:
    """Where each fault is entered."""
    return pytestconfig.stash.setdefault(_TABLE, Table(pytestconfig.getoption("faults_seed")))


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the controllers' output goes."""
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """A pool on its second good release; every test leaves it settled on a good one."""
    with a_ground(tmp_path_factory.mktemp("ground")) as made:
        yield made


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is too long for every run."""
    left_out = [] if config.getoption("faults_all") else [item for item in items if item.get_closest_marker("thorough")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave the table in build/faults, where the end of the whole run shows it."""
    table = session.config.stash.get(_TABLE, None)
    if table and table.runs:
        table.write(BUILD / "faults")
