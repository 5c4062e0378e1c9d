# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the pictures in docs/images: what a terminal shows of the demo's bad release, and the report of it.

Usage: ``python -m tests.demo.pictures``, after ``make setup``.
"""

from __future__ import annotations

import sys
import tempfile
import zlib
from html import escape
from pathlib import Path

from tools.common import CHECKOUT, COLLECTIONS, ToolError, main, say

# So that `ansible_collections.backstep.workers` is this checkout, whatever else the machine has.
sys.path.insert(0, str(COLLECTIONS))

from tests.demo.run import BAD
from tests.demo.stand import a_stand
from tests.demo.story import Story
from tests.support.chromium import Chromium

IMAGES = CHECKOUT / "docs" / "images"
_TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; padding: 16px 20px; background: #1d1f21; color: #e4e4e4; width: max-content }}
pre {{ margin: 0; font: 14px/1.35 "DejaVu Sans Mono", monospace }}
</style><pre>{text}</pre>"""


_BAD = "failing-tasks"
_LICENSE = b"Copyright\0SPDX-FileCopyrightText: Backstep contributors, SPDX-License-Identifier: GPL-3.0-or-later"
# After the signature and the header, which each PNG begins with.
_AFTER_HEADER = 8 + 25


def say_license(picture: Path) -> None:
    """Enter the license into a PNG, as a text of its own."""
    content = picture.read_bytes()
    checked = b"tEXt" + _LICENSE
    text = len(_LICENSE).to_bytes(4, "big") + checked + zlib.crc32(checked).to_bytes(4, "big")
    picture.write_bytes(content[:_AFTER_HEADER] + text + content[_AFTER_HEADER:])


def _play(output: Path) -> None:
    """Have release B fail, on a terminal that shows what people have to know."""
    with a_stand() as stand:
        stand.settings["ANSIBLE_STDOUT_CALLBACK"] = "backstep.workers.terminal"
        if Story(stand, output, _BAD, BAD[_BAD]).tell():
            raise ToolError("The demo did not go as told: no picture was taken.")


def work() -> None:
    """Take each picture anew."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="backstep-pictures-") as folder:
        output = Path(folder)
        _play(output)
        terminal = output / "terminal.html"
        said = (output / "deploy-B.log").read_text(encoding="utf-8").strip("\n")
        terminal.write_text(_TERMINAL.format(text=escape(said)), encoding="utf-8")
        profile = output / "browser"
        profile.mkdir()
        with Chromium(profile) as browser:
            report = output / "report.html"
            pages = (("terminal", terminal, 920, 0), ("report", report, 1100, 1500), ("report-phone", report, 390, 900))
            for name, page, width, height in pages:
                with browser.page(page, width=width) as opened:
                    opened.picture(IMAGES / f"{name}.png", height)
                say_license(IMAGES / f"{name}.png")
                say(f"wrote {name}.png")


if __name__ == "__main__":
    main(work)
