# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are either as they were or as they should be, never in between."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

_CHUNK = 1 << 20


def fsync_directory(path: Path) -> None:
    """Make names in a directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Write a file atomically and durably: after a crash it holds the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def read_if_there(path: Path) -> Optional[bytes]:
    """The bytes of a file; None only when it doesn't exist. Any other failure is raised."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def replace_link(link: Path, target: str) -> None:
    """Point a symbolic link elsewhere, atomically."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    os.symlink(target, temporary)
    os.replace(temporary, link)
    fsync_directory(link.parent)


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is in it; nothing to do when it isn't there."""
    if path.is_symlink() or path.exists():
        shutil.rmtree(path)
        fsync_directory(path.parent)


def walk(root: Path) -> Iterator[Path]:
    """Every entry below ``root`` in a fixed order, directories before what is in them, links not followed."""
    for entry in sorted(os.scandir(root), key=lambda item: item.name):
        path = Path(entry.path)
        yield path
        if entry.is_dir(follow_symlinks=False):
            yield from walk(path)


def describe(path: Path) -> dict[str, Any]:
    """What a seal says of one entry: kind, permission bits, owner, group, and its content (digest or link target)."""
    status = path.lstat()
    entry: dict[str, Any] = {"mode": oct(stat.S_IMODE(status.st_mode)), "uid": status.st_uid, "gid": status.st_gid}
    if stat.S_ISLNK(status.st_mode):
        return {"kind": "link", "target": os.readlink(path)}
    if stat.S_ISDIR(status.st_mode):
        return {"kind": "directory", **entry}
    if not stat.S_ISREG(status.st_mode):
        return {"kind": "other", **entry}
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return {"kind": "file", "sha256": digest.hexdigest(), **entry}


def free_bytes(path: Path) -> int:
    """Bytes that an unprivileged writer may still use on the file system that ``path`` is or will be on."""
    while not path.exists():
        path = path.parent
    figures = os.statvfs(path)
    return figures.f_bavail * figures.f_frsize
