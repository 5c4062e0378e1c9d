# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A broker over TLS: workers and Backstep reach it by the same URL, and no one whose certificate they don't know."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Selection
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BrokerUnreachable

from tests.support.bench import Bench, bench_of
from tests.support.servers import free_port, redis_server, wait_for
from tests.support.trials import PREFIX, trial

# Those whose workers take everything from the URL. The others are told of TLS by their app.
ENGINES = ("celery", "dramatiq", "rq", "streams")


class Broker(NamedTuple):
    """One server, reached with and without TLS."""

    plain: str
    tls: str
    """Without saying whose certificate is good."""
    certificate: Path


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A server with a certificate of its own making."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate, port = folder / "key.pem", folder / "certificate.pem", free_port()
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    made = ["-newkey", "rsa:2048", "-noenc", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", *made, *subject], check=True, capture_output=True, timeout=60)
    options = ["--tls-port", str(port), "--tls-auth-clients", "no", "--requirepass", "s3cret"]
    files = ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    with redis_server(folder, *options, *files, password="s3cret") as url:  # of this test's own server
        yield Broker(url, f"rediss://:s3cret@127.0.0.1:{port}/0?ssl_cert_reqs=required", certificate)


@pytest.fixture(params=ENGINES)
def bench(request: pytest.FixtureRequest, broker: Broker, tmp_path: Path) -> Iterator[Bench]:
    """Starts workers that reach the broker by TLS; the ledger is kept without."""
    with redis.Redis.from_url(broker.plain) as client:
        client.flushall()
    found = bench_of(request.param)(f"{broker.tls}&ssl_ca_certs={broker.certificate}", tmp_path)
    found.ledger_url = broker.plain.rsplit("/", 1)[0] + "/15"
    yield found
    found.stop_all()


def test_workers_are_proven_and_tasks_moved_over_tls(bench: Bench) -> None:
    with open_engine(bench.engine, bench.url, 5.0) as engine:
        engine.check(write=True)
        task = bench.enqueue("mail", 1, 0)
        assert engine.park(["mail"], Selection(states=("waiting",)), "ana", "").ids == (task,)
        engine.replay(["mail"], Selection(states=("parked",)))
        name = bench.start(f"{PREFIX}/1", ["mail"])
        wait_for("it is done", lambda: bench.executions(1) == (1, 1))
        assert trial(engine, name)[1] == "good"


def test_a_server_that_nobody_vouches_for_is_refused(bench: Bench, broker: Broker) -> None:
    with open_engine(bench.engine, broker.tls, 5.0) as engine, pytest.raises(BrokerUnreachable) as refused:
        engine.check(write=False)
    assert "certificate" in str(refused.value)
    assert "s3cret" not in str(refused.value.result())
