# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that files and functions stay small enough to be read at once, and modules thin."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.common import CHECKOUT, run

# Lines. The first number is the aim and only reported, the second the limit.
FILE_LINES = (400, 450)
FUNCTION_LINES = (40, 60)
# A module's code lines, its documentation and comments not counted.
MODULE_LINES = (60, 80)


def sources() -> list[Path]:
    """Every Python file of the checkout that git doesn't ignore."""
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"], timeout=30).stdout
    return [path for line in listed.splitlines() if (path := CHECKOUT / line).exists()]


def code_lines(tree: ast.Module) -> int:
    """On how many lines of a file some code begins; a long text counts as one."""
    return len({node.lineno for node in ast.walk(tree) if isinstance(node, ast.expr | ast.stmt)})


def sizes(path: Path) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """What is measured in one file: where, how many lines, and the aim and the limit for it."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    name = str(path.relative_to(CHECKOUT))
    if path.parent == CHECKOUT / "plugins" / "modules":
        yield f"{name}: code of the module", code_lines(tree), MODULE_LINES
    else:
        yield name, text.count("\n"), FILE_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            yield f"{name}:{node.lineno}: {node.name}", length, FUNCTION_LINES


def work() -> int:
    """Print what is larger than its aim; 1 if something is larger than its limit."""
    too_large = False
    for path in sources():
        for where, lines, (aim, limit) in sizes(path):
            if lines > aim:
                print(f"{'FAIL' if lines > limit else 'note'} {where}: {lines} lines, aim {aim}, limit {limit}")
            too_large = too_large or lines > limit
    return 1 if too_large else 0


if __name__ == "__main__":
    sys.exit(work())
