# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's app with BullMQ: turns into its worker program, which is consumer.cjs."""

from __future__ import annotations

import os
from pathlib import Path

_PROGRAM = Path(__file__).resolve().with_suffix(".cjs")


def work(name: str, queues: list[str], takes_tasks: bool) -> None:
    """Work until told to stop."""
    told = {"BACKSTEP_WORKER": name, "BACKSTEP_QUEUES": ",".join(queues), "LETTERS_DEAF": "" if takes_tasks else "1"}
    os.execvpe("node", ["node", str(_PROGRAM)], {**os.environ, **told})
