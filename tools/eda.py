# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has ansible-rulebook, and a Java for it, in an environment of its own; only the tests of rulebooks need it."""

from __future__ import annotations

from pathlib import Path

from tools import packages, venv
from tools.common import BUILD, ToolError
from tools.pythons import newest
from tools.setup import alone

HOME = BUILD / "eda"
_GROUP = "eda"


def ensure() -> Path:
    """The program ``ansible-rulebook``, once it can be run; nothing is done if it can.

    :raises ToolError: no Python will do, or something could not be installed.
    """
    python = newest(_GROUP)
    if python is None:
        raise ToolError(f"No Python was found that requirements/ has a lock file of {_GROUP} for.")
    with alone():
        packages.install([] if packages.have("java") else ["default-jre-headless"])
        venv.ensure(HOME, python, _GROUP)
    return HOME / "bin" / "ansible-rulebook"
