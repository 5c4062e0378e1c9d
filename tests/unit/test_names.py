# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The names of workers, written and read back."""

from __future__ import annotations

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout.names import (
    WorkerName,
    parse_worker_name,
    utc,
    worker_prefix,
)
from hypothesis import given
from hypothesis import strategies as st

WORD = st.text("abcXYZ019._-", min_size=1, max_size=12)


@given(WORD, WORD, WORD, st.integers(1, 999), st.integers(1, 4_194_304))
def test_a_name_is_read_back_as_it_was_written(pool: str, release: str, host: str, index: int, pid: int) -> None:
    name = WorkerName(pool, release, host, index, pid)
    assert parse_worker_name(str(name)) == name
    assert str(name) == f"{worker_prefix(pool, release, host, index)}/{pid}"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "7c1f2",
        "a/b/c/1",
        "a/b/c/1/2/3",
        "a/b/c/x/2",
        "a/b/c/1/x",
        "a/b/c/-1/2",
        "a/b/c//2",
        "a/b/c/²/2",
        "a/b/c/1/²",
    ],
)
def test_a_name_that_somebody_else_gave(name: str) -> None:
    assert parse_worker_name(name) is None


def test_a_point_in_time() -> None:
    assert utc(None) == "-"
    assert utc(86400.0 * 365) == "1971-01-01 00:00:00 UTC"
