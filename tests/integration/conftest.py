# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One Redis server for all, emptied before each test; one local host for each file, with a new pool for each test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine

from tests.integration.local_pool import LocalPool
from tests.support.brokers import RabbitBroker
from tests.support.local_hosts import LocalHost, local_hosts
from tests.support.rq_bench import Workers
from tests.support.servers import RabbitPorts, rabbit_ports, rabbitmq_server, redis_server

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def at() -> Iterator[LocalHost]:
    """One host under supervisord, for all tests of a file."""
    with local_hosts(1) as (host,):
        yield host


@pytest.fixture
def pool(at: LocalHost) -> LocalPool:
    """A new pool on that host."""
    return LocalPool(at, f"letters{next(_numbers)}")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server of this test run's own."""
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A plain client to the emptied server."""
    with redis.Redis.from_url(redis_url) as connection:
        connection.flushall()
        yield connection


@pytest.fixture
def engine(redis_url: str, client: redis.Redis) -> Iterator[Engine]:
    """The RQ engine on the emptied server."""
    with open_engine("rq", redis_url, 5.0) as opened:
        yield opened


@pytest.fixture
def workers(redis_url: str, client: redis.Redis, tmp_path: Path) -> Iterator[Workers]:
    """Starts RQ workers, and kills at the end what still runs."""
    bench = Workers(redis_url, tmp_path)
    yield bench
    bench.stop_all()


@pytest.fixture(scope="module")
def ports() -> RabbitPorts:
    """Where the file's RabbitMQ node listens."""
    return rabbit_ports()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The node's folder."""
    return tmp_path_factory.mktemp("rabbitmq")


@pytest.fixture(scope="module")
def server(home: Path, ports: RabbitPorts) -> Iterator[RabbitBroker]:
    """One RabbitMQ node for all tests of a file."""
    with rabbitmq_server(home, ports=ports) as url:
        yield RabbitBroker(url)


@pytest.fixture
def node(server: RabbitBroker) -> RabbitBroker:
    """The emptied node."""
    server.empty()
    return server
