# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The timeline of a report as SVG: a row for each host, phases as bars, events as marks. Pure.

Lengths along the time axis are percentages, so that the drawing takes any width and its letters keep their size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, Optional

from ansible_collections.backstep.workers.plugins.module_utils._rollout.names import utc

from . import report_content as content
from .report_times import PHASES

_ROW = 54
_LABEL = 15
_BAR_TOP = 22
_BAR = 18
_AXIS = 30
# Seconds between two labels of the axis: the smallest of these that leaves at most so many.
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400)
_MOST_LABELS = 5
# Events that end a rollout on a host, well or not, and those that alarm; the others are plain ticks.
_MARKS = {
    "confirmed": "good",
    "rolled_back": "good",
    "guard_fired": "bad",
    "quarantined": "bad",
    "torn_line": "bad",
}


class _Scale:
    """Turns moments into percentages of the width."""

    def __init__(self, began: float, ended: float) -> None:
        span = max(ended - began, 1.0)
        self.began = began - span * 0.01
        self.span = span * 1.02

    def at(self, epoch: float) -> str:
        return f"{self._share(epoch):.3f}%"

    def width(self, began: float, ended: float) -> str:
        return f"{max(self._share(ended) - self._share(began), 0.2):.3f}%"

    def _share(self, epoch: float) -> float:
        return 100 * (epoch - self.began) / self.span

    def labels(self) -> list[int]:
        """Round moments for the axis, epoch seconds."""
        fitting = [step for step in _STEPS if self.span / step <= _MOST_LABELS]
        step = fitting[0] if fitting else int(self.span / _MOST_LABELS) + 1
        first = int(self.began // step + 1) * step
        return list(range(first, int(self.began + self.span) + 1, step))


def timeline(data: Mapping[str, Any]) -> str:
    """The drawing, or "" when no event is known."""
    moments = [event["time"] for event in data["events"]]
    if not moments:
        return ""
    hosts = [host for host in data["hosts"] if host in data["phases"]]
    scale = _Scale(min(moments), max(moments))
    height = len(hosts) * _ROW + _AXIS
    parts = [
        f'<svg width="100%" height="{height}" role="img" aria-label="Timeline: phases and events of each host">',
        *_axis(scale, height),
        *_noticed(scale, data["times"]["noticed"], height - _AXIS, max(moments)),
    ]
    for number, host in enumerate(hosts):
        mine = [event for event in data["events"] if event["host"] == host]
        parts += _row(scale, number * _ROW, _said(host, data["hosts"][host]), data["phases"][host], mine)
    return "\n".join([*parts, "</svg>"])


def legend(data: Mapping[str, Any]) -> str:
    """The colours of the phases that occur."""
    seen = {phase["phase"] for found in data["phases"].values() for phase in found}
    items = [f'<li><i class="p{number}"></i>{name}</li>' for number, name in enumerate(PHASES) if name in seen]
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def _said(host: str, entry: Mapping[str, Any]) -> str:
    now = entry["now"] or ("not known" if entry["exception"] else "nothing")
    return f"{host}: {now}" if entry["touched"] else f"{host}: {now}, not touched"


def _axis(scale: _Scale, height: int) -> Iterable[str]:
    bottom = height - _AXIS
    for moment in scale.labels():
        at = scale.at(moment)
        yield f'<line class="grid" x1="{at}" x2="{at}" y1="0" y2="{bottom + 4}"/>'
        yield f'<text class="tick" x="{at}" y="{bottom + 18}">{utc(moment)[11:19]}</text>'


def _noticed(scale: _Scale, noticed: Optional[float], bottom: int, last: float) -> Iterable[str]:
    if noticed is None or not scale.began <= noticed <= last:
        return
    at = scale.at(noticed)
    said = f"{content.moment(noticed)} the verdict is not good (the controller's clock)"
    yield f'<line class="noticed" x1="{at}" x2="{at}" y1="0" y2="{bottom}"><title>{escape(said)}</title></line>'


def _row(
    scale: _Scale, top: int, said: str, phases: Iterable[Mapping[str, Any]], events: Iterable[Mapping[str, Any]]
) -> Iterable[str]:
    yield f'<text class="host" x="0.5%" y="{top + _LABEL}">{escape(said)}</text>'
    end = scale.began + scale.span
    for phase in phases:
        yield _bar(scale, top + _BAR_TOP, phase, phase["ended"] if phase["ended"] is not None else end)
    for event in events:
        at, kind = scale.at(event["time"]), _MARKS.get(event["event"], "plain")
        told = f"{content.moment(event['time'])} {content.words(event['event'])}, by {event['by']}"
        y = top + _BAR_TOP + _BAR
        shape = (
            f'<line class="mark" x1="{at}" x2="{at}" y1="{y}" y2="{y + 5}"/>'
            if kind == "plain"
            else f'<circle class="{kind}" cx="{at}" cy="{y + 4}" r="4"/>'
        )
        yield f"<g>{shape}<title>{escape(told)}</title></g>"


def _bar(scale: _Scale, top: int, phase: Mapping[str, Any], ended: float) -> str:
    number = PHASES.index(phase["phase"])
    is_open = phase["ended"] is None
    took = "not ended" if is_open else content.seconds(ended - phase["began"])
    box = f'x="{scale.at(phase["began"])}" y="{top}" width="{scale.width(phase["began"], ended)}" height="{_BAR}"'
    # An inner drawing cuts off a name that is too long for its bar; of a very short bar nothing readable would be left.
    name = (
        f'<text class="phase" x="4" y="13">{phase["phase"]}</text>' if ended - phase["began"] > scale.span / 25 else ""
    )
    return (
        f'<svg {box}><rect class="p{number}{" open" if is_open else ""}" width="100%" height="100%"/>'
        f"{name}"
        f"<title>{phase['phase']}: {took}</title></svg>"
    )
