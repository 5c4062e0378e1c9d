# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The few events of a rollout that are marked in every chart of its report, by number. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import report_content as content
from .report_scale import moment_of

# Which event, whether the first or the last of it on all hosts, what it is called, and how it looks.
_FIRST, _LAST = min, max
_MARKED = (
    ("switched", _FIRST, "the first host is switched", "plain"),
    ("switched", _LAST, "the last host is switched", "plain"),
    ("guard_fired", _FIRST, "the guard of a host fires", "bad"),
    ("rollback_started", _FIRST, "the way back begins", "bad"),
    ("rollback_failed", _FIRST, "the way back fails on a host", "bad"),
    ("restored", _LAST, "the release gone back to runs on the last host that went back", "good"),
    ("confirmed", _LAST, "the release is confirmed on the last host", "good"),
)


def _of_one(words: str) -> str:
    for several in ("the first host", "the last host that went back", "the last host"):
        words = words.replace(several, "the host")
    return words


@dataclass(frozen=True)
class Mark:
    """A moment (epoch seconds) that is marked."""

    number: int
    at: float
    words: str
    kind: str
    """``plain``, ``good`` or ``bad``."""


def marks(data: Mapping[str, Any]) -> list[Mark]:
    """The marks in the order of their times."""
    found: list[tuple[float, str, str, str]] = []
    for name, choose, words, kind in _MARKED:
        events = [event for event in data["events"] if event["event"] == name]
        if not events:
            continue
        event = choose(events, key=lambda each: moment_of(data, each))
        alone = len({each["host"] for each in events}) == 1
        mark = (moment_of(data, event), _of_one(words) if alone else words, event["host"], kind)
        if not (found and name == "switched" and found[-1][0] == mark[0]):
            found.append(mark)
    if data["times"]["noticed"] is not None:
        found.append((data["times"]["noticed"], "the verdict is not good", "", "bad"))
    return [
        Mark(number, at, f"{content.moment(at)} {words}" + (f" ({host})" if host else ""), kind)
        for number, (at, words, host, kind) in enumerate(sorted(found), 1)
    ]
