# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-test sanity finds nothing, and nothing is excused."""

from __future__ import annotations

import pytest

from tools.common import CHECKOUT, VENV, run


@pytest.mark.sanity
@pytest.mark.timeout(1600)
def test_sanity_finds_nothing() -> None:
    done = run([VENV / "bin" / "python", "-m", "tools.sanity"], timeout=1550, check=False)
    print(done.stdout)
    assert done.returncode == 0


@pytest.mark.lint
def test_nothing_is_excused() -> None:
    assert list((CHECKOUT / "tests" / "sanity").glob("ignore-*.txt")) == []
