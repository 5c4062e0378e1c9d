# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the documents tell people to type or to write is tried here: every YAML block, every command, every example."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.environment import ansible_environment
from tools.common import CHECKOUT, VENV, run
from tools.engine_table import DOCUMENT, with_table

DOCUMENTS = sorted([CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("**/*.md")])
MODULES = sorted((CHECKOUT / "plugins" / "modules").glob("*.py"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLAYBOOKS = {path.stem for path in (CHECKOUT / "playbooks").glob("*.yml")}
RULEBOOKS = {path.stem for path in (CHECKOUT / "extensions" / "eda" / "rulebooks").glob("*.yml")}


def blocks(language: str) -> list[Any]:
    found = []
    for document in DOCUMENTS:
        for match in BLOCK.finditer(document.read_text(encoding="utf-8")):
            if match[1] == language:
                line = document.read_text(encoding="utf-8")[: match.start()].count("\n") + 1
                found.append(pytest.param(match[2], id=f"{document.name}:{line}"))
    return found


def playbook(content: list[Any], folder: Path, *options: str) -> str:
    path = folder / "playbook.yml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    command = [VENV / "bin" / "ansible-playbook", "-i", "localhost,", *options, path]
    done = run(command, timeout=120, check=False, env=ansible_environment())
    assert done.returncode == 0, done.stdout
    return str(done.stdout)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_block_is_taken(text: str, tmp_path: Path) -> None:
    content = yaml.safe_load(text)
    if isinstance(content, list):
        playbook(content, tmp_path, "--syntax-check")
        return
    specs = yaml.safe_load((CHECKOUT / "roles/pool/meta/argument_specs.yml").read_text(encoding="utf-8"))
    entries = specs["argument_specs"]
    options = {**entries["drill"]["options"], **entries["deploy"]["options"]}
    assert set(content) <= set(options), "a variable that the role doesn't have"
    if "pool_name" not in content:  # some variables, to be set beside a pool's others
        options = {name: options[name] for name in (*content, "pool_version")}
    given = {**content, "pool_version": "2.4.0"}
    check = {
        "name": "Check the variables as the role does",
        "ansible.builtin.validate_argument_spec": {"argument_spec": options, "provided_arguments": given},
    }
    event = yaml.safe_load((CHECKOUT / "roles/pool/vars/main.yml").read_text(encoding="utf-8"))["pool_event"]
    secrets = dict.fromkeys(("vault_redis_password", "vault_rabbit_password", "vault_chat_path"), "secret")
    values = {**secrets, "pool_version": "2.4.0", "pool_event": event}
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": values, "tasks": [check]}
    playbook([play], tmp_path)


@pytest.mark.parametrize("text", blocks("sh"))
def test_command_exists(text: str) -> None:
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    program = (CHECKOUT / "plugins/module_utils/_host/program.py").read_text(encoding="utf-8")
    known = 0
    for line in filter(None, text.splitlines()):
        for target in re.findall(r"^make (\S+)", line):
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), line
            known += 1
        for folder in re.findall(r"^cd (\S+)", line):
            assert (CHECKOUT / folder).is_dir(), line
            known += 1
        for name in re.findall(r"backstep\.workers\.(\w+)", line):
            assert name in (RULEBOOKS if line.startswith("ansible-rulebook ") else PLAYBOOKS), line
            known += 1
        for command in re.findall(r"/bin/backstep (\w+)", line):
            assert f'"{command}":' in program, line
            known += 1
    assert known, "a block of commands in which this test knows none"


def test_engines_are_told_as_the_code_has_them() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert document == with_table(document), "type: make engine-table"


def test_examples_of_all_modules_are_taken(tmp_path: Path) -> None:
    tasks = []
    for module in MODULES:
        documents = dict(filter(None, map(_named_text, ast.parse(module.read_text(encoding="utf-8")).body)))
        examples = yaml.safe_load(documents["EXAMPLES"])
        assert examples, module.name
        used = {key for task in examples for key in task if key.startswith("backstep.workers.")}
        assert f"backstep.workers.{module.stem}" in used, module.name
        options = yaml.safe_load(documents["DOCUMENTATION"])["options"]
        shared = {"pool", "root", "host", "supervisor", "engine", "broker_url", "timeout", "drain"}
        for task in examples:
            for given in task.get(f"backstep.workers.{module.stem}") or {}:
                assert given in options or given in shared, f"{module.name}: {given}"
        tasks += examples
    playbook([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}], tmp_path, "--syntax-check")


def _named_text(node: ast.stmt) -> tuple[str, str] | None:
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id, str(node.value.value)
    return None
