# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ids: the same for the same release, another one as soon as anything differs."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput
from ansible_collections.backstep.workers.plugins.module_utils._rollout.ids import check_pool_name, release_id
from hypothesis import given
from hypothesis import strategies as st

LEAF = st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.lists(st.text(max_size=3), max_size=3))
IDENTITY = st.dictionaries(st.text(max_size=5), LEAF, max_size=5)


@given(IDENTITY)
def test_the_order_of_what_goes_in_does_not_matter(identity: dict[str, Any]) -> None:
    turned = dict(reversed(identity.items()))
    assert release_id("1.0", identity) == release_id("1.0", turned)


@pytest.mark.parametrize(
    "changed", [{"processes": 3}, {"queues": [["mail"], ["low"]]}, {"environment": "y"}, {"new": None}]
)
def test_any_change_gives_another_id(changed: dict[str, Any]) -> None:
    identity = {"processes": 2, "queues": [["mail"]], "environment": "x"}
    assert release_id("1.0", identity) != release_id("1.0", {**identity, **changed})


def test_an_id_is_the_version_and_eight_digits_that_a_unit_name_can_hold() -> None:
    assert re.fullmatch(r"2\.4\.0_build-[0-9a-f]{8}", release_id("2.4.0+build", {}))
    assert len(release_id("v" * 64, {})) == 73


@pytest.mark.parametrize("version", ["", "a b", "-1", ".1", "../1", "1/2", "1%i", "ä", "v" * 65, "1\n", "1@2"])
def test_a_version_that_can_not_be_part_of_a_unit_name(version: str) -> None:
    with pytest.raises(BadInput, match="pool_version"):
        release_id(version, {})


@pytest.mark.parametrize("pool", ["mail", "m", "mail-2_x", "a" * 32])
def test_a_pool_name(pool: str) -> None:
    assert check_pool_name(pool) == pool


@pytest.mark.parametrize("pool", ["", "Mail", "2mail", "-mail", "mail.x", "mail/x", "a" * 33, "mail\n", "m l"])
def test_a_pool_name_that_can_not_be_used(pool: str) -> None:
    with pytest.raises(BadInput, match="pool_name") as refused:
        check_pool_name(pool)
    assert refused.value.left == "Nothing was changed."
