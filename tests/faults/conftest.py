# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ground on which faults happen, which of them, and the table at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.ground import Ground, a_ground
from tests.faults.table import Table, table_of


@pytest.fixture(scope="session")
def table(pytestconfig: pytest.Config) -> Table:
    """Where each fault is entered."""
    return table_of(pytestconfig)


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
