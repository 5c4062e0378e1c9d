# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""With the rights that the documentation lists, and no others, everything can be done, and nothing worse."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import LISTED_STATES, Selection
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine, rights

from tests.conformance.conftest import on_redis
from tests.conformance.test_stopping import wait_taken_ahead
from tests.support.bench import Bench
from tests.support.brokers import Broker
from tests.support.servers import wait_for
from tests.support.trials import PREFIX, trial


@pytest.fixture
def narrow_url(bench: Bench, broker: Broker) -> Iterator[str]:
    """The broker's URL for a user that has what the documentation says."""
    with broker.as_user(rights(bench.engine)) as url:
        yield url


def test_the_rights_that_the_documentation_lists_are_enough(
    bench: Bench, narrow_url: str
) -> None:
    with open_engine(bench.engine, narrow_url, 5.0) as engine:
        engine.check(write=True)
        killed = bench.start(f"{PREFIX}/1", ["mail"])
        held = bench.enqueue("mail", 1, 60)
        wait_for("it executes", lambda: [task.id for task in engine.executing(["mail"])] == [held])
        waiting = bench.enqueue("mail", 2, 0)
        for state in LISTED_STATES:
            engine.task_ids("mail", state, 10)
        assert engine.queue_states(["mail"])[0].queue == "mail"
        assert "mail" in engine.known_queues()
        wait_taken_ahead(engine, bench)
        bench.kill(killed)
        bench.start(f"{PREFIX}/3", ["other"])
        engine.recover(["mail"], [killed], "waiting")
        engine.park(["mail"], Selection(states=("waiting",)), "ana", "")
        assert waiting in engine.task_ids("mail", "parked", 10).ids
        engine.replay(["mail"], Selection(states=("parked",), ids=(waiting,)))
        name = bench.start(f"{PREFIX}/2", ["mail"])
        wait_for("it is done", lambda: bench.executions(2) == (1, 1))
        assert trial(engine, name)[1] == "good"
        if engine.capabilities.pause_scope != "none":
            engine.pause(["mail"], "ana", 30, "broker")
            engine.resume("ana")


@on_redis
def test_those_rights_neither_empty_nor_reconfigure_the_broker(bench: Bench, narrow_url: str) -> None:
    with redis.Redis.from_url(narrow_url) as user:
        for command in ("FLUSHDB", "CONFIG SET maxmemory 1", "SHUTDOWN", "ACL LIST", "KEYS *"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                user.execute_command(*command.split())
