# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every engine of the collection is under test: every test of this folder runs once for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import ENGINES, open_engine

from tests.support.bench import Bench, bench_of
from tests.support.servers import redis_server

BENCHES = {name: bench_of(name) for name in sorted(ENGINES)}


@pytest.fixture(params=sorted(BENCHES))
def kind(request: pytest.FixtureRequest) -> type[Bench]:
    """The engine under test."""
    return BENCHES[request.param]


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One Redis server for all."""
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A plain client to the emptied server."""
    with redis.Redis.from_url(redis_url) as connection:
        connection.flushall()
        yield connection


@pytest.fixture
def bench(kind: type[Bench], redis_url: str, client: redis.Redis, tmp_path: Path) -> Iterator[Bench]:
    """Starts workers, and kills at the end what still runs."""
    found = kind(redis_url, tmp_path)
    yield found
    found.stop_all()


@pytest.fixture
def engine(bench: Bench) -> Iterator[Engine]:
    """The engine on the emptied server."""
    with open_engine(bench.engine, bench.url, 5.0) as opened:
        yield opened
