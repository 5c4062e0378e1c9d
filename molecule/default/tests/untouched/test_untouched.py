# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""After ``--check``, and before anything was ever deployed."""

from __future__ import annotations

import redis

from tests.support.pool import Pool


def test_check_mode_has_written_nothing(pool: Pool) -> None:
    for host in pool.workers:
        found = pool.view(host)
        assert (found.files, found.processes) == ({}, [])
        assert host.run("test", "-e", "/opt/backstep", check=False).returncode != 0
    with redis.Redis.from_url(pool.broker_url) as broker:
        assert broker.keys() == []


def test_a_rollback_fails_loudly_where_nothing_was_ever_good(pool: Pool) -> None:
    played = pool.play("rollback")
    assert played.status != 0
    assert "There is no good release to go back to" in played.output
    assert all(pool.view(host).files == {} for host in pool.workers)
