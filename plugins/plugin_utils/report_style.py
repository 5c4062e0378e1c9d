# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How a report looks: in light and dark, on a phone, and printed."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --paper: #fff; --card: #f4f6f9; --line: #dce1e8;
  --good: #1a7f4b; --bad: #c2362b; --unknown: #96690a; --p0: #b9c2ce; --p1: #e3b341; --p2: #6f9fe8; --p3: #57b583;
  --p4: #e2725b; --p5: #7cc3bd; --on: #11161d; --s0: #1f6feb; --s1: #c2362b; --s2: #1a7f4b; --s3: #96690a;
  --s4: #8250df; --s5: #0b7a8a; --s6: #5b6675; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --soft: #9aa6b5; --paper: #12161c; --card: #1b2129;
  --line: #313a46; --good: #4cc38a; --bad: #ff7b6e; --unknown: #e0b040; --p0: #8d99a9; --p1: #d0a02c; --s0: #6cb0ff;
  --s1: #ff8a7d; --s2: #4cc38a; --s3: #e0b040; --s4: #c297ff; --s5: #56c8d8; --s6: #9aa6b5; } }
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
svg .host { font-weight: 600; } svg .tick { fill: var(--soft); } svg .phase { fill: var(--on); }
svg .tick, svg .host { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
svg .grid { stroke: var(--line); } svg .mark { stroke: var(--soft); }
svg .noticed { stroke: var(--bad); stroke-width: 2; stroke-dasharray: 4 3; }
svg .good { fill: var(--good); } svg .bad { fill: var(--bad); } .open { opacity: .45; }
.p0 { fill: var(--p0); background: var(--p0); } .p1 { fill: var(--p1); background: var(--p1); }
.p2 { fill: var(--p2); background: var(--p2); } .p3 { fill: var(--p3); background: var(--p3); }
.p4 { fill: var(--p4); background: var(--p4); } .p5 { fill: var(--p5); background: var(--p5); }
@media (max-width: 38rem) { svg .odd { display: none; } .stack thead { display: none; }
  .stack tr { display: block; padding: .4rem 0; border-bottom: 1px solid var(--line); }
  .stack td { display: block; border: 0; padding: 0; white-space: normal; }
  .stack td::before { content: attr(data-name) ": "; color: var(--soft); font-weight: 400; } }
figure { margin: 1.4rem 0 0; } figcaption { font-weight: 600; margin-bottom: .2rem; }
ol.marks { margin: 0; padding-left: 1.4rem; font-variant-numeric: tabular-nums; }
path.far { opacity: .4; } path.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.legend i.line { height: 0; width: 1.6rem; border-radius: 0; border-width: 3px 0 0; border-top-style: solid;
  background: none; vertical-align: middle; }
.s0 { stroke: var(--s0); border-color: var(--s0); } .s1 { stroke: var(--s1); border-color: var(--s1); }
.s2 { stroke: var(--s2); border-color: var(--s2); } .s3 { stroke: var(--s3); border-color: var(--s3); }
.s4 { stroke: var(--s4); border-color: var(--s4); } .s5 { stroke: var(--s5); border-color: var(--s5); }
.s6 { stroke: var(--s6); border-color: var(--s6); }
path.s1, path.s3, path.s5 { stroke-dasharray: 7 3; } .legend i.s1, .legend i.s3, .legend i.s5 {
  border-top-style: dashed; }
path.s2, path.s6 { stroke-dasharray: 2 3; } .legend i.s2, .legend i.s6 { border-top-style: dotted; }
.dot { fill: var(--paper); stroke-width: 1.5; }
line.event { stroke: var(--soft); stroke-dasharray: 2 3; } line.event.bad { stroke: var(--bad); }
line.event.good { stroke: var(--good); }
svg circle.event { fill: var(--soft); } svg circle.event.bad { fill: var(--bad); }
svg circle.event.good { fill: var(--good); } svg text.event { fill: var(--paper); font-weight: 600; font-size: 11px; }
h3 { font-size: .95rem; margin: 1.1rem 0 .2rem; }
.blank { min-height: 4.5rem; border: 1px solid var(--line); border-radius: .4rem; padding: .4rem .6rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
table.actions { table-layout: fixed; } table.actions td { border: 1px solid var(--line); height: 2.2rem; min-width: 0;
  padding: .3rem .5rem; white-space: normal; overflow-wrap: anywhere; }
table.actions th:nth-child(n+2) { width: 22%; }
details summary { cursor: pointer; }
ul.notes { padding-left: 1.1rem; color: var(--soft); }
@media print { :root { color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 11px; } .scroll { overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } tr, .tile, figure, .blank { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .why { -webkit-line-clamp: none; display: block; } .blank { min-height: 7rem; }
  details > summary::after { content: " (in the file; unfold it before you print)"; } }
"""
