# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose word counts when a worker's environment has a variable twice: the pool's."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host.supervisors.base import Supervisor
from ansible_collections.backstep.workers.plugins.module_utils._host.supervisors.supervisord import Supervisord
from ansible_collections.backstep.workers.plugins.module_utils._host.supervisors.systemd import Systemd

from tests.unit.test_layout import LAYOUT, POOL, SPEC


@pytest.mark.parametrize("kind", [Systemd, Supervisord])
def test_pool_env_counts_before_the_pools_broker_url(kind: type[Supervisor]) -> None:
    """The file that is read later counts."""
    of_pool, of_broker = LAYOUT.config(SPEC.id) / "environment", LAYOUT.broker_environment(SPEC.id)
    for text in kind(POOL, LAYOUT).render(SPEC).values():
        assert 0 < _at(text, of_broker) < _at(text, of_pool)


def _at(text: bytes, path: Path) -> int:
    return text.find(str(path).encode())
