# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Releases on disk: staged, sealed, verified, pruned. Nothing here decides which of them runs."""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import shlex
import shutil
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

from .._rollout.errors import BadInput, BuildFailed, HostUnfit, ReleaseDamaged
from . import launch
from .commands import run
from .files import describe, fsync_directory, read_if_there, remove_tree, walk, write_file
from .layout import Layout, Spec, environment_file

_SEAL = "release.json"
_CLOSED, _OPEN = 0o700, 0o750
_COMPARED_BYTES = 1 << 20


@dataclass(frozen=True)
class Content:
    """What goes into a release besides its spec.

    :param archive: a tar file that lies on this host, or "".
    :param directory: a directory that lies on this host and is copied, or "" (one of the two is given).
    :param config: path below ``config/`` -> (bytes, permission bits).
    :param environment: ``pool_env``; may hold secrets.
    :param build: commands (lists of arguments) that run in ``app/`` as the pool's user.
    :param build_seconds: the time-out of each.
    :param manifest: the text of the engine's program that tells which tasks the release can run, or "".
    """

    archive: str
    directory: str
    config: dict[str, tuple[bytes, int]]
    environment: dict[str, str]
    build: list[list[str]]
    build_seconds: float
    manifest: str = ""


class Store:
    """The releases of one pool on this host."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    # -- reading ------------------------------------------------------------------------------------------------

    def spec(self, release: str) -> Spec:
        """The sealed spec of a release.

        :raises ReleaseDamaged: it has no seal that can be read.
        """
        try:
            sealed = json.loads((self.layout.release(release) / _SEAL).read_bytes())
            return Spec(**sealed["spec"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(release, [f"{_SEAL} can't be read ({type(error).__name__})"]) from None

    def environment(self, release: str) -> dict[str, str]:
        """``pool_env`` of a release; may hold secrets.

        :raises ReleaseDamaged: it can't be read.
        """
        path = self.layout.config(release) / "environment"
        try:
            words = shlex.split(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._damaged(release, [f"{path} can't be read ({type(error).__name__})"]) from None
        return dict(word.split("=", 1) for word in words)

    def manifest(self, release: str) -> dict[str, Any]:
        """What was sealed of the tasks that a release can run, see ``manifest.declared``; empty where nobody asked.

        :raises ReleaseDamaged: it has no seal that can be read.
        """
        try:
            return dict(json.loads((self.layout.release(release) / _SEAL).read_bytes()).get("manifest", {}))
        except (OSError, ValueError, TypeError) as error:
            raise self._damaged(release, [f"{_SEAL} can't be read ({type(error).__name__})"]) from None

    def config_files(self, release: str) -> dict[str, Optional[bytes]]:
        """The files of a release's config, by name; None for one of more than a mebibyte. May hold secrets.

        :raises ReleaseDamaged: they can't be read.
        """
        config = self.layout.config(release)
        try:
            files = [path for path in walk(config) if path.is_file() and not path.is_symlink()]
            return {
                str(path.relative_to(config)): path.read_bytes() if path.stat().st_size <= _COMPARED_BYTES else None
                for path in files
            }
        except OSError as error:
            raise self._damaged(release, [f"its config can't be read ({type(error).__name__})"]) from None

    def problems(self, release: str, seal: str) -> list[str]:
        """What of a release is no longer as it was sealed; an empty list when every byte, mode and owner is.

        :param seal: the digest that the journal noted when the release was sealed.
        """
        directory = self.layout.release(release)
        raw = read_if_there(directory / _SEAL)
        if raw is None:
            return [f"{directory} or its {_SEAL} is missing"]
        if hashlib.sha256(raw).hexdigest() != seal:
            return [f"{_SEAL} is not the one that was sealed"]
        sealed = json.loads(raw)["entries"]
        found = self._entries(directory)
        missing = [f"{name} is missing" for name in sealed if name not in found]
        changed = [f"{name} was changed" for name, entry in found.items() if name in sealed and sealed[name] != entry]
        added = [f"{name} was added" for name in found if name not in sealed]
        return missing + changed + added

    def verify(self, release: str, seal: str) -> None:
        """Refuse a release that is not byte for byte what was sealed.

        :raises ReleaseDamaged: says what differs.
        """
        problems = self.problems(release, seal)
        if problems:
            raise self._damaged(release, problems)

    def _damaged(self, release: str, problems: list[str]) -> ReleaseDamaged:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        return ReleaseDamaged(
            f"The stored release {release} can't be used: {shown}.",
            left="Nothing was switched.",
            next_step="Restore it from a backup, deploy its version again, or choose another good one with "
            "-e pool_to=<id> (see: backstep history).",
            release=release,
            problems=problems[:20],
        )

    @staticmethod
    def _entries(directory: Path) -> dict[str, Any]:
        entries = {}
        for path in walk(directory):
            name = str(path.relative_to(directory))
            if name == _SEAL or "__pycache__" in path.parts:
                continue
            entries[name] = describe(path)
        # Closed while the release doesn't run, open to the pool's group while it does: see set_open.
        entries.get("config", {}).pop("mode", None)
        return entries

    # -- writing ------------------------------------------------------------------------------------------------

    def stage(
        self, spec: Spec, content: Content, units: dict[str, bytes], ask: Callable[[], dict[str, Any]] = dict
    ) -> str:
        """Build a release in its final place and seal it; the digest of the seal.

        :param ask: asks what was built for the tasks that it can run, which is sealed with it.

        A release that was left unfinished is built anew. Fails with nothing left of it and nothing else touched.
        """
        directory = self.layout.release(spec.id)
        self.discard(spec.id)
        try:
            directory.mkdir(parents=True, mode=0o755)
            os.chmod(directory, 0o755)
            self._fill(spec, content, units)
            # Its code may read its config, as its workers will.
            self.set_open(spec.id, True)
            manifest = ask()
            self.set_open(spec.id, False)
            return self._seal(spec, manifest)
        except OSError as error:
            self.discard(spec.id)
            raise HostUnfit(
                f"Release {spec.id} could not be stored: {error.strerror or error}.",
                left="What was stored of it was removed; what runs goes on.",
                next_step=f"Make room below {self.layout.root} (or mend what the message says) and deploy again.",
            ) from None
        except BaseException:
            self.discard(spec.id)
            raise

    def _fill(self, spec: Spec, content: Content, units: dict[str, bytes]) -> None:
        app, config, unit = self.layout.app(spec.id), self.layout.config(spec.id), self.layout.unit(spec.id)
        for directory, mode in ((app, 0o755), (config, _CLOSED), (unit, 0o755)):
            directory.mkdir()
            os.chmod(directory, mode)
        if content.archive:
            unpack(Path(content.archive), app)
        else:
            shutil.copytree(content.directory, app, symlinks=True, dirs_exist_ok=True)
        self._build(spec, content)
        self._hand_to_root(app)
        write_file(config / "environment", environment_file(content.environment), 0o600)
        group = _group_of(spec.user)
        for name, (data, mode) in content.config.items():
            inner = [config / parent for parent in reversed(Path(name).parents)][1:]
            for directory in inner:
                directory.mkdir(exist_ok=True)
                os.chmod(directory, _OPEN)
            write_file(config / name, data, mode)
            if group is not None:
                for path in [*inner, config / name]:
                    os.chown(path, 0, group)
        if group is not None:
            os.chown(config, 0, group)
        for name, data in units.items():
            write_file(unit / name, data, 0o644)
        write_file(self.layout.launcher(spec.id), launch_source(), 0o644)
        if content.manifest:
            write_file(self.layout.manifest(spec.id), content.manifest.encode(), 0o644)

    def _build(self, spec: Spec, content: Content) -> None:
        app = self.layout.app(spec.id)
        if not content.build:
            return
        if os.geteuid() == 0:
            entry = pwd.getpwnam(spec.user)
            for path in [app, *walk(app)]:
                os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)
        for command in content.build:
            words = [word.replace("{app}", str(app)).replace("{release}", str(app.parent)) for word in command]
            outcome = run(words, timeout=content.build_seconds, directory=str(app), user=spec.user)
            if outcome.code:
                raise BuildFailed(
                    f"The build command `{' '.join(words)}` ended with {outcome.code}: {outcome.last_words}",
                    left="The release was removed; what runs goes on.",
                    next_step="Mend the command or the source and deploy again.",
                )

    @staticmethod
    def _hand_to_root(app: Path) -> None:
        """From here on the workers can read their code and not change it."""
        root = os.geteuid() == 0
        for path in [app, *walk(app)]:
            if root:
                os.chown(path, 0, 0, follow_symlinks=False)
            if not path.is_symlink():
                os.chmod(path, stat.S_IMODE(path.stat().st_mode) & ~0o022)

    def _seal(self, spec: Spec, manifest: dict[str, Any]) -> str:
        directory = self.layout.release(spec.id)
        for path in walk(directory):
            if path.is_file() and not path.is_symlink():
                handle = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
        sealed = {"spec": spec.as_json(), "entries": self._entries(directory), "manifest": manifest}
        raw = json.dumps(sealed, sort_keys=True, indent=1).encode()
        write_file(directory / _SEAL, raw, 0o600)
        fsync_directory(self.layout.releases)
        return hashlib.sha256(raw).hexdigest()

    def set_open(self, release: str, running: bool) -> None:
        """Let the pool's group reach the config of a release that runs; a stored one is for root only."""
        os.chmod(self.layout.config(release), _OPEN if running and os.geteuid() == 0 else _CLOSED)

    def discard(self, release: str) -> None:
        """Remove a release and what belongs to it. The caller has made sure that nothing of it runs."""
        remove_tree(self.layout.release(release))
        self.layout.broker_environment(release).unlink(missing_ok=True)


