# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells the names of the tasks that a Celery app registers, as its worker would.

Run by the interpreter of the workers, in their working directory and environment, with the arguments of their
command, of which it reads the app and what is to be included. The last line that it prints is
``{"tasks": [...], "schedules": {...}}``; the latter are the entries of ``beat_schedule``, each with its task.
"""

from __future__ import annotations

import json
import os
import sys

sys.path[0] = os.getcwd()

from celery import current_app  # noqa: E402  # the app's own directory has to come first
from celery.app.utils import find_app  # noqa: E402  # as above


def _given(words: list[str], *names: str) -> str:
    for number, word in enumerate(words):
        option, _equals, value = word.partition("=")
        if option in names:
            return value or next(iter(words[number + 1 :]), "")
    return ""


def main() -> None:
    """Tell them."""
    words = sys.argv[1:]
    directory = _given(words, "--workdir")
    if directory:
        os.chdir(directory)
        sys.path.insert(0, directory)
    named = _given(words, "-A", "--app") or os.environ.get("APP", "")
    app = find_app(named) if named else current_app
    app.loader.import_default_modules()
    for module in filter(None, _given(words, "-I", "--include").split(",")):
        if not module.startswith("backstep_"):
            app.loader.import_task_module(module)
    app.finalize()
    entries = app.conf.beat_schedule or {}
    schedules = {str(name): str(entry["task"]) for name, entry in entries.items() if "task" in entry}
    sys.stdout.write(json.dumps({"tasks": sorted(app.tasks), "schedules": schedules}) + "\n")


if __name__ == "__main__":
    main()
