# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's app with Sidekiq: turns into Sidekiq, which loads consumer.rb."""

from __future__ import annotations

import os
from pathlib import Path

_APP = Path(__file__).resolve().with_suffix(".rb")


def work(name: str, queues: list[str], takes_tasks: bool) -> None:
    """Work until told to stop."""
    words = ["--concurrency=1", "--timeout=60", f"--require={_APP}", *(f"--queue={queue}" for queue in queues)]
    os.execvpe("sidekiq", ["sidekiq", *words], {**os.environ, "LETTERS_DEAF": "" if takes_tasks else "1"})
