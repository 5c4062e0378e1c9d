# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every engine of the collection is under test: every test of this folder runs once for each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import ENGINES, open_engine

from tests.support.bench import Bench, bench_of
from tests.support.brokers import Broker, Servers

BENCHES = {name: bench_of(name) for name in sorted(ENGINES)}
on_redis = pytest.mark.parametrize(
    "kind", [name for name, bench in BENCHES.items() if bench.broker == "redis"], indirect=True
)


@pytest.fixture(params=sorted(BENCHES))
def kind(request: pytest.FixtureRequest) -> type[Bench]:
    """The engine under test."""
    return BENCHES[request.param]


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """One server of each kind for all."""
    with ExitStack() as parts:
        yield Servers(parts, tmp_path_factory.mktemp)


@pytest.fixture
def ledger_url(servers: Servers) -> str:
    """Where tasks note what becomes of them, whatever the engine's broker is: database 15 of the emptied Redis."""
    url = servers.broker("redis").url
    with redis.Redis.from_url(url) as client:
        client.flushall()
    return url.rsplit("/", 1)[0] + "/15"


@pytest.fixture
def broker(kind: type[Bench], servers: Servers, ledger_url: str) -> Broker:
    """The emptied broker of the engine under test."""
    found = servers.broker(kind.broker)
    found.empty()
    return found


@pytest.fixture
def client(broker: Broker) -> Iterator[redis.Redis]:
    """A plain client, for tests of engines on Redis."""
    with redis.Redis.from_url(broker.url) as connection:
        yield connection


@pytest.fixture
def bench(kind: type[Bench], broker: Broker, ledger_url: str, tmp_path: Path) -> Iterator[Bench]:
    """Starts workers, and kills at the end what still runs."""
    found = kind(broker.url, tmp_path, ledger_url=ledger_url)
    yield found
    found.stop_all()


@pytest.fixture
def engine(bench: Bench) -> Iterator[Engine]:
    """The engine on the emptied server."""
    with open_engine(bench.engine, bench.url, 5.0) as opened:
        yield opened