def launch_source() -> bytes:
    """The launcher's text, from wherever this package was loaded (a directory or a zip archive)."""
    loader = launch.__loader__
    source = loader.get_source(launch.__name__)  # type: ignore[union-attr]  # every loader that can be here has it
    if source is None:
        raise HostUnfit("The launcher's text can't be read.", left="Nothing was changed.")
    return str(source).encode()


def _group_of(user: str) -> Optional[int]:
    return pwd.getpwnam(user).pw_gid if os.geteuid() == 0 else None


def check_user(user: str) -> None:
    """Refuse a user that can't own workers.

    :raises BadInput: unknown, root, or not the one we are without being root.
    """
    try:
        entry = pwd.getpwnam(user)
        grp.getgrgid(entry.pw_gid)
    except KeyError:
        raise BadInput(
            f"pool_user '{user}' doesn't exist on this host.",
            left="Nothing was changed.",
            next_step="Create it (ansible.builtin.user with system: true), or name another one.",
        ) from None
    if entry.pw_uid == 0:
        raise BadInput(
            "pool_user is root: workers never run as root.",
            left="Nothing was changed.",
            next_step="Name a user of the app's own.",
        )
    if os.geteuid() not in (0, entry.pw_uid):
        raise HostUnfit(
            f"This play is user {os.geteuid()} on the host and can't start workers as {user}.",
            left="Nothing was changed.",
            next_step="Run it with become: true.",
        )


def unpack(archive: Path, directory: Path) -> None:
    """Unpack a tar archive; nothing of it may point or land outside of ``directory``.

    :raises BadInput: not a tar archive, or one with such an entry.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                _check_member(member)
            if hasattr(tarfile, "data_filter"):
                tar.extractall(directory, filter="data")
            else:
                tar.extractall(directory)  # noqa: S202  # Python before 3.9.17 has no filter; the members are checked
    except (tarfile.TarError, EOFError) as error:
        raise BadInput(
            f"The source archive can't be unpacked: {error}.",
            left="Nothing was switched.",
            next_step="Check pool_source; it has to be a tar archive (plain, gz, bz2 or xz).",
        ) from None


def _check_member(member: tarfile.TarInfo) -> None:
    names = [member.name]
    if member.issym():
        names.append(os.path.join(os.path.dirname(member.name), member.linkname))
    elif member.islnk():
        names.append(member.linkname)
    for name in names:
        if name.startswith("/") or os.path.normpath(name).split("/")[0] == "..":
            raise BadInput(
                f"The source archive's entry {member.name} leads outside of it.", left="Nothing was switched."
            )
    if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
        raise BadInput(f"The source archive's entry {member.name} is not a file.", left="Nothing was switched.")
