# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What set-up and the checks decide."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tools import content, docker, venv
from tools.check_layers import PLUGINS, Import, complaint, imports
from tools.check_sizes import code_lines
from tools.common import CHECKOUT, ToolError, run, wait_for
from tools.pythons import newest, probe

UTILS = PLUGINS / "module_utils"
OURS = "ansible_collections.backstep.workers.plugins"


def program(path: Path, text: str) -> Path:
    """Write a program that a test runs."""
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("answer", "usable"),
    [
        ("echo 3 13 final", True),
        ("echo 3 15 candidate", False),
        ("echo 'pyenv: python3.13: command not found' >&2; exit 127", False),
        ("echo 'No module named ensurepip' >&2; exit 1", False),
    ],
)
def test_python_is_used_if_it_is_released_and_can_make_environments(
    tmp_path: Path, answer: str, usable: bool
) -> None:
    assert (probe(program(tmp_path / "python3.13", answer)) is not None) is usable


def test_python_named_by_the_user_must_be_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON", "/nowhere/python3")
    with pytest.raises(ToolError, match="/nowhere/python3 can't be used"):
        newest("demo")


def test_environment_is_made_once_and_anew_when_its_pins_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(venv, "LOCKS", tmp_path)
    python = probe(Path(sys.executable))
    assert python is not None
    lock = venv.lock_file("demo", python)
    lock.write_text("# nothing\n", encoding="utf-8")
    folder = tmp_path / "venv"

    def made() -> int:
        venv.ensure(folder, python, "demo")
        return (folder / "pyvenv.cfg").stat().st_mtime_ns

    first, stamp = made(), (folder / venv.STAMP).stat().st_mtime_ns
    assert (made(), (folder / venv.STAMP).stat().st_mtime_ns) == (first, stamp)
    lock.write_text("# nothing else\n", encoding="utf-8")
    second = made()
    assert second > first
    venv.lock_file("test", python).write_text("not/there\n", encoding="utf-8")
    with pytest.raises(ToolError):
        venv.ensure(folder, python, "test")
    assert made() > second  # what the failure left behind is not trusted
    (folder / "bin" / "python").unlink()
    assert venv.read_stamp(folder) == {}  # nor is one whose Python is gone


def test_link_is_set_right_and_a_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "COLLECTIONS", tmp_path)
    link = tmp_path / "ansible_collections" / "backstep" / "workers"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "an-older-checkout")
    content.link_checkout()
    assert link.resolve() == CHECKOUT
    link.unlink()
    link.mkdir()
    with pytest.raises(ToolError, match="Nothing was changed"):
        content.link_checkout()


def test_only_an_engine_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reboot the remembered process id may be anybody's."""
    monkeypatch.setattr(docker, "PID_FILE", tmp_path / "dockerd.pid")
    with subprocess.Popen(["sleep", "60"]) as somebody:
        docker.PID_FILE.write_text(str(somebody.pid), encoding="utf-8")
        docker.stop_engine()
        alive = somebody.poll() is None
        somebody.kill()
    assert alive
    assert not docker.PID_FILE.exists()


def test_image_name_changes_with_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "RECIPE", tmp_path)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    (tmp_path / "packages.txt").write_text("systemd\n", encoding="utf-8")
    first = docker.image_name()
    bundle = tmp_path.parent / "authorities.crt"
    bundle.write_text("one\n", encoding="utf-8")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    second = docker.image_name()
    (tmp_path / "packages.txt").write_text("systemd\ndbus\n", encoding="utf-8")
    assert len({first, second, docker.image_name()}) == 3


def test_wait_says_what_it_saw_last() -> None:
    with pytest.raises(ToolError, match="Waited 0 s for the broker; last seen: connection refused"):
        wait_for("the broker", lambda: "connection refused", timeout=0.05, interval=0.01)


def test_command_that_takes_too_long_is_ended() -> None:
    with pytest.raises(ToolError, match="took more than"):
        run(["sleep", "60"], timeout=0.2)


@pytest.mark.parametrize(
    ("file", "name", "said"),
    [
        ("_rollout/plans.py", f"{OURS}.module_utils._rollout.state", None),
        ("_rollout/plans.py", "json", None),
        ("_rollout/plans.py", f"{OURS}.module_utils._host.store", "which is not below _rollout"),
        ("_host/store.py", f"{OURS}.module_utils._queue.engine", "which is not below _host"),
        ("_host/store.py", f"{OURS}.modules.release", "which is above it"),
        ("_host/store.py", "ansible.module_utils.basic", "which is not in the standard library"),
        ("_queue/table.py", "redis", "which is not in the standard library"),
        ("_queue/engines/rq.py", "redis", None),
        ("_module.py", "ansible.module_utils.basic", None),
    ],
)
def test_layers(file: str, name: str, said: str | None) -> None:
    found = complaint(UTILS / file, Import(1, name))
    assert found is None if said is None else said in str(found)


def test_relative_imports_are_followed_and_type_checking_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.check_layers.PLUGINS", tmp_path)
    file = tmp_path / "module_utils" / "_host" / "store.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "from .._rollout.state import a\nfrom . import files\nif TYPE_CHECKING:\n    import ansible\n", encoding="utf-8"
    )
    assert {found.name for found in imports(file)} == {
        f"{OURS}.module_utils._rollout.state",
        f"{OURS}.module_utils._host.files",
    }


def test_a_long_text_is_one_line_of_code() -> None:
    text = 'DOCUMENTATION = """\na: 1\nb: 2\n"""\n\n\ndef main():\n    # why\n    run(\n        1,\n    )\n'
    assert code_lines(ast.parse(text)) == 4
