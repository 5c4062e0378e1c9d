# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The report as Markdown, for tickets and chats. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from . import report_content as content

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
    sections = (
        ("Hosts", content.hosts(data)),
        ("Queues after the rollout", content.queues(data)),
        ("Tasks taken back from workers that are gone", content.recovered(data)),
        ("Events", content.events(data)),
    )
    for title, rows in sections:
        if len(rows) > 1:
            lines += ["", f"## {title}", "", *_table(rows)]
    lines += ["", "## Notes", "", *(f"- {escaped(note)}" for note in content.notes(data))]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(escaped(cell) for cell in row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]
