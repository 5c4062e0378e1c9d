# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The timeline of a report as SVG: a row for each host, phases as bars, events as marks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, Optional

from . import report_content as content
from .report_scale import AXIS, Scale, axis, moment_of, scale_of
from .report_times import PHASES

_ROW = 54
_LABEL = 15
_BAR_TOP = 22
_BAR = 18
# With more hosts the rows are lower; of still more, the ones that a person has to look at come first.
_ROOMY_HOSTS = 12
_DRAWN_HOSTS = 40
_LOW_ROW, _LOW_BAR = 26, 8
# Events that end a rollout on a host, well or not, and those that alarm; the others are plain ticks.
_MARKS = {
    "confirmed": "good",
    "rolled_back": "good",
    "guard_fired": "bad",
    "quarantined": "bad",
    "torn_line": "bad",
}


def timeline(data: Mapping[str, Any]) -> str:
    """The drawing, or "" when no event is known."""
    scale = scale_of(data)
    if scale is None:
        return ""
    hosts = drawn_hosts(data)
    low = len(hosts) > _ROOMY_HOSTS
    row = _LOW_ROW if low else _ROW
    height = len(hosts) * row + AXIS
    by_host: dict[str, list[Mapping[str, Any]]] = {host: [] for host in hosts}
    for event in data["events"]:
        at = moment_of(data, event)
        if scale.has(at):
            by_host.get(event["host"], []).append({**event, "drawn": at})
    parts = [
        f'<svg width="100%" height="{height}" role="img" aria-label="Timeline: phases and events of each host">',
        *axis(scale, height),
        *_noticed(scale, data["times"]["noticed"], height - AXIS),
    ]
    for number, host in enumerate(hosts):
        said, off = _said(host, data["hosts"][host]), data["skew"].get(host, 0.0)
        if off:
            said += f" (drawn {abs(off):.0f} s {'earlier' if off > 0 else 'later'}, as its clock is off)"
        parts += _row(scale, number * row, said, _shifted(data["phases"][host], off), by_host[host], low)
    return "\n".join([*parts, "</svg>"])


def _shifted(phases: Iterable[Mapping[str, Any]], off: float) -> list[dict[str, Any]]:
    return [
        {**phase, "began": phase["began"] - off, "ended": None if phase["ended"] is None else phase["ended"] - off}
        for phase in phases
    ]


def drawn_hosts(data: Mapping[str, Any]) -> list[str]:
    """The hosts that have a row: all, or of very many those first that are an exception, not good, or touched."""
    hosts = [host for host in data["hosts"] if host in data["phases"]]
    if len(hosts) <= _DRAWN_HOSTS:
        return hosts
    entries = data["hosts"]
    chosen = sorted(
        hosts,
        key=lambda host: (
            not entries[host]["exception"],
            entries[host]["verdict"] == "good",
            not entries[host]["touched"],
        ),
    )[:_DRAWN_HOSTS]
    return [host for host in hosts if host in chosen]


def legend(data: Mapping[str, Any]) -> str:
    """The colours of the phases that occur."""
    seen = {phase["phase"] for found in data["phases"].values() for phase in found}
    items = [f'<li><i class="p{number}"></i>{name}</li>' for number, name in enumerate(PHASES) if name in seen]
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def _said(host: str, entry: Mapping[str, Any]) -> str:
    now = entry["now"] or ("not known" if entry["exception"] else "nothing")
    return f"{host}: {now}" if entry["touched"] else f"{host}: {now}, not touched"


def _noticed(scale: Scale, noticed: Optional[float], bottom: int) -> Iterable[str]:
    if noticed is None or not scale.has(noticed):
        return
    at = scale.at(noticed)
    said = f"{content.moment(noticed)} the verdict is not good (the controller's clock)"
    yield f'<line class="noticed" x1="{at}" x2="{at}" y1="0" y2="{bottom}"><title>{escape(said)}</title></line>'


def _row(
    scale: Scale,
    top: int,
    said: str,
    phases: Iterable[Mapping[str, Any]],
    events: Iterable[Mapping[str, Any]],
    low: bool,
) -> Iterable[str]:
    bar_top, thick = (_LABEL, _LOW_BAR) if low else (_BAR_TOP, _BAR)
    # The letters have a rim of the paper's colour, as lines run through them.
    yield f'<text class="host" x="0.5%" y="{top + (_LABEL - 4 if low else _LABEL)}">{escape(said)}</text>'
    end = scale.began + scale.span
    for phase in phases:
        yield _bar(scale, top + bar_top, phase, phase["ended"] if phase["ended"] is not None else end, thick)
    for event in events:
        at, kind = scale.at(event["drawn"]), _MARKS.get(event["event"], "plain")
        told = f"{content.moment(event['time'])} {content.words(event['event'])}, by {event['by']}"
        y = top + bar_top + (thick - _LOW_BAR if low else thick)
        if kind == "plain" and low:
            continue
        shape = (
            f'<line class="mark" x1="{at}" x2="{at}" y1="{y}" y2="{y + 5}"/>'
            if kind == "plain"
            else f'<circle class="{kind}" cx="{at}" cy="{y + 4}" r="4"/>'
        )
        yield f"<g>{shape}<title>{escape(told)}</title></g>"


def _bar(scale: Scale, top: int, phase: Mapping[str, Any], ended: float, height: int) -> str:
    number = PHASES.index(phase["phase"])
    is_open = phase["ended"] is None
    took = "not ended" if is_open else content.seconds(ended - phase["began"])
    box = f'x="{scale.at(phase["began"])}" y="{top}" width="{scale.width(phase["began"], ended)}" height="{height}"'
    # An inner drawing cuts off a name that is too long for its bar; of a very short bar nothing readable would be left.
    named = height == _BAR and ended - phase["began"] > scale.span / 25
    name = f'<text class="phase" x="4" y="13">{phase["phase"]}</text>' if named else ""
    return (
        f'<svg {box}><rect class="p{number}{" open" if is_open else ""}" width="100%" height="100%"/>'
        f"{name}"
        f"<title>{phase['phase']}: {took}</title></svg>"
    )
