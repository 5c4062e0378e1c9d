# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where a release's code comes from, packed on the controller so that every host gets the same bytes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput

_KINDS = ("directory", "archive", "git", "path")
_LEFT_OUT = frozenset((".git", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"))
_GIT_SECONDS = 300.0
_IN_URL = re.compile(r"://[^/\s@]*@")
# A signed URL has its secret here, under a name that differs from store to store.
_QUERY = re.compile(r"(://[^?\s]*\?)\S+")


@dataclass(frozen=True)
class Source:
    """Code, ready to be sent.

    :param digest: the same for the same code; part of the release's id.
    :param archive: a tar file on the controller; None when the code lies on the hosts already.
    """

    digest: str
    archive: Optional[Path]

    @property
    def size(self) -> int:
        """Bytes of the archive."""
        return self.archive.stat().st_size if self.archive else 0


def kind_of(source: dict[str, Any]) -> str:
    """Which kind of source is given.

    :raises BadInput: none or several, an archive without checksum, git without ref.
    """
    given = [kind for kind in _KINDS if source.get(kind)]
    if len(given) != 1:
        raise unusable(f"exactly one of {', '.join(_KINDS)} has to be given, not {' and '.join(given) or 'none'}")
    if given[0] == "archive" and not source.get("checksum"):
        raise unusable("an archive needs its checksum, as sha256:<hex digits>")
    if given[0] == "git" and not source.get("ref"):
        raise unusable("git needs a ref: a branch, a tag or a commit")
    return given[0]


def prepare_source(source: dict[str, Any], cache: Path, download: Callable[[str, Path], None]) -> Source:
    """Check and pack the source. Packed once for all hosts of a run.

    :param cache: a directory of this run alone.
    :param download: gets a URL into a file.
    :raises BadInput: it isn't there, can't be read, or doesn't have the checksum that was given.
    """
    kind = kind_of(source)
    if kind == "path":
        return Source(f"path:{source['path']}", None)
    cache.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(repr(sorted(source.items())).encode()).hexdigest()[:16]
    with _locked(cache / f"{name}.lock"):
        archive, note = cache / f"{name}.tar", cache / f"{name}.digest"
        if not note.exists():
            digest = _MAKERS[kind](source, archive, download)
            note.write_text(digest, encoding="utf-8")
        return Source(note.read_text(encoding="utf-8"), archive)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def unusable(why: str, next_step: str = "") -> BadInput:
    """The refusal of a source; of a URL in the text, user and password and the query are masked."""
    masked = _QUERY.sub(r"\1***", _IN_URL.sub("://***@", why))
    return BadInput(f"pool_source can't be used: {masked}.", left="Nothing was changed.", next_step=next_step)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _from_directory(source: dict[str, Any], archive: Path, _download: Any) -> str:
    directory = Path(source["directory"]).expanduser().absolute()
    if not directory.is_dir():
        raise unusable(f"{directory} is not a directory on the controller")
    pack(directory, archive)
    return f"sha256:{_sha256(archive)}"


def _from_archive(source: dict[str, Any], archive: Path, download: Callable[[str, Path], None]) -> str:
    name, wanted = source["archive"], source["checksum"].lower()
    if "://" in name:
        download(name, archive)
    else:
        path = Path(name).expanduser().absolute()
        if not path.is_file():
            raise unusable(f"{path} is not a file on the controller")
        shutil.copyfile(path, archive)
    if not wanted.startswith("sha256:"):
        raise unusable("the checksum has to begin with sha256:")
    found = f"sha256:{_sha256(archive)}"
    if found != wanted:
        archive.unlink()
        raise unusable(
            f"the checksum of {name} is {found}, not {wanted}",
            "Check where the archive comes from before you change the checksum.",
        )
    return found


def _from_git(source: dict[str, Any], archive: Path, _download: Any) -> str:
    clone = archive.with_suffix(".git")
    shutil.rmtree(clone, ignore_errors=True)
    _git("clone", "--quiet", "--bare", "--", source["git"], str(clone))
    commit = _git("rev-parse", "--verify", f"{source['ref']}^{{commit}}", directory=clone).strip()
    _git("archive", "--format=tar", f"--output={archive}", commit, directory=clone)
    return f"git:{commit}"


def _git(*arguments: str, directory: Optional[Path] = None) -> str:
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise unusable("there is no git on the controller", "Install git, or use source.directory.") from None
    except subprocess.TimeoutExpired:
        raise unusable(f"git {arguments[0]} took more than {_GIT_SECONDS:.0f} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise unusable(f"git {arguments[0]} failed: {last}")
    return done.stdout


_MAKERS: dict[str, Callable[[dict[str, Any], Path, Any], str]] = {
    "directory": _from_directory,
    "archive": _from_archive,
    "git": _from_git,
}


def pack(directory: Path, archive: Path) -> None:
    """Pack a directory so that the same files give the same bytes: fixed order, no times, no owners, plain modes."""

    def plain(entry: tarfile.TarInfo) -> Optional[tarfile.TarInfo]:
        name = os.path.basename(entry.name)
        if name in _LEFT_OUT or name.endswith(".pyc"):
            return None
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = 0
        runnable = entry.isdir() or bool(entry.mode & stat.S_IXUSR)
        entry.mode = 0o755 if runnable else 0o644
        return entry

    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in sorted(os.listdir(directory)):
            tar.add(directory / name, arcname=name, filter=plain)
