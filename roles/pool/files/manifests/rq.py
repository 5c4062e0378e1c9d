# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells which task names the code of an RQ app can't import, in the way in which a worker of RQ would.

Run by the interpreter of the workers, in their working directory and environment, with the arguments of their
command. ``BACKSTEP_TASKS`` has the names in question (JSON). The last line that it prints is ``{"unknown": [...]}``.
"""

from __future__ import annotations

import json
import os
import sys

sys.path[0] = os.getcwd()

from rq.utils import import_attribute  # noqa: E402  # the app's own directory has to come first


def _knows(name: str) -> bool:
    if "." not in name:
        return True  # a method: of which object, only the payload tells
    try:
        import_attribute(name)
    except (ImportError, AttributeError, ValueError):
        return False
    return True


def main() -> None:
    """Tell it."""
    words = sys.argv[1:]
    for number, word in enumerate(words):
        option, _equals, value = word.partition("=")
        if option in ("-P", "--path"):
            sys.path.insert(0, value or words[number + 1])
    unknown = [name for name in json.loads(os.environ["BACKSTEP_TASKS"]) if not _knows(name)]
    sys.stdout.write(json.dumps({"unknown": unknown}) + "\n")


if __name__ == "__main__":
    main()
