# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Redis under Sentinel: the master is found, a fail-over is followed, and nobody but the master is believed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BrokerRefused, BrokerUnreachable

from tests.support.sentinels import NAME, Watch, sentinels
from tests.support.servers import wait_for

REDIS_PASSWORD, SENTINEL_PASSWORD = "hush-redis", "hush-sentinel"
SECONDS = 30.0
TIMEOUT = 3.0


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """Servers of this test's own, as it kills them."""
    with sentinels(tmp_path, REDIS_PASSWORD, SENTINEL_PASSWORD) as started:
        yield started


@pytest.fixture
def engine(watch: Watch) -> Iterator[Engine]:
    """An engine that has asked the first master already."""
    with open_engine("rq", watch.url, TIMEOUT) as opened:
        assert opened.check(write=True)["address"] == address(watch.servers[0])
        yield opened


def address(port: int) -> str:
    """As ``check`` names a server."""
    return f"127.0.0.1:{port}"


def queues(engine: Engine) -> list[str] | None:
    """The queues that the broker knows; None when it says that it can't be asked."""
    began = time.monotonic()
    try:
        return engine.known_queues()
    except BrokerUnreachable:
        return None
    finally:
        assert time.monotonic() - began < TIMEOUT + 2


def settled(engine: Engine) -> list[str]:
    """The queues, once there is a master again; until then every answer is that there is none."""
    found: list[list[str]] = []

    def asked() -> bool:
        answer = queues(engine)
        found.extend([answer] if answer is not None else [])
        return answer is not None

    wait_for("there is a master", asked, SECONDS)
    return found[0]


def test_a_killed_master_is_unknown_until_another_one_has_taken_its_place(watch: Watch, engine: Engine) -> None:
    with watch.client(watch.servers[0]) as master:
        master.sadd("rq:queues", "rq:queue:mail")
    watch.replicated()
    watch.kill(watch.servers[0])
    with pytest.raises(BrokerUnreachable) as unknown:
        engine.known_queues()
    said = str(unknown.value.result())
    assert ("nothing is concluded" in said, "hush" in said) == (True, False)
    # The first answer that there is, is that of the new master, which has everything.
    assert settled(engine) == ["mail"]
    assert engine.check(write=True)["address"] == address(watch.servers[1])


def test_a_master_that_hangs_is_left_within_the_time_out(watch: Watch, engine: Engine) -> None:
    watch.processes[watch.servers[0]].send_signal(signal.SIGSTOP)
    try:
        assert settled(engine) == []
        assert engine.check(write=False)["address"] == address(watch.servers[1])
    finally:
        watch.processes[watch.servers[0]].send_signal(signal.SIGCONT)


def test_an_old_master_that_still_answers_is_not_believed(watch: Watch, engine: Engine) -> None:
    """For some ten seconds after it has come back it takes itself for the master, and the connection to it is open."""
    old, new = watch.servers
    with watch.sentinel(watch.sentinels[0]) as sentinel:
        sentinel.execute_command("SENTINEL", "FAILOVER", NAME)
    watch.failed_over(old)
    with watch.client(old) as demoted, watch.client(new) as master:
        # Whatever Sentinel has made of it meanwhile: it says that it is a master, and has what the new one has not.
        demoted.execute_command("REPLICAOF", "NO", "ONE")
        demoted.sadd("rq:queues", "rq:queue:old")
        assert demoted.info("replication")["role"] == "master"
        assert settled(engine) == []
        assert engine.check(write=True)["address"] == address(new)
        engine.send_canary("mail", "os.getpid", 1, 60)
        assert (demoted.exists("rq:queue:mail"), master.exists("rq:queue:mail")) == (0, 1)


def test_a_sentinel_that_is_cut_off_does_not_lead_back_to_the_old_master(watch: Watch, engine: Engine) -> None:
    old, new = watch.servers
    cut_off = watch.sentinels[0]
    watch.kill(old)
    watch.failed_over(old)
    watch.kill(cut_off)
    # Nobody but that sentinel can reach the old master, and so they hear nothing of each other either.
    apart = watch.folder / "apart"
    apart.mkdir()
    island = Watch(apart, "hush-island", SENTINEL_PASSWORD, [old], [cut_off], watch.processes)
    island.start_server(old)
    island.start_sentinel(cut_off)
    wait_for("it names the old master", lambda: answers(lambda: watch.named(cut_off) == old))
    assert settled(engine) == []
    assert engine.check(write=False)["address"] == address(new)


def test_a_master_that_is_down_for_the_sentinels_is_not_asked_any_more(watch: Watch, engine: Engine) -> None:
    """It may be cut off from them, and another one be the master already."""
    watch.kill(watch.servers[1])  # so that none can be
    with watch.client(watch.servers[0]) as master:
        master.execute_command("ACL", "SETUSER", "default", "-ping")
        wait_for("it isn't asked", lambda: queues(engine) is None, SECONDS)
        with pytest.raises(BrokerUnreachable, match="which is down"):
            engine.known_queues()
        master.execute_command("ACL", "SETUSER", "default", "+ping")
    assert settled(engine) == []


def answers(ask: Callable[[], bool]) -> bool:
    """Whether a server that is being started answers, and so."""
    try:
        return ask()
    except redis.RedisError:
        return False


def test_one_living_sentinel_is_enough(watch: Watch, engine: Engine) -> None:
    for port in watch.sentinels[:2]:
        watch.kill(port)
    assert engine.check(write=False)["address"] == address(watch.servers[0])
    watch.kill(watch.sentinels[2])
    with pytest.raises(BrokerUnreachable, match="name no master of 'mymaster'"):
        engine.check(write=False)


def test_a_wrong_password_or_name_is_said_and_no_password_shown(watch: Watch) -> None:
    cases = {
        watch.url.replace(SENTINEL_PASSWORD, "hush-wrong"): (BrokerUnreachable, "invalid username-password"),
        watch.url.replace(REDIS_PASSWORD, "hush-wrong"): (BrokerRefused, "doesn't accept the user or the password"),
        watch.url.replace(f"/{NAME}/", "/yours/"): (BrokerUnreachable, "No such master"),
        f"redis://:{SENTINEL_PASSWORD}@127.0.0.1:{watch.sentinels[0]}/0": (BrokerRefused, "is a sentinel"),
    }
    for url, (kind, said) in cases.items():
        with open_engine("rq", url, TIMEOUT) as engine, pytest.raises(kind, match=said) as refused:
            engine.known_queues()
        assert "hush" not in str(refused.value.result())
