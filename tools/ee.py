# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has ansible-builder and ansible-runner in an environment of their own, and the base of the execution environment.

The base is the image of the test hosts, with all wheels that ansible-builder's scripts install: no registry is asked.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tools import docker, packages, venv
from tools.common import BUILD, ToolError, run, say
from tools.pythons import Python, find
from tools.setup import alone

HOME = BUILD / "ee"
_GROUP = "ee"
_IMAGES_PYTHON = (3, 11)
_WHEELS = BUILD / "ee-wheels"
_SECONDS = 300
_RECIPE = """\
FROM {image}
COPY wheels /wheels
ENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels
"""


def ensure() -> Path:
    """The folder of ``ansible-builder`` and ``ansible-runner``, once both can be run; nothing is done if they can.

    :raises ToolError: no Python will do, or something could not be installed.
    """
    with alone():
        venv.ensure(HOME, _python(), _GROUP)
    return HOME / "bin"


def ensure_base() -> str:
    """The name of the base image, once the engine has it."""
    lock = venv.lock_file(_GROUP, _python())
    name = f"backstep/ee-base:{docker.image_name().partition(':')[2]}-{venv.digest(lock)[:12]}"
    with alone():
        if run(["docker", "image", "inspect", name], timeout=30, check=False).returncode != 0:
            say(f"making the base image {name}")
            _make(name, lock)
    return name


def _make(name: str, lock: Path) -> None:
    shutil.rmtree(_WHEELS, ignore_errors=True)
    pip: list[str | Path] = [HOME / "bin" / "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    pip += ["--only-binary=:all:", "--require-hashes", "--requirement", lock, "--dest", _WHEELS / "wheels"]
    run(pip, timeout=_SECONDS)
    (_WHEELS / "Dockerfile").write_text(_RECIPE.format(image=docker.ensure_image()), encoding="utf-8")
    run(["docker", "build", "--quiet", "--tag", name, _WHEELS], timeout=_SECONDS)
    shutil.rmtree(_WHEELS)


def _python() -> Python:
    """Of the image's version, as both install the same wheels."""
    if find(_IMAGES_PYTHON) is None:
        packages.install(["python3", "python3-venv"])
    python = find(_IMAGES_PYTHON)
    if python is None:
        raise ToolError("No Python 3.11 with venv and pip was found, which is that of the image. Install it.")
    return python
