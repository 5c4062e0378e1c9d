# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts are switched together."""

from __future__ import annotations

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput
from ansible_collections.backstep.workers.plugins.module_utils._rollout.waves import Consumers, hold_minimum, waves
from hypothesis import given
from hypothesis import strategies as st

SIZES = st.lists(
    st.one_of(st.integers(1, 40), st.integers(1, 100).map(lambda number: f"{number}%")), min_size=1, max_size=5
)


@given(st.lists(st.text("abcw0123", min_size=1), unique=True, max_size=60), SIZES)
def test_each_host_is_in_exactly_one_wave_in_its_order(hosts: list[str], sizes: list[int | str]) -> None:
    cut = waves(hosts, sizes)
    assert [host for wave in cut for host in wave] == hosts
    assert all(cut)


@pytest.mark.parametrize(
    ("total", "sizes", "expected"),
    [
        (8, [1, "25%", "100%"], [1, 2, 5]),
        (3, [1, "25%", "100%"], [1, 1, 1]),
        (1, [1, "25%", "100%"], [1]),
        (10, [3], [3, 3, 3, 1]),
        (10, ["25%"], [3, 3, 3, 1]),
        (4, ["2", 1], [2, 1, 1]),
        (0, [1], []),
    ],
)
def test_sizes(total: int, sizes: list[int | str], expected: list[int]) -> None:
    assert [len(wave) for wave in waves([f"w{n}" for n in range(total)], sizes)] == expected


@pytest.mark.parametrize("size", [0, "0", "0%", "101%", -1, "-5%", "half", "", "1.5", "%", "²", None])
def test_a_size_that_makes_no_sense_is_refused_by_name(size: int | str) -> None:
    with pytest.raises(BadInput, match="pool_waves") as refused:
        waves(["w1", "w2"], [1, size])
    assert f"'{size}'" in refused.value.message


def test_no_sizes() -> None:
    with pytest.raises(BadInput, match="pool_waves is empty"):
        waves(["w1"], [])


# -- enough consumers ---------------------------------------------------------------------------------------------


def on(*counts: int, then: int = 2, queue: str = "mail") -> Consumers:
    """So many workers consume on each of the hosts ``w1`` and so on."""
    return Consumers(queue, {f"w{number}": count for number, count in enumerate(counts, 1)}, then)


HOSTS = ["w1", "w2", "w3", "w4"]


@pytest.mark.parametrize(
    ("least", "expected"),
    [
        (4, [2, 2]),
        ("50%", [2, 2]),
        (5, [1, 1, 1, 1]),
        (6, [1, 1, 1, 1]),
        ("75%", [1, 1, 1, 1]),
        (1, [3, 1]),
        ("1%", [3, 1]),
    ],
)
def test_waves_are_cut_where_too_few_would_be_left(least: int | str, expected: list[int]) -> None:
    cut = hold_minimum([HOSTS], least, [on(2, 2, 2, 2)])
    assert [len(wave) for wave in cut] == expected
    assert [host for wave in cut for host in wave] == HOSTS


def test_what_cannot_be_held_is_refused_with_the_numbers() -> None:
    with pytest.raises(BadInput, match="while w1 is switched, 6 workers consume queue mail, and 7 have to") as refused:
        hold_minimum([HOSTS], 7, [on(2, 2, 2, 2)])
    assert refused.value.left == "Nothing was changed."
    assert "pool_processes" in refused.value.next_step
    with pytest.raises(BadInput, match="queue mail will have 4 workers, 1 on each of 4 hosts"):
        hold_minimum([HOSTS], 5, [on(2, 2, 2, 2, then=1)])
    with pytest.raises(BadInput, match="while w1 is switched, 0 workers consume queue mail, and 1 have to"):
        hold_minimum([["w1"]], 1, [on(2)])


def test_the_scarcest_queue_decides() -> None:
    assert len(hold_minimum([HOSTS], 2, [on(4, 4, 4, 4, then=4), on(1, 1, 1, 1, then=1, queue="rare")])) == 2


def test_a_host_that_is_down_counts() -> None:
    assert len(hold_minimum([HOSTS], 4, [on(2, 2, 2, 2)])) == 2
    assert len(hold_minimum([HOSTS], 4, [on(2, 2, 2, 0)])) == 3
    with pytest.raises(BadInput, match="2 workers consume queue mail, and 4 have to"):
        hold_minimum([HOSTS], 4, [on(2, 2, 0, 0)])


def test_a_pool_that_has_fewer_is_not_brought_lower_and_a_first_deploy_needs_none() -> None:
    assert hold_minimum([HOSTS], 8, [on(0, 0, 0, 0)]) == [HOSTS]
    with pytest.raises(BadInput, match="0 workers consume queue mail, and 2 have to"):
        hold_minimum([HOSTS], 8, [on(2, 0, 0, 0)])
    assert hold_minimum([HOSTS[1:]], 8, [on(2, 0, 0, 0)]) == [HOSTS[1:]]


def test_a_pool_that_is_made_smaller_on_purpose() -> None:
    """The share is one of what the pool will have."""
    assert [len(wave) for wave in hold_minimum([HOSTS], "50%", [on(4, 4, 4, 4, then=1)])] == [3, 1]


@pytest.mark.parametrize("least", ["all", "-1", "0%", "1.5"])
def test_a_minimum_that_makes_no_sense_is_refused_by_name(least: str) -> None:
    with pytest.raises(BadInput, match=f"pool_min_consuming has '{least}'"):
        hold_minimum([HOSTS], least, [on(2, 2, 2, 2)])


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=8),
    st.integers(1, 4),
    st.one_of(st.integers(1, 20), st.integers(1, 100).map(lambda share: f"{share}%")),
    SIZES,
)
def test_in_no_wave_are_there_too_few(now: list[int], then: int, least: int | str, sizes: list[int | str]) -> None:
    consumers = on(*now, then=then)
    try:
        cut = hold_minimum(waves(list(consumers.now), sizes), least, [consumers])
    except BadInput:
        return
    whole = len(now) * then
    wanted = -(-whole * int(least[:-1]) // 100) if isinstance(least, str) else least
    needed = min(wanted, sum(now))
    consuming = dict(consumers.now)
    for wave in cut:
        assert sum(count for host, count in consuming.items() if host not in wave) >= needed
        consuming.update(dict.fromkeys(wave, then))
    assert sum(consuming.values()) >= wanted
