# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts on the collections path what the playbooks load: this checkout as a link, and Molecule's few collections."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from tools.common import BUILD, CHECKOUT, COLLECTIONS, VENV, ToolError, run, say
from tools.pythons import Python
from tools.venv import digest, lock_file

# What Molecule's Docker driver uses. The wheel they come in has a hundred more, which would take minutes to unpack.
NEEDED = ("community/docker", "community/library_inventory_filtering_v1", "ansible/posix")


def link_checkout() -> None:
    """Make ``backstep.workers`` on the collections path this checkout.

    :raises ToolError: something else is there under that name.
    """
    link = COLLECTIONS / "ansible_collections" / "backstep" / "workers"
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        if link.resolve() == CHECKOUT:
            return
        link.unlink()
    if link.exists():
        raise ToolError(f"{link} is not a link to this checkout. Nothing was changed. Move it away, then try again.")
    link.symlink_to(CHECKOUT)


def ensure_driver_collections(python: Python) -> None:
    """Have the collections of ``NEEDED`` on the collections path, as the lock file pins them; nothing is done if so."""
    lock = lock_file("collections", python)
    stamp = COLLECTIONS / ".driver"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == digest(lock):
        return
    say("fetching the collections of Molecule's Docker driver")
    downloads = BUILD / "downloads"
    shutil.rmtree(downloads, ignore_errors=True)
    pip: list[str | Path] = [VENV / "bin" / "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    pip += ["--only-binary=:all:", "--require-hashes", "--requirement", lock, "--dest", downloads]
    run(pip, timeout=600)
    for name in NEEDED:
        shutil.rmtree(COLLECTIONS / "ansible_collections" / name, ignore_errors=True)
    unpack(next(downloads.glob("*.whl")), COLLECTIONS)
    shutil.rmtree(downloads)
    stamp.write_text(digest(lock), encoding="utf-8")


def unpack(wheel: Path, target: Path) -> None:
    """Unpack the collections of ``NEEDED``, and nothing else, below the target."""
    folders = tuple(f"ansible_collections/{name}/" for name in NEEDED)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target, [name for name in archive.namelist() if name.startswith(folders)])


def ensure_wheelhouse() -> None:
    """Have the wheels that worker hosts install, for the base image's Python; nothing is done if they are there."""
    lock = CHECKOUT / "requirements" / "wheelhouse-py311.txt"
    wheelhouse = BUILD / "wheelhouse"
    stamp = wheelhouse / ".lock"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == digest(lock):
        return
    say("filling the wheelhouse")
    shutil.rmtree(wheelhouse, ignore_errors=True)
    pip: list[str | Path] = [VENV / "bin" / "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    pip += ["--only-binary=:all:", "--python-version", "3.11", "--require-hashes", "--requirement", lock]
    run([*pip, "--dest", wheelhouse], timeout=600)
    # A worker's build command installs exactly these, by `pip install --no-index --find-links /wheelhouse -r ...`.
    shutil.copy(lock, wheelhouse / "requirements.txt")
    stamp.write_text(digest(lock), encoding="utf-8")
