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
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine, Selection
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BrokerUnreachable

from tests.support.bench import Bench, bench_of
from tests.support.servers import free_port, own_certificate, redis_server, wait_for
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
    (certificate, key), port = own_certificate(folder), free_port()
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


def test_a_master_and_its_sentinel_are_reached_over_tls_alone(broker: Broker, tmp_path: Path) -> None:
    master = broker.tls.rpartition(":")[2].partition("/")[0]
    files = {"cert": broker.certificate, "key": broker.certificate.with_name("key.pem"), "ca-cert": broker.certificate}
    port, config = free_port(), tmp_path / "sentinel.conf"
    lines = [f"tls-{name}-file {path}" for name, path in files.items()]
    lines += ["port 0", f"tls-port {port}", "bind 127.0.0.1", "tls-replication yes", "tls-auth-clients no"]
    lines += [f"sentinel monitor letters 127.0.0.1 {master} 1", "sentinel auth-pass letters s3cret"]
    config.write_text("\n".join([*lines, "requirepass s3ntinel", f"dir {tmp_path}"]) + "\n", encoding="ascii")
    url = f"rediss+sentinel://:s3cret@127.0.0.1:{port}/letters/0?sentinel_password=s3ntinel&ssl_cert_reqs=required"
    sentinel = subprocess.Popen(["redis-server", str(config), "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        with open_engine("rq", f"{url}&ssl_ca_certs={broker.certificate}", 5.0) as engine:
            assert wait_for("it is found", lambda: _address(engine)) == f"127.0.0.1:{master}"
        with open_engine("rq", url, 5.0) as engine, pytest.raises(BrokerUnreachable, match="certificate") as refused:
            engine.check(write=False)
        assert "s3" not in str(refused.value.result())
    finally:
        sentinel.kill()
        sentinel.wait(10)


def _address(engine: Engine) -> str:
    """Of the server that answers; "" while none does."""
    try:
        return str(engine.check(write=True)["address"])
    except BrokerUnreachable:
        return ""
