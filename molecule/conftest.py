# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pool of the scenario that runs, for the tests of its ``verify`` steps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.hosts import Host
from tests.support.pool import Pool


@pytest.fixture(scope="session")
def pool() -> Pool:
    """The pool of three worker hosts, and the host with its broker."""
    group = f"{os.environ['BACKSTEP_HOSTS']}-{os.environ['MOLECULE_SCENARIO_NAME']}"
    broker = Host(f"{group}-broker", group)
    address, engines_own = broker.address(), os.environ.get("BACKSTEP_BROKER", "")
    redis_url = f"redis://:hush-broker@{address}:6379/0"
    return Pool(
        inventory=Path(os.environ["MOLECULE_INVENTORY_FILE"]),
        workers=tuple(Host(f"{group}-w{number}", group) for number in (1, 2, 3)),
        broker=broker,
        broker_url=engines_own.format(address) or redis_url,
        engine=os.environ.get("BACKSTEP_ENGINE", "rq"),
        redis_url=redis_url,
    )
