# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk that is full at the wrong moment: nothing is done that could not be written down, and what runs goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host.clock import moment
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BackstepError, HostUnfit

from tests.integration.local_pool import LocalPool
from tests.support.local_hosts import LocalHost
from tests.support.servers import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount the small disk that these tests fill")


@pytest.fixture
def pool(at: LocalHost, pool: LocalPool) -> Iterator[LocalPool]:
    """A pool on a disk of its own, of 4 MiB."""
    pool.root.mkdir(mode=0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "backstep", str(pool.root)], check=True)
    try:
        yield pool
    finally:
        at.power_cut()
        subprocess.run(["umount", str(pool.root)], check=True)
        for left in at.conf_dir.glob("*.conf"):
            left.unlink()
        at.boot()


@contextmanager
def full(pool: LocalPool) -> Iterator[None]:
    """Not one byte is left on the disk, for as long as the block runs."""
    filler = pool.root / "state" / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                continue
    try:
        yield
    finally:
        filler.unlink()


def releases(pool: LocalPool) -> list[str]:
    return sorted(path.name for path in (pool.root / "releases").iterdir())


def test_while_a_release_is_staged(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.lease()
    (pool.code / "large.bin").write_bytes(os.urandom(6 * 2**20))
    with pytest.raises(BackstepError, match="space"):
        pool.stage("2.0")
    (pool.code / "large.bin").unlink()
    assert releases(pool) == [first]
    assert pool.running() == {first: 1}
    second = pool.stage("2.0")
    pool.switch(second)
    pool.confirm(second)
    pool.wait_only(second)


def test_when_a_step_is_taken(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    pool.lease()
    second = pool.stage("2.0")
    with full(pool):
        with pytest.raises(HostUnfit, match="space") as refused:
            pool.switch(second)
        assert "what runs goes on" in refused.value.left.lower()
        assert pool.running() == {first: 1}
    pool.switch(second)
    pool.confirm(second)
    pool.wait_only(second)


def test_when_the_guard_has_to_act(pool: LocalPool) -> None:
    """It tries again until it can, and nothing that consumes is stopped before."""
    first = pool.deploy("1.0")
    pool.lease()
    second = pool.stage("2.0")
    pool.switch(second, confirm_seconds=3.0)
    log = pool.root / "log" / "guard.log"
    log.write_bytes(b"." * 4096)  # so that the log has no room either in its last block
    with full(pool):
        wait_for("its time is up", lambda: _overdue(pool), 20.0)
        assert second in pool.running()
    pool.wait_only(first, 30.0)
    wait_for("it is over", lambda: pool.open().state().state_of(second) == "staged")


def _overdue(pool: LocalPool) -> bool:
    rollout = pool.open().state().rollout
    return rollout is not None and rollout.deadline is not None and moment().up > rollout.deadline + 3.0
