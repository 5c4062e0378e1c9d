# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a process needs in its environment so that it loads this checkout, and nothing of what else a machine has."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from tools.common import BUILD, CHECKOUT, COLLECTIONS, VENV
from tools.docker import image_name
from tools.node import MODULES

WHEELHOUSE = BUILD / "wheelhouse"
# Settings of a person's own shell that would change what is tested.
DROPPED = ("ANSIBLE_", "MOLECULE_", "PYTHON", "PYTEST_", "RQ_")


def ansible_environment(bin_folder: Path = VENV / "bin") -> dict[str, str]:
    """The whole environment for ``ansible-playbook``, ``molecule`` and their kind.

    The caller's own settings for Ansible, Molecule and Python are left out; the rest of its environment is kept.

    :param bin_folder: of the virtual environment whose programs run.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(DROPPED)}
    return {
        **kept,
        "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
        "ANSIBLE_CONFIG": str(CHECKOUT / ".config" / "ansible.cfg"),
        "ANSIBLE_HOME": str(BUILD / "ansible"),
        "BACKSTEP_CHECKOUT": str(CHECKOUT),
        # What the names of Molecule's hosts begin with: two checkouts on one machine must not remove each other's.
        "BACKSTEP_HOSTS": f"backstep-{hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:6]}",
        "BACKSTEP_IMAGE": image_name(),
        "BACKSTEP_WHEELHOUSE": str(WHEELHOUSE),
        "BACKSTEP_NODE_MODULES": str(MODULES),
        # Seconds for one answer of the Docker engine, which took over a minute to remove three hosts on a busy machine.
        "DOCKER_TIMEOUT": "300",
        "LC_ALL": "C.UTF-8",
        "PATH": os.pathsep.join([str(bin_folder), kept.get("PATH", os.defpath)]),
        "PYTHONNOUSERSITE": "1",
        "VIRTUAL_ENV": str(bin_folder.parent),
    }
