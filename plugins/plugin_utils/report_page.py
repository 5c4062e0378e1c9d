# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The report as one HTML file that needs nothing else: no script, no network, light and dark, on paper too. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ansible_collections.backstep.workers.plugins.module_utils._rollout.names import utc

from . import report_content as content
from .report_charts import charts
from .report_drawing import drawn_hosts, legend, timeline
from .report_marks import marks
from .report_style import STYLE

# Longer lists of events are folded up.
_OPEN_EVENTS = 200
_ACTION_ROWS = 3
_VERDICTS = ("good", "bad", "unknown")


def page(data: content.Data) -> str:
    """The whole report."""
    title = escape(content.title(data))
    sections = [
        _section("Timeline", legend(data) + timeline(data) + _how_to_read(data)),
        _section("What was seen of the queues", _charts(data)),
        _section("Hosts", _table(content.hosts(data), "stack")),
        _section("Tasks that need care", _list(content.care_words(data)) + _table(content.care(data), "stack wide")),
        _section(
            "Config that going back has changed",
            _table(content.config(data), "stack") + _list(content.config_words(data)),
        ),
        _section(f"Queues at {utc(data['written'])}", _table(content.queues(data), "numbers")),
        _section("Events", _events(data)),
        _section("Notes", _list(content.notes(data))),
        _section("For the post-mortem", _blanks()),
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{_summary(data)}
</header>
<main>
{"".join(sections)}
</main>
</body>
</html>
"""


def _summary(data: content.Data) -> str:
    kind = content.verdict(data)
    why = f'<p class="why">Why: {escape(data["reasons"])}</p>' if data["reasons"] else ""
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in content.head(data))
    tiles = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span><small>{escape(what)}</small></div>'
        for value, label, what in content.tiles(data)
    )
    return (
        f'<p><span class="badge {kind}">{kind}</span><strong>{escape(content.sentence(data))}</strong></p>'
        f'{why}<dl class="head">{facts}</dl><div class="tiles">{tiles}</div>'
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>\n" if body else ""


def _charts(data: content.Data) -> str:
    drawn = charts(data)
    if not drawn:
        return ""
    marked = "".join(f"<li>{escape(mark.words)}</li>" for mark in marks(data))
    parts = [f'<ol class="marks">{marked}</ol>' if marked else ""]
    for chart in drawn:
        names = "".join(
            f'<li><i class="line s{number}"></i>{escape(name)}</li>' for number, name in enumerate(chart.names)
        )
        words = "".join(f"<p><small>{escape(text)}</small></p>" for text in chart.words)
        legend_of = f'<ul class="legend">{names}</ul>' if names else ""
        parts.append(f"<figure><figcaption>{escape(chart.title)}</figcaption>{legend_of}{chart.svg}{words}</figure>")
    parts.append(
        '<p class="soft"><small>Dots are looks at the broker; faint lines lead over times in which nobody has looked. '
        "Rates are means from one look to the next, and counts begin at the first one. A line ends where the broker "
        "could not tell, and where workers have ended: what they did last nobody has seen.</small></p>"
    )
    return "".join(parts)


def _events(data: content.Data) -> str:
    rows = content.events(data)
    table = _table(rows, "events")
    if len(rows) <= _OPEN_EVENTS:
        return table
    return f"<details><summary>{len(rows) - 1} events of {len(data['clocks'])} hosts</summary>{table}</details>"


def _blanks() -> str:
    blanks = "".join(
        f"<h3>{escape(title)}</h3>{f'<p><small>{escape(about)}</small></p>' if about else ''}"
        f'<div class="blank" contenteditable="true" role="textbox" aria-multiline="true" aria-label="{escape(title)}">'
        "</div>"
        for title, about in content.BLANKS
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in content.ACTIONS)
    row = "".join(f'<td contenteditable="true" aria-label="{escape(name)}"></td>' for name in content.ACTIONS)
    return (
        '<p class="soft"><small>What people have to say. Click to write; keep it by saving the page or printing '
        f'it.</small></p>{blanks}<h3>Actions</h3><table class="actions"><thead><tr>{head}</tr></thead>'
        f"<tbody>{f'<tr>{row}</tr>' * _ACTION_ROWS}</tbody></table>"
    )


def _how_to_read(data: content.Data) -> str:
    if not data["events"]:
        return ""
    hidden = sum(host in data["phases"] for host in data["hosts"]) - len(drawn_hosts(data))
    more = f"{hidden} more hosts are in the table below. " if hidden else ""
    noticed = "The dashed line is the verdict. " if data["times"]["noticed"] is not None else ""
    return f'<p class="soft"><small>{more}{noticed}Ticks below the bars are events, listed further down.</small></p>'


def _table(rows: Sequence[Sequence[str]], kind: str = "") -> str:
    if len(rows) < 2:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "\n".join("<tr>" + "".join(map(_cell, rows[0], row)) + "</tr>" for row in rows[1:])
    table = f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _cell(column: str, text: str) -> str:
    colour = f' class="{text}"' if text in _VERDICTS else ""
    return f'<td data-name="{escape(column)}"{colour}>{escape(text)}</td>'


def _list(lines: Sequence[str]) -> str:
    return "" if not lines else '<ul class="notes">' + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
