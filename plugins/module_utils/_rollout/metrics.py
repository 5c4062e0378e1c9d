# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prometheus's text format: samples in, text out. Pure.

What isn't known is no sample: an absent sample can raise an alarm, while a 0 would say that all is well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Optional

GAUGE = "gauge"
COUNTER = "counter"


@dataclass(frozen=True)
class Metric:
    """One name: its unit is the name's end, ``help`` says what the value means."""

    name: str
    help: str
    kind: str = GAUGE


@dataclass(frozen=True)
class Sample:
    """One value of a metric; ``labels`` without those that are empty."""

    metric: Metric
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def sample(metric: Metric, value: Optional[float], **labels: Optional[str]) -> list[Sample]:
    """The sample of a value, none of a value that isn't known. A bool counts as 1 or 0; an empty label is left out."""
    if value is None:
        return []
    return [Sample(metric, float(value), {name: text for name, text in labels.items() if text})]


def render(samples: Iterable[Sample]) -> str:
    """The text of all samples, each metric's together, in the order in which the metrics appear first."""
    lines: dict[Metric, list[str]] = {}
    for each in samples:
        lines.setdefault(each.metric, []).append(_line(each))
    text = ""
    for metric, found in lines.items():
        meaning = metric.help.replace("\\", r"\\").replace("\n", r"\n")
        text += f"# HELP {metric.name} {meaning}\n# TYPE {metric.name} {metric.kind}\n"
        text += "".join(f"{line}\n" for line in dict.fromkeys(found))
    return text


def _line(each: Sample) -> str:
    labels = ",".join(f'{name}="{_escaped(text)}"' for name, text in sorted(each.labels.items()))
    value = str(int(each.value)) if each.value == int(each.value) else f"{each.value:.3f}"
    return f"{each.metric.name}{{{labels}}} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
