# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells the names of the actors that a Dramatiq app declares, as its worker would see them.

Run by the interpreter of the workers, in their working directory and environment, with the arguments of their
command, which Dramatiq's own parser reads. The last line that it prints is ``{"tasks": [...]}``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

sys.path[0] = os.getcwd()

from dramatiq import cli  # noqa: E402  # the app's own directory has to come first


def main() -> None:
    """Tell them."""
    given = cli.make_argument_parser().parse_args(sys.argv[1:])
    for place in reversed(given.path):
        sys.path.insert(0, place)
    _module, broker = cli.import_broker(given.broker)
    for module in given.modules:
        importlib.import_module(module)
    sys.stdout.write(json.dumps({"tasks": sorted(broker.actors)}) + "\n")


if __name__ == "__main__":
    main()
