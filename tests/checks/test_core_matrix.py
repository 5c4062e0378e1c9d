# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's plays run with every ansible-core that meta/runtime.yml promises."""

from __future__ import annotations

import pytest

from tests.support.environment import ansible_environment
from tools import venv
from tools.common import BUILD, CHECKOUT, VENV, run
from tools.pythons import Python, find

# Which Python has which core is decided by the lock files.
PYTHONS = {"2.19": (3, 11), "2.20": (3, 12), "2.21": (3, 13)}


def python_for(core: str) -> Python:
    """The Python whose lock file has this core; the test is skipped, with its name, where the machine has none."""
    found = find(PYTHONS[core])
    if found is None:
        pytest.skip(f"Python {PYTHONS[core][0]}.{PYTHONS[core][1]} is not on this machine")
    return found


@pytest.mark.matrix
@pytest.mark.timeout(900)
# The oldest; what lies between, and the newest, which all other tests run with, when everything is run.
@pytest.mark.parametrize(
    "core", [pytest.param(core, marks=() if core == "2.19" else pytest.mark.thorough) for core in PYTHONS]
)
def test_demo_runs(core: str) -> None:
    python = python_for(core)
    folder = BUILD / "core" / core
    venv.ensure(folder, python, "demo")
    environment = ansible_environment(folder / "bin")
    said = run([folder / "bin" / "ansible", "--version"], timeout=60, env=environment).stdout
    assert f"[core {core}." in said
    command = [folder / "bin" / "python", "-m", "tests.demo.run", "--smoke"]
    done = run(command, timeout=600, env=environment, check=False)
    print(done.stdout)
    assert done.returncode == 0


def test_this_environment_is_in_the_matrix_or_newer() -> None:
    said = run([VENV / "bin" / "ansible", "--version"], timeout=60, env=ansible_environment()).stdout
    assert any(f"[core {core}." in said for core in PYTHONS)
    assert (CHECKOUT / "meta" / "runtime.yml").read_text(encoding="utf-8").count(">=2.19.0") == 1
