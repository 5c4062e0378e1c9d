# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What was seen of the queues in a rollout as SVG: depth, throughput and failures, with the events marked. Pure.

Only looks are drawn. Where nobody has looked, or nobody could count, a line ends: nothing is ever drawn as 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Optional

from . import report_content as content
from .report_marks import Mark, marks
from .report_rates import Step, rates
from .report_scale import AXIS, Scale, axis, moment_of, scale_of

_TOP, _PLOT = 58, 120
_LANES = 4
# Between looks that are further from each other, in seconds, a line is only hinted at.
_FAR_SECONDS = 5.0
# Where lines run across, of the whole height.
_SHARES = (0.0, 0.5, 1.0)
# How near to each other, in percent of the width, two marks have their numbers in different lanes: those of a phone.
_NEAR = 7.0
# As many colours, and ways to draw a line, as there are; more series than that are no picture.
COLOURS = 7

Dot = tuple[float, Optional[float]]


@dataclass(frozen=True)
class Line:
    """One line of a chart: joined dots, or steps that each hold from one moment to the next."""

    name: str
    dots: Sequence[Dot] = ()
    steps: Sequence[Step] = ()

    @property
    def highest(self) -> float:
        """The highest value that is drawn."""
        values = [value for _at, value in self.dots] + [step.value for step in self.steps]
        return max((value for value in values if value is not None), default=0.0)


@dataclass(frozen=True)
class Chart:
    """One drawing, with what it shows in words; ``svg`` is "" where there is nothing to draw."""

    title: str
    svg: str
    names: Sequence[str]
    words: Sequence[str]


def charts(data: Mapping[str, Any]) -> list[Chart]:
    """The charts of a report; none where nothing was seen of the queues."""
    scale, course = scale_of(data), data["course"]
    if scale is None or not course:
        return []
    at = course["at"]
    depth = [Line(name, dots=list(zip(at, values))) for name, values in course["waiting"].items()][:COLOURS]
    drawn = [_chart("Tasks that wait, by queue", 2.0, depth, scale, data, content.depth_words(course))]
    for what in ("finished", "failed"):
        counts: Mapping[str, Sequence[Optional[int]]] = course[what]
        found = {name: rates(_begun(data, name, at, values), values) for name, values in counts.items()}
        factor, unit = _unit(found.values())
        lines = [
            Line(name, steps=[Step(s.began, s.ended, s.value * factor) for s in steps])
            for name, steps in found.items()
            if any(value is not None for value in counts[name])
        ][:COLOURS]
        words = content.count_words(course, what)
        shown = lines if any(line.highest for line in lines) else []
        drawn.append(_chart(f"Tasks {what} per {unit}, by release", 0.0, shown, scale, data, words))
    return drawn


def _begun(
    data: Mapping[str, Any], release: str, at: Sequence[float], counts: Sequence[Optional[int]]
) -> Sequence[float]:
    """The times of the looks, for a release that came after one with the time instead at which it came.

    Before that it can have done nothing, and a mean from the look before would draw it as if it had been there.
    """
    came = [
        moment_of(data, event)
        for event in data["events"]
        if event["event"] == "switch_started" and event.get("target") == release
    ]
    first = next((place for place, count in enumerate(counts) if count is not None), len(counts))
    if not came or counts[first : first + 1] != [0] or not at[first] < min(came) < [*at, at[first]][first + 1]:
        return at
    return [*at[:first], min(came), *at[first + 1 :]]


def _unit(found: Iterable[Sequence[Step]]) -> tuple[float, str]:
    fastest = max((step.value for steps in found for step in steps), default=0.0)
    return (1.0, "second") if fastest >= 1 else (60.0, "minute")


def _chart(
    title: str, least: float, lines: Sequence[Line], scale: Scale, data: Mapping[str, Any], words: Sequence[str]
) -> Chart:
    if not lines:
        return Chart(title, "", (), words)
    top = nice(max(least, *(line.highest for line in lines)))
    height = _TOP + _PLOT + AXIS
    parts = [
        f'<svg width="100%" height="{height}" role="img" aria-label="{escape(title)}">',
        *axis(scale, height),
        *_grid(top),
        *_marked(scale, marks(data)),
    ]
    for number, line in enumerate(lines):
        parts += _line(line, number, scale, top)
    parts += _values(top)
    return Chart(title, "\n".join([*parts, "</svg>"]), [line.name for line in lines], words)


