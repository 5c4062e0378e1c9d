# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that the arrows of the architecture point one way, by reading imports.

Modules, action and filter plugins -> ``_module``, ``_host``, ``_queue``, ``_awx`` -> ``_rollout``, ``_waiting``. Below
the modules only the standard library is imported, except that an engine may import its queue library's client, and what
speaks to AWX the client of AWX.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.common import CHECKOUT

PLUGINS = CHECKOUT / "plugins"
PREFIX = ("ansible_collections", "backstep", "workers", "plugins")
# For each layer of module_utils, the layers that it may import; None stands for files directly in module_utils.
BELOW: dict[str | None, set[str | None]] = {
    "_rollout": {"_rollout"},
    "_waiting": {"_waiting"},
    "_host": {"_host", "_rollout", "_waiting"},
    "_queue": {"_queue", "_rollout", "_waiting"},
    "_awx": {"_awx", "_rollout", "_waiting"},
    None: {None, "_host", "_queue", "_rollout", "_waiting"},
}


@dataclass(frozen=True)
class Import:
    """One import; ``name`` is absolute, like ``a.b``."""

    line: int
    name: str


def package_of(path: Path) -> list[str]:
    """The package that relative imports in this file start from."""
    return [*PREFIX, *path.relative_to(PLUGINS).parent.parts]


def absolute_names(node: ast.Import | ast.ImportFrom, package: list[str]) -> list[str]:
    """What an import statement names, without dots at the front."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if node.level == 0:
        return [node.module or ""]
    base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
    return [".".join(base)] if node.module else [".".join([*base, alias.name]) for alias in node.names]


def is_type_checking(node: ast.AST) -> bool:
    """Whether this is ``if TYPE_CHECKING:``, whose imports never run."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file that can run."""
    package = package_of(path)
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in absolute_names(node, package):
                yield Import(node.lineno, name)
        if not is_type_checking(node):
            pending.extend(ast.iter_child_nodes(node))


def layer(parts: tuple[str, ...]) -> str | None:
    """The layer of something in module_utils, from the path or name below it."""
    return parts[0] if parts and parts[0] in BELOW else None


def complaint(path: Path, found: Import) -> str | None:
    """What is wrong with an import of a file in module_utils, or None."""
    place = path.relative_to(PLUGINS / "module_utils").parts
    here = layer(place)
    parts = tuple(found.name.split("."))
    if parts[: len(PREFIX)] == PREFIX:
        kind, *rest = parts[len(PREFIX) :] or ("",)
        there = layer(tuple(rest))
        if kind != "module_utils":
            return f"imports {found.name}, which is above it"
        return None if there in BELOW[here] else f"imports {there or found.name}, which is not below {here}"
    if parts[0] in sys.stdlib_module_names:
        return None
    if here is None and parts[0] == "ansible":
        return None
    if place[:2] == ("_queue", "engines") or place == ("_awx", "api.py"):
        return None
    return f"imports {found.name}, which is not in the standard library"


def work() -> int:
    """Print every import that points the wrong way; 1 if there is one."""
    wrong = [
        f"{path.relative_to(CHECKOUT)}:{found.line}: {said}"
        for path in sorted((PLUGINS / "module_utils").rglob("*.py"))
        for found in imports(path)
        if (said := complaint(path, found))
    ]
    print("\n".join(wrong) if wrong else "Every import points down.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(work())
