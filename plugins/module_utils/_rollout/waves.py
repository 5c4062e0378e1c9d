# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts are switched together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Union

from .errors import BadInput


def waves(hosts: Sequence[str], sizes: Sequence[Union[int, str]]) -> list[list[str]]:
    """Cut ``hosts`` into waves; the last size is repeated until no host is left.

    :param sizes: numbers of hosts, or percentages of all hosts (``"25%"``, rounded up); each at least 1 host.
    :raises BadInput: no size, or a size that is neither a positive number nor a percentage of 1 to 100.
    """
    if not sizes:
        raise BadInput("pool_waves is empty: give at least one size.", left="Nothing was changed.")
    counts = [_count(size, len(hosts), "pool_waves") for size in sizes]
    result: list[list[str]] = []
    start = 0
    while start < len(hosts):
        count = counts[min(len(result), len(counts) - 1)]
        result.append(list(hosts[start : start + count]))
        start += count
    return result


def _count(size: Union[int, str], total: int, variable: str) -> int:
    text = str(size).strip()
    number = text[:-1] if text.endswith("%") else text
    if not number.isdecimal() or int(number) < 1 or (text.endswith("%") and int(number) > 100):
        raise BadInput(
            f"{variable} has '{size}', which is neither a positive number nor a percentage from 1% to 100%.",
            left="Nothing was changed.",
        )
    return max(1, math.ceil(total * int(number) / 100)) if text.endswith("%") else int(number)


@dataclass(frozen=True)
class Consumers:
    """The worker processes that consume one queue: ``now`` by host, and ``then``, on each host of the new release."""

    queue: str
    now: Mapping[str, int]
    then: int


def hold_minimum(
    wished: Sequence[Sequence[str]], least: Union[int, str], queues: Sequence[Consumers]
) -> list[list[str]]:
    """Cut waves so that ``least`` workers of the pool consume each queue at every moment.

    The hosts of the wave that is being switched count as away. A pool that begins with fewer is not brought any lower.

    :param least: a number of worker processes, or a percentage of those that the pool will have (``"50%"``).
    :param queues: ``now`` names every host of the pool that takes part, also those that are not in a wave.
    :raises BadInput: no cut holds it; with the numbers.
    """
    result: list[list[str]] = []
    done: set[str] = set()
    for wave in wished:
        part: list[str] = []
        for host in wave:
            if part and _too_few([*part, host], done, least, queues):
                result.append(part)
                done.update(part)
                part = []
            problem = _too_few([*part, host], done, least, queues)
            if problem:
                raise BadInput(
                    f"pool_min_consuming ({least}) can't be held: {problem}.",
                    left="Nothing was changed.",
                    next_step="Lower it, give the pool more hosts, or pool_processes per queue and host.",
                )
            part.append(host)
        result.append(part)
        done.update(part)
    return result


def _too_few(away: Sequence[str], done: set[str], least: Union[int, str], queues: Sequence[Consumers]) -> str:
    """What is wrong while these hosts are being switched, after those that are done; "" when nothing is."""
    for queue in queues:
        whole = len(queue.now) * queue.then
        wanted = _count(least, whole, "pool_min_consuming")
        if wanted > whole:
            return f"queue {queue.queue} will have {whole} workers, {queue.then} on each of {len(queue.now)} hosts"
        needed = min(wanted, sum(queue.now.values()))
        left = sum(queue.then if host in done else count for host, count in queue.now.items() if host not in away)
        if left < needed:
            return (
                f"while {', '.join(away)} is switched, {left} workers consume queue {queue.queue}, and {needed} have to"
            )
    return ""
