# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that the documentation shows, to be held against those that are tested."""

from __future__ import annotations

import re

from tests.support.bench import SUPPORT
from tools.engine_table import DOCUMENT

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shown_and_tested(library: str, program: str) -> tuple[str, str]:
    """A worker as docs/engines.md shows it and as the tests run it, each without where its tasks come from.

    :param library: what it imports, and no other does.
    """
    blocks = _BLOCK.findall(DOCUMENT.read_text(encoding="utf-8"))
    (shown,) = [block for block in blocks if f"\nimport {library}\n" in block]
    tested = (SUPPORT / program).read_text(encoding="utf-8")
    return shown.partition("\nstopping")[2], tested.partition("\nstopping")[2]
