# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Redis Cluster: BullMQ on one, through a fail-over; refused for others before anything in it is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine, Selection
from ansible_collections.backstep.workers.plugins.module_utils._queue.gating import set_gates
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import ENGINES, open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import (
    BadInput,
    BrokerRefused,
    BrokerUnreachable,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.gates import Gate
from ansible_collections.backstep.workers.plugins.module_utils._waiting.deadline import Deadline

from tests.support.bench import TASK
from tests.support.bullmq_bench import Workers
from tests.support.clusters import Nodes
from tests.support.clusters import cluster as a_cluster
from tests.support.ledger import balance
from tests.support.servers import free_port, redis_server, wait_for

QUEUES = ["mail"]
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
    assert "Sentinel" in refused.value.next_step
    with redis.Redis.from_url(cluster) as client:
        assert client.dbsize() == 0


class OnCluster(Workers):
    """BullMQ with its prefix as a hash tag."""

    def is_up(self, name: str, log: str) -> bool:
        with open_engine("bullmq", self.url, 5.0) as engine:
            return "ready" in log and name in [worker.name for worker in engine.workers()]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """A cluster of six servers."""
    with a_cluster(tmp_path) as running:
        yield running


@pytest.fixture
def bench(nodes: Nodes, redis_url: str, client: redis.Redis, tmp_path: Path) -> Iterator[OnCluster]:
    """Starts workers, and kills at the end what still runs. The ledger is on a Redis of its own."""
    found = OnCluster(nodes.url, tmp_path, ledger_url=redis_url.rsplit("/", 1)[0] + "/15")
    yield found
    found.stop_all()


def test_bullmq_on_a_cluster_is_counted_proven_moved_and_recovered(bench: OnCluster) -> None:
    with open_engine("bullmq", bench.url, 5.0) as engine:
        assert engine.check(write=True)["role"] == "master"
        name = bench.start("mail/1.0-a/w1/1", QUEUES)
        executing = bench.enqueue("mail", 1, 60)
        wait_for("it executes", lambda: [task.id for task in engine.executing(QUEUES)] == [executing])
        ids = [bench.enqueue("mail", number, 0) for number in range(2, 6)]
        (state,) = engine.queue_states(QUEUES)
        assert (state.waiting, state.executing, state.workers) == (4, 1, 1)
        assert engine.known_queues() == QUEUES
        assert engine.park(QUEUES, Selection(states=("waiting",)), "ana", "").count == 4
        assert engine.task_ids("mail", "parked", 10).ids == tuple(ids)
        gate = Gate(TASK, 0.0, "ana", 0.0)
        set_gates(engine, QUEUES, {TASK: gate}, Deadline(30).wait_until)
        careful = bench.start("mail/1.0-a/w1/2", QUEUES)
        held = bench.enqueue("mail", 6, 0)
        wait_for("it is parked", lambda: engine.task_ids("mail", "parked", 10).ids == (*ids, held))
        bench.kill(careful)
        assert set_gates(engine, QUEUES, {TASK: None}, Deadline(30).wait_until).moved.ids == (held,)
        bench.kill(name)
        assert [task.id for task in engine.recover(QUEUES, [name], "waiting")] == [executing]
        assert engine.replay(QUEUES, Selection(states=("parked",))).count == 4
        assert balance(engine, bench.ledger_url, QUEUES).balanced
        engine.withdraw("mail", engine.send_canary("mail", engine.default_canary, 1, 60))
        (state,) = engine.queue_states(QUEUES)
        assert (state.waiting, state.executing, state.parked) == (6, 0, 0)


def test_bullmq_goes_on_when_a_node_of_the_cluster_dies(bench: OnCluster, nodes: Nodes) -> None:
    with open_engine("bullmq", bench.url, 2.0) as engine:
        for number in range(20):
            bench.enqueue("mail", number, 0)
        assert engine.park(QUEUES, Selection(states=("waiting",), limit=5), "ana", "").count == 5
        wait_for("the replicas are in step", lambda: len(nodes.view()) == 6)
        nodes.kill(nodes.owner("{bull}:mail:wait"))

        def seen() -> bool:
            """What is told meanwhile is an error, and nothing else."""
            try:
                (state,) = engine.queue_states(QUEUES)
            except BrokerUnreachable:
                try:
                    return engine.task_ids("mail", "parked", 10).ids != ()
                except BrokerUnreachable:
                    return False
            return state.parked == 5

        wait_for("another node has the slot", seen, 60)
        # Workers may not have found it yet: who there is can't be told for half a minute.
        with pytest.raises(BrokerUnreachable, match="new master"):
            engine.workers()
        assert engine.replay(QUEUES, Selection(states=("parked",))).count == 5
        assert len(engine.task_ids("mail", "waiting", 100).ids) == 20
        assert engine.check(write=True)["role"] == "master"


def test_another_prefix_is_kept_to_on_one_redis_too(redis_url: str, client: redis.Redis) -> None:
    with open_engine("bullmq", f"{redis_url}?prefix=mine", 5.0) as engine:
        engine.check(write=True)
        canaries = engine.send_canary("mail", engine.default_canary, 1, 60)
        assert engine.canaries(canaries)[0].state == "waiting"
        keys = client.keys("*")
        assert keys
        assert all(key.startswith(b"mine:mail:") for key in keys)
        client.rpush("mine:mail:wait", "7")
        client.hset("mine:mail:7", "name", "send")
        assert engine.park(QUEUES, Selection(states=("waiting",)), "ana", "").ids == ("7",)
        assert client.zrange("backstep:bullmq:mine:parked:mail", 0, -1) == [b"7"]


@pytest.mark.parametrize("prefix", ["", "?prefix=bull", "?prefix='..x", "?prefix={}"])
def test_a_prefix_that_does_not_keep_keys_together_is_refused(prefix: str) -> None:
    with pytest.raises(BadInput, match="prefix") as refused:
        open_engine("bullmq", f"redis+cluster://:s3cret@h1:6379,h2/{prefix}", 1.0)
    assert "{bull}" in refused.value.next_step
    assert "s3cret" not in str(refused.value.result())
