# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Redis Cluster is refused before anything in it is touched, whichever engine and whatever is asked first."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine, Selection
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import ENGINES, open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BrokerRefused

from tests.support.servers import free_port, redis_server, wait_for

ASKED: dict[str, Callable[[Engine], object]] = {
    "check": lambda engine: engine.check(write=True),
    "read": lambda engine: engine.queue_states(["mail"]),
    "executing": lambda engine: engine.executing(["mail"]),
    "park": lambda engine: engine.park(["mail"], Selection(states=("waiting",)), "ana", ""),
    "recover": lambda engine: engine.recover(["mail"], ["mail/1.0-a/w1/1/1"], "waiting"),
    "canary": lambda engine: engine.send_canary("mail", engine.default_canary, 1, 60),
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster of one server, which has every slot and so would take every command."""
    # Redis would choose a port for the cluster itself by adding to its own, which may be too high already.
    options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
    with redis_server(tmp_path_factory.mktemp("cluster"), *options) as url:
        with redis.Redis.from_url(url) as client:
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            wait_for("the cluster is up", lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        yield url


@pytest.mark.parametrize("asked", sorted(ASKED))
@pytest.mark.parametrize("name", sorted(name for name, entry in ENGINES.items() if entry.package == "redis"))
def test_a_cluster_is_refused_and_left_as_it_was(cluster: str, name: str, asked: str) -> None:
    with open_engine(name, cluster, 5.0) as engine, pytest.raises(BrokerRefused, match="is a Redis Cluster") as refused:
        ASKED[asked](engine)
    assert "Sentinel" in str(refused.value.result())
    with redis.Redis.from_url(cluster) as client:
        assert client.dbsize() == 0