def nice(highest: float) -> float:
    """The end of an axis that has room for a value: 1, 2 or 5 times a power of ten."""
    step = 10.0**-2
    while step * 10 < highest:
        step *= 10
    return next((step * factor for factor in (1, 2, 5) if step * factor >= highest), step * 10)


def _grid(top: float) -> Iterable[str]:
    for share in _SHARES:
        y = _y(share * top, top)
        yield f'<line class="grid" x1="0" x2="100%" y1="{y:g}" y2="{y:g}"/>'


def _values(top: float) -> Iterable[str]:
    """What the lines across stand for, on top of everything."""
    for share in _SHARES:
        yield f'<text class="tick" x="2" y="{_y(share * top, top) - 3:g}">{share * top:g}</text>'


def _y(value: float, top: float) -> float:
    return round(_TOP + _PLOT * (1 - value / top), 1)


def _marked(scale: Scale, found: Sequence[Mark]) -> Iterable[str]:
    lanes = [float("-inf")] * _LANES
    for mark in found:
        share = scale.share(mark.at)
        lane = next((number for number, last in enumerate(lanes) if share - last >= _NEAR), 0)
        lanes[lane] = share
        x, y = scale.at(mark.at), 8 + 14 * lane
        yield (
            f'<g><line class="event {mark.kind}" x1="{x}" x2="{x}" y1="{y}" y2="{_TOP + _PLOT}"/>'
            f'<circle class="event {mark.kind}" cx="{x}" cy="{y}" r="7"/>'
            f'<text class="event" text-anchor="middle" x="{x}" y="{y + 4}">{mark.number}</text>'
            f"<title>{escape(mark.words)}</title></g>"
        )


def _line(line: Line, number: int, scale: Scale, top: float) -> Iterable[str]:
    """A path in a box that is stretched to the width; what may not be stretched, the dots, beside it."""
    near, far = _joined(line.dots, scale, top) if line.dots else (_stepped(line.steps, scale, top), [])
    yield (
        f'<svg x="0" y="0" width="100%" height="{_TOP + _PLOT + 2}" viewBox="0 0 1000 {_TOP + _PLOT + 2}" '
        'preserveAspectRatio="none">'
    )
    for moves, kind in ((near, "line"), (far, "line far")):
        if moves:
            yield f'<path class="{kind} s{number}" vector-effect="non-scaling-stroke" d="{" ".join(moves)}"/>'
    yield "</svg>"
    for at, value in line.dots:
        if value is not None:
            told = f"{content.moment(at)} {line.name}: {value:g}"
            yield (
                f'<circle class="dot s{number}" cx="{scale.at(at)}" cy="{_y(value, top)}" r="2.5">'
                f"<title>{escape(told)}</title></circle>"
            )


def _joined(dots: Sequence[Dot], scale: Scale, top: float) -> tuple[list[str], list[str]]:
    """The strokes between looks that stand close, and those over times in which nobody has looked for long."""
    near: list[str] = []
    far: list[str] = []
    pen: Optional[tuple[float, str]] = None
    joined = False
    for at, value in dots:
        if value is None:
            pen = None
            continue
        place = f"{scale.share(at) * 10:.1f} {_y(value, top)}"
        if pen and at - pen[0] > _FAR_SECONDS:
            far.append(f"M{pen[1]} L{place}")
            joined = False
        elif pen:
            near.append(f"L{place}" if joined else f"M{pen[1]} L{place}")
            joined = True
        else:
            joined = False
        pen = (at, place)
    return near, far


def _stepped(steps: Sequence[Step], scale: Scale, top: float) -> list[str]:
    moves: list[str] = []
    last: Optional[float] = None
    for step in steps:
        began, ended, y = scale.share(step.began) * 10, scale.share(step.ended) * 10, _y(step.value, top)
        moves.append(f"{'L' if last == step.began else 'M'}{began:.1f} {y} L{ended:.1f} {y}")
        last = step.ended
    return moves
