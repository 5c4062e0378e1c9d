# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of the source: each is a tool that says by itself what is wrong and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.environment import ansible_environment
from tools.common import BUILD, CHECKOUT, VENV, run

LINKED = BUILD / "collections" / "ansible_collections" / "backstep" / "workers"
BIN = VENV / "bin"
# Empty files have nothing to license.
SAID = b"SPDX-License-Identifier"
CHECKS: dict[str, list[str | Path]] = {
    "ruff": [BIN / "ruff", "check"],
    # Through the link, so that `ansible_collections.backstep.workers` is what the files are called.
    "mypy-plugins": [BIN / "mypy", LINKED / "plugins"],
    # Other tests stay out: they check what a client library answers, and it types that as a union of everything.
    "mypy-rest": [
        BIN / "mypy",
        "tools",
        "extensions",
        "tests/support",
        "tests/checks",
        "tests/explore",
        "tests/conftest.py",
    ],
    "yamllint": [BIN / "yamllint", "--strict", "."],
    "ansible-lint": [BIN / "ansible-lint", "--offline"],
    "documentation": [
        BIN / "antsibull-docs",
        "lint-collection-docs",
        "--plugin-docs",
        "--validate-collection-refs=self",
        "--skip-rstcheck",
        ".",
    ],
    "changelog": [BIN / "antsibull-changelog", "lint"],
    "layers": [BIN / "python", "-m", "tools.check_layers"],
    "sizes": [BIN / "python", "-m", "tools.check_sizes"],
}


@pytest.mark.lint
@pytest.mark.parametrize("name", CHECKS)
def test_source_passes(name: str) -> None:
    done = run(CHECKS[name], timeout=240, check=False, env={**ansible_environment(), "NO_COLOR": "1"})
    print(done.stdout)
    assert done.returncode == 0, f"{name} found something; see its output"


@pytest.mark.lint
def test_every_file_says_its_license() -> None:
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], timeout=30).stdout.splitlines()
    files = [CHECKOUT / name for name in listed if name not in ("LICENSE", ".gitignore")]
    silent = [path for path in files if path.is_file() and SAID not in (path.read_bytes() or SAID)]
    assert silent == []
