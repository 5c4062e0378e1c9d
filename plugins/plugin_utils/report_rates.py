# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How fast something was counted up, from how far it had come at some moments. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

# Tasks are counted in whole numbers: over less than that, a rate says more about the moment of looking.
_SHORTEST_SECONDS = 1.0
_MOST_STEPS = 40


class Step(NamedTuple):
    """The mean from one look to another (epoch seconds), per second."""

    began: float
    ended: float
    value: float


def rates(at: Sequence[float], totals: Sequence[Optional[int]]) -> list[Step]:
    """Steps between looks, each at least a second and a fortieth of the whole long, as far as there are looks for it.

    :param at: when it was looked (epoch seconds).
    :param totals: how many by then; None where that is not known: no step leads over that.
    """
    if not at:
        return []
    shortest = max(_SHORTEST_SECONDS, (at[-1] - at[0]) / _MOST_STEPS)
    found: list[Step] = []
    began: Optional[tuple[float, int]] = None
    last: Optional[tuple[float, int]] = None
    for moment, total in zip(at, totals):
        if total is None:
            _end(found, began, last)
            began = last = None
            continue
        last = (moment, total)
        if began is None:
            began = last
        elif moment - began[0] >= shortest:
            _end(found, began, last)
            began = last
    _end(found, began, last)
    return found


def _end(found: list[Step], began: Optional[tuple[float, int]], last: Optional[tuple[float, int]]) -> None:
    if not began or not last or last[0] <= began[0]:
        return
    if found and found[-1].ended == began[0] and last[0] - began[0] < _SHORTEST_SECONDS:
        # What is left over is too short to stand by itself.
        before = found.pop()
        counted = before.value * (before.ended - before.began) + last[1] - began[1]
        found.append(Step(before.began, last[0], counted / (last[0] - before.began)))
    else:
        found.append(Step(began[0], last[0], (last[1] - began[1]) / (last[0] - began[0])))
