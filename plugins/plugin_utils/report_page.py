# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The report as one HTML file that needs nothing else: no script, no network, light and dark, on paper too. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from . import report_content as content
from .report_drawing import legend, timeline

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --paper: #fff; --card: #f4f6f9; --line: #dce1e8;
  --good: #1a7f4b; --bad: #c2362b; --unknown: #96690a; --p0: #b9c2ce; --p1: #e3b341; --p2: #6f9fe8; --p3: #57b583;
  --p4: #e2725b; --p5: #7cc3bd; --on: #11161d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa6b5; --paper: #12161c; --card: #1b2129;
  --line: #313a46; --good: #4cc38a; --bad: #ff7b6e; --unknown: #e0b040; --p0: #667282; --p1: #b98a1c; --p2: #4b7fd0;
  --p3: #2f8f5f; --p4: #cb5540; --p5: #3f8f8a; --on: #fff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.35rem; line-height: 1.25; margin: 0 0 .35rem; }
h2 { font-size: 1.05rem; margin: 2rem 0 .6rem; }
p { margin: .35rem 0; }
.badge { display: inline-block; padding: 0 .55rem; margin-right: .5rem; border-radius: 1rem; color: var(--paper);
  font-weight: 600; }
.badge.good { background: var(--good); } .badge.bad { background: var(--bad); }
.badge.unknown { background: var(--unknown); }
.why { overflow-wrap: anywhere; display: -webkit-box; -webkit-line-clamp: 3; -webkit-box-orient: vertical;
  overflow: hidden; }
dl.head { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 1rem 0 0; }
dl.head dt { color: var(--soft); } dl.head dd { margin: 0; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .7rem; margin: 1.2rem 0 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.2; } .tile span { font-weight: 600; }
.tile small { display: block; color: var(--soft); line-height: 1.35; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td { white-space: nowrap; } td:last-child { min-width: 12rem; white-space: normal; overflow-wrap: anywhere; }
table.numbers td:last-child { min-width: 0; }
td.good { color: var(--good); font-weight: 600; } td.bad { color: var(--bad); font-weight: 600; }
td.unknown { color: var(--unknown); font-weight: 600; }
.events { font-size: .87rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; padding: 0; margin: 0 0 .6rem; }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: .15rem; margin-right: .4rem; }
svg { display: block; } svg svg { overflow: hidden; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--ink); }
svg .host { font-weight: 600; } svg .tick { fill: var(--soft); text-anchor: middle; } svg .phase { fill: var(--on); }
svg .grid { stroke: var(--line); } svg .mark { stroke: var(--soft); }
svg .noticed { stroke: var(--bad); stroke-width: 2; stroke-dasharray: 4 3; }
svg .good { fill: var(--good); } svg .bad { fill: var(--bad); } .open { opacity: .45; }
.p0 { fill: var(--p0); background: var(--p0); } .p1 { fill: var(--p1); background: var(--p1); }
.p2 { fill: var(--p2); background: var(--p2); } .p3 { fill: var(--p3); background: var(--p3); }
.p4 { fill: var(--p4); background: var(--p4); } .p5 { fill: var(--p5); background: var(--p5); }
@media (max-width: 38rem) { .stack thead { display: none; } .stack tr { display: block; padding: .4rem 0;
  border-bottom: 1px solid var(--line); } .stack td { display: block; border: 0; padding: 0; white-space: normal; }
  .stack td::before { content: attr(data-name) ": "; color: var(--soft); font-weight: 400; } }
ul.notes { padding-left: 1.1rem; color: var(--soft); }
@media print { body { max-width: none; padding: 0; font-size: 11px; } .scroll { overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } tr, .tile, svg { break-inside: avoid; } }
"""

_VERDICTS = ("good", "bad", "unknown")


def page(data: content.Data) -> str:
    """The whole report."""
    title = escape(content.title(data))
    sections = [
        _section("Timeline", legend(data) + timeline(data) + _how_to_read(data)),
        _section("Hosts", _table(content.hosts(data), "stack")),
        _section("Tasks taken back from workers that are gone", _table(content.recovered(data), "stack")),
        _section("Queues after the rollout", _table(content.queues(data), "numbers")),
        _section("Events", _table(content.events(data), "events")),
        _section("Notes", _list(content.notes(data))),
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{_STYLE}</style>
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


def _how_to_read(data: content.Data) -> str:
    if not data["events"]:
        return ""
    noticed = "The dashed line is the verdict. " if data["times"]["noticed"] is not None else ""
    return f'<p class="soft"><small>{noticed}Ticks below the bars are events, listed further down.</small></p>'


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
    return '<ul class="notes">' + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
