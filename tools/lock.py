# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make lock`: pins the dependency groups of pyproject.toml, one file per group and Python, and Node's, with hashes."""

from __future__ import annotations

from pathlib import Path

from tools import node
from tools.common import BUILD, LOCKS, ToolError, main, run, say
from tools.pythons import newest

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# The base image's Python is Debian 12's.
WHEELHOUSE_PYTHON = "3.11"
HEADER = """\
# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Made by `make lock` from the group of the same name in pyproject.toml. Not edited by hand.
"""


def compile_group(uv: Path, group: str, python: str, constraint: Path | None = None) -> Path:
    """Resolve one group for one Python. The resolver needs no such Python here."""
    target = LOCKS / f"{group}-py{python.replace('.', '')}.txt"
    command: list[str | Path] = [uv, "pip", "compile", "--quiet", "--upgrade", "--generate-hashes"]
    command += ["--group", f"pyproject.toml:{group}", "--python-version", python, "--python-platform", "linux"]
    command += ["--no-header", "--no-annotate", "--output-file", target]
    if group == "collections":
        command.append("--no-deps")
    if constraint:
        command += ["--constraints", constraint]
    target.unlink(missing_ok=True)
    run(command, timeout=300)
    target.write_text(HEADER + target.read_text(encoding="utf-8"), encoding="utf-8")
    say(f"wrote {target.name}")
    return target


def work() -> None:
    python = newest("test")
    if python is None:
        raise ToolError("No Python was found to run the resolver with.")
    tools = BUILD / "lock"
    if not (tools / "bin" / "uv").exists():
        run([python.path, "-m", "venv", tools], timeout=120)
        run([tools / "bin" / "pip", "install", "--quiet", "uv"], timeout=300)
    uv = tools / "bin" / "uv"
    LOCKS.mkdir(exist_ok=True)
    for version in PYTHONS:
        test = compile_group(uv, "test", version)
        # The same pins in both, so that the demo's environment can grow into the test's.
        compile_group(uv, "demo", version, constraint=test)
        compile_group(uv, "collections", version)
        compile_group(uv, "eda", version)
    compile_group(uv, "ee", WHEELHOUSE_PYTHON)
    compile_group(uv, "wheelhouse", WHEELHOUSE_PYTHON)
    node.lock()


if __name__ == "__main__":
    main(work)
