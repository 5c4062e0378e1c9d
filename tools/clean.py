# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make clean`: removes build/, after stopping what set-up and killed tests left running."""

from __future__ import annotations

import shutil

from tools import docker
from tools.common import BUILD, main


def work() -> None:
    docker.remove_leftovers()
    docker.stop_engine()
    shutil.rmtree(BUILD, ignore_errors=True)


if __name__ == "__main__":
    main(work)
