# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The time axis that all drawings of a report share, so that what stands above each other was at the same time. Pure.

Lengths along it are percentages, so that a drawing takes any width and its letters keep their size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Optional

from ansible_collections.backstep.workers.plugins.module_utils._rollout.names import utc

# Who acts when nobody waits for it any more.
LATE = frozenset(("reaper", "journal"))
# Room below a drawing for the labels of the axis, in pixels.
AXIS = 30
# Seconds between two labels of the axis: the smallest of these that leaves at most so many.
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400)
_MOST_LABELS = 5


class Scale:
    """Turns moments into percentages of the width."""

    def __init__(self, began: float, ended: float) -> None:
        """:param began: epoch seconds of the first moment that is drawn, ``ended`` of the last."""
        span = max(ended - began, 1.0)
        # In front there is room for what the lines across stand for.
        self.began = began - span * 0.05
        self.span = span * 1.06

    def at(self, epoch: float) -> str:
        """Where a moment is."""
        return f"{self.share(epoch):.3f}%"

    def width(self, began: float, ended: float) -> str:
        """How wide a time is; never so short that it can't be seen."""
        return f"{max(self.share(ended) - self.share(began), 0.2):.3f}%"

    def share(self, epoch: float) -> float:
        """Where a moment is, from 0 to 100."""
        return 100 * (epoch - self.began) / self.span

    def has(self, epoch: float) -> bool:
        """Whether a moment is drawn at all."""
        return self.began <= epoch <= self.began + self.span

    def labels(self) -> list[int]:
        """Round moments for the axis, epoch seconds."""
        fitting = [step for step in _STEPS if self.span / step <= _MOST_LABELS]
        step = fitting[0] if fitting else int(self.span / _MOST_LABELS) + 1
        first = int(self.began // step + 1) * step
        return list(range(first, int(self.began + self.span) + 1, step))


def scale_of(data: Mapping[str, Any]) -> Optional[Scale]:
    """The axis of a report, or None when no event is known.

    What drains on for hours after the rollout would leave no room for it, and is listed among the events alone.
    """
    moments = [moment_of(data, event) for event in data["events"] if event["by"] not in LATE]
    moments += (data["course"] or {}).get("at") or []
    return Scale(min(moments), max(moments)) if moments else None


def moment_of(data: Mapping[str, Any], event: Mapping[str, Any]) -> float:
    """When an event was, by the controller's clock as far as it is known how the host's differs (epoch seconds)."""
    return float(event["time"] - data["skew"].get(event["host"], 0.0))


def axis(scale: Scale, height: float) -> Iterable[str]:
    """The labels of the axis and their lines, as SVG.

    :param height: of the whole drawing, in pixels.
    """
    bottom = height - AXIS
    for number, moment in enumerate(scale.labels()):
        at, share = scale.at(moment), scale.share(moment)
        yield f'<line class="grid" x1="{at}" x2="{at}" y1="0" y2="{bottom + 4:g}"/>'
        # At the very edge it would be cut off; and a phone has room for every second one.
        anchor = "start" if share < 10 else "end" if share > 90 else "middle"
        kind = "tick odd" if number % 2 else "tick"
        yield f'<text class="{kind}" text-anchor="{anchor}" x="{at}" y="{bottom + 18:g}">{utc(moment)[11:19]}</text>'
