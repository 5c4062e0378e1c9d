# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests load is this checkout, also where another copy of the collection is installed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from tests.support.environment import ansible_environment
from tools.common import CHECKOUT, COLLECTIONS, VENV, run


@pytest.fixture
def decoy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another copy of the collection, where this user's Ansible would find it first."""
    folder = tmp_path / "ansible_collections" / "backstep" / "workers"
    folder.mkdir(parents=True)
    said = {"collection_info": {"namespace": "backstep", "name": "workers", "version": "99.0.0"}, "format": 1}
    (folder / "MANIFEST.json").write_text(json.dumps(said), encoding="utf-8")
    monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return folder


@pytest.mark.usefixtures("decoy")
def test_ansible_loads_this_checkout() -> None:
    command = [VENV / "bin" / "ansible-galaxy", "collection", "list", "backstep.workers", "--format", "json"]
    listed = json.loads(run(command, timeout=60, env=ansible_environment()).stdout)
    assert list(listed) == [str(COLLECTIONS / "ansible_collections")]
    assert (COLLECTIONS / "ansible_collections" / "backstep" / "workers").resolve() == CHECKOUT


def test_tests_import_this_checkout() -> None:
    errors = importlib.import_module("ansible_collections.backstep.workers.plugins.module_utils._rollout.errors")
    assert Path(str(errors.__file__)).resolve() == CHECKOUT / "plugins" / "module_utils" / "_rollout" / "errors.py"
