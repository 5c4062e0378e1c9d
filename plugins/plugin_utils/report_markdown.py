# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The report as Markdown, for tickets and chats. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ansible_collections.backstep.workers.plugins.module_utils._rollout.names import utc

from . import report_content as content
from .report_charts import charts

# What could begin markup anywhere in a line. HTML is written as entities, which Markdown leaves alone.
_SPECIAL = re.compile(r"([\\`*_\[\]|~#!])")


def escaped(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", line)


def markdown(data: content.Data) -> str:
    """The whole report."""
    lines = [f"# {escaped(content.title(data))}", "", f"**{escaped(content.sentence(data))}**", ""]
    if data["reasons"]:
        lines += [f"Why: {escaped(data['reasons'])}", ""]
    lines += [f"- {escaped(name)}: {escaped(text)}" for name, text in content.head(data)]
    lines += [f"- {value} {label} ({what})" for value, label, what in content.tiles(data)]
    for chart in charts(data):
        lines += ["", f"## {escaped(chart.title)}", "", *(f"- {escaped(text)}" for text in chart.words)]
    sections: tuple[tuple[str, content.Rows, list[str]], ...] = (
        ("Hosts", content.hosts(data), []),
        ("Tasks that need care", content.care(data), content.care_words(data)),
        ("Config that going back has changed", content.config(data), content.config_words(data)),
        (f"Queues at {utc(data['written'])}", content.queues(data), []),
        ("Events", content.events(data), []),
    )
    for title, rows, said in sections:
        if len(rows) > 1 or said:
            lines += ["", f"## {title}", ""]
            lines += [*(f"- {escaped(text)}" for text in said), ""]
            lines += _table(rows) if len(rows) > 1 else []
    lines += ["", "## Notes", "", *(f"- {escaped(note)}" for note in content.notes(data))]
    for title, about in content.BLANKS:
        lines += ["", f"## {title}", "", *([f"_{about}_", ""] if about else []), "..."]
    empty = [""] * len(content.ACTIONS)
    lines += ["", "## Actions", "", *_table([content.ACTIONS, empty, empty])]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(escaped(cell) for cell in row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]
