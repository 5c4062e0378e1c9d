# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Releases on disk: sealed byte for byte, refused when anything differs, gone without a trace when staging fails."""

from __future__ import annotations

import io
import os
import pwd
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host import store as stores
from ansible_collections.backstep.workers.plugins.module_utils._host.files import replace_link
from ansible_collections.backstep.workers.plugins.module_utils._host.layout import Layout, Spec
from ansible_collections.backstep.workers.plugins.module_utils._host.store import Content, Store
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import (
    BadInput,
    BuildFailed,
    HostUnfit,
    ReleaseDamaged,
)

ROOT = os.geteuid() == 0
USER = "nobody" if ROOT else pwd.getpwuid(os.geteuid()).pw_name
ID = "1.0-aaaaaaaa"
CONTENT = Content(
    archive="",
    directory="",
    config={"app.ini": (b"[app]\nkey=hush\n", 0o640), "deep/er/x.conf": (b"x\n", 0o600)},
    environment={"TOKEN": "hush"},
    build=[],
    build_seconds=20.0,
)
UNITS = {"mail.conf": b"[program:x]\n"}


def spec(**changed: object) -> Spec:
    fixed = Spec(
        id=ID,
        version="1.0",
        pool="mail",
        engine="rq",
        queues=[["mail"]],
        processes=1,
        command=["x"],
        user=USER,
        broker="redis://h/0",
        broker_variable="RQ_REDIS_URL",
        identity={},
    )
    return replace(fixed, **changed)  # type: ignore[arg-type]  # the fields are named by each test


@pytest.fixture
def root() -> Iterator[Path]:
    """A pool's root that the pool's user can reach, as a build has to: pytest's own directories are closed to it."""
    with tempfile.TemporaryDirectory(prefix="backstep-") as directory:
        os.chmod(directory, 0o755)
        root = Path(directory) / "mail"
        for name in ("releases", "state"):
            (root / name).mkdir(parents=True)
        yield root


@pytest.fixture
def store(root: Path) -> Store:
    """An empty store."""
    return Store(Layout(root))


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """The code of a release: a module, a program, a link, an empty directory."""
    code = tmp_path / "code"
    (code / "pkg").mkdir(parents=True)
    (code / "empty").mkdir()
    (code / "app.py").write_text("VERSION = 1\n", encoding="utf-8")
    (code / "pkg" / "run").write_text("#!/bin/sh\n", encoding="utf-8")
    (code / "pkg" / "run").chmod(0o775)
    (code / "link").symlink_to("app.py")
    return code


@pytest.fixture
def seal(store: Store, code: Path) -> str:
    """The seal of a stored release."""
    return store.stage(spec(), replace(CONTENT, directory=str(code)), UNITS)


def test_what_was_sealed_verifies(store: Store, seal: str, root: Path) -> None:
    store.verify(ID, seal)
    assert store.spec(ID) == spec()
    release = root / "releases" / ID
    assert (release / "config" / "app.ini").read_bytes() == b"[app]\nkey=hush\n"
    assert (release / "config" / "environment").read_bytes() == b'TOKEN="hush"\n'
    assert (release / "unit" / "mail.conf").read_bytes() == UNITS["mail.conf"]
    assert b"Become the worker" in (release / "unit" / "launch.py").read_bytes()


def test_what_a_stored_release_lets_others_read(store: Store, seal: str, root: Path) -> None:
    release = root / "releases" / ID

    def mode(name: str) -> int:
        return (release / name).stat().st_mode & 0o777

    assert (mode("config"), mode("config/environment"), mode("release.json")) == (0o700, 0o600, 0o600)
    assert (mode("config/app.ini"), mode("config/deep"), mode("config/deep/er/x.conf")) == (0o640, 0o750, 0o600)
    assert (mode("app/pkg/run"), mode("app/app.py")) == (0o755, 0o644)
    store.set_open(ID, True)
    assert mode("config") == (0o750 if ROOT else 0o700)
    store.verify(ID, seal)
    store.set_open(ID, False)
    assert mode("config") == 0o700


@pytest.mark.skipif(not ROOT, reason="owners can be given by root only")
def test_the_workers_own_nothing_of_their_release(store: Store, code: Path, root: Path) -> None:
    build = [["/bin/sh", "-c", "id -u > built; umask 000; touch open"]]
    seal = store.stage(spec(), replace(CONTENT, directory=str(code), build=build), UNITS)
    release = root / "releases" / ID
    assert (release / "app" / "built").read_text(encoding="utf-8").strip() == str(pwd.getpwnam(USER).pw_uid)
    assert {path.lstat().st_uid for path in release.rglob("*")} == {0}
    assert (release / "app" / "open").stat().st_mode & 0o022 == 0
    assert (release / "config" / "app.ini").stat().st_gid == pwd.getpwnam(USER).pw_gid
    assert (release / "config").stat().st_gid == pwd.getpwnam(USER).pw_gid
    assert (release / "config" / "environment").stat().st_gid == 0
    store.verify(ID, seal)


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "code changed": (lambda path: (path / "app/app.py").write_text("VERSION = 2\n"), "app/app.py was changed"),
    "config changed": (lambda path: (path / "config/app.ini").write_text("x"), "config/app.ini was changed"),
    "environment changed": (
        lambda path: (path / "config/environment").write_text(""),
        "config/environment was changed",
    ),
    "unit changed": (lambda path: (path / "unit/mail.conf").write_text("x"), "unit/mail.conf was changed"),
    "launcher changed": (lambda path: (path / "unit/launch.py").write_text("x"), "unit/launch.py was changed"),
    "file missing": (lambda path: (path / "app/pkg/run").unlink(), "app/pkg/run is missing"),
    "directory missing": (lambda path: (path / "app/empty").rmdir(), "app/empty is missing"),
    "file added": (lambda path: (path / "app/new.py").write_text(""), "app/new.py was added"),
    "config added": (lambda path: (path / "config/new").write_text(""), "config/new was added"),
    "mode changed": (lambda path: (path / "app/app.py").chmod(0o755), "app/app.py was changed"),
    "secret opened": (lambda path: (path / "config/environment").chmod(0o644), "config/environment was changed"),
    "link turned": (lambda path: replace_link(path / "app/link", "pkg"), "app/link was changed"),
    "seal changed": (lambda path: (path / "release.json").write_text("{}"), "release.json is not the one"),
    "seal missing": (lambda path: (path / "release.json").unlink(), "release.json is missing"),
    "all missing": (shutil.rmtree, "is missing"),
}


@pytest.mark.parametrize("name", sorted(DAMAGES))
def test_whatever_differs_is_named_and_refused(store: Store, seal: str, root: Path, name: str) -> None:
    damage, words = DAMAGES[name]
    damage(root / "releases" / ID)
    with pytest.raises(ReleaseDamaged, match=words) as refused:
        store.verify(ID, seal)
    assert refused.value.left == "Nothing was switched."
    assert "pool_to=<id>" in refused.value.next_step


@pytest.mark.skipif(not ROOT, reason="owners can be given by root only")
def test_another_owner_is_a_change(store: Store, seal: str, root: Path) -> None:
    os.chown(root / "releases" / ID / "app/app.py", pwd.getpwnam(USER).pw_uid, 0)
    assert store.problems(ID, seal) == ["app/app.py was changed"]


def test_a_seal_that_was_made_anew_is_not_the_one_that_the_journal_knows(store: Store, seal: str, code: Path) -> None:
    (code / "app.py").write_text("VERSION = 2\n", encoding="utf-8")
    assert store.stage(spec(), replace(CONTENT, directory=str(code)), UNITS) != seal
    assert store.problems(ID, seal) == ["release.json is not the one that was sealed"]


def test_what_python_leaves_behind_is_no_change(store: Store, seal: str, root: Path) -> None:
    cache = root / "releases" / ID / "app" / "__pycache__"
    cache.mkdir()
    (cache / "app.pyc").write_bytes(b"")
    store.verify(ID, seal)


def test_an_unreadable_spec_is_no_traceback(store: Store) -> None:
    with pytest.raises(ReleaseDamaged, match="can't be read"):
        store.spec("9.9-00000000")


# -- failing leaves nothing ---------------------------------------------------------------------------------------


def nothing_left(root: Path) -> bool:
    return not list((root / "releases").iterdir()) and not list((root / "state").iterdir())


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["/bin/sh", "-c", "echo no such wheel >&2; exit 3"], "ended with 3: no such wheel"),
        (["/no/such/program"], "ended with 127"),
        (["sleep", "60"], "ended with 124: no end after 1 s"),
    ],
)
def test_a_build_that_fails_leaves_nothing(
    store: Store, code: Path, root: Path, command: list[str], words: str
) -> None:
    content = replace(CONTENT, directory=str(code), build=[["true"], command], build_seconds=1.0)
    with pytest.raises(BuildFailed, match=words) as refused:
        store.stage(spec(), content, UNITS)
    assert refused.value.left == "The release was removed; what runs goes on."
    assert nothing_left(root)


def test_a_build_has_no_shell_and_no_environment_of_ours(
    store: Store, code: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_CALLER", "hush")
    build = [["/bin/sh", "-c", "env > seen"], ["touch", "a;b $HOME"]]
    store.stage(spec(), replace(CONTENT, directory=str(code), build=build), UNITS)
    app = root / "releases" / ID / "app"
    assert "SECRET" not in (app / "seen").read_text(encoding="utf-8")
    assert (app / "a;b $HOME").exists()


def test_a_source_that_is_not_there_leaves_nothing(store: Store, root: Path) -> None:
    with pytest.raises(HostUnfit, match="could not be stored"):
        store.stage(spec(), replace(CONTENT, directory="/no/such/directory"), UNITS)
    assert nothing_left(root)


def test_an_unfinished_release_is_built_anew(store: Store, code: Path, root: Path) -> None:
    half = root / "releases" / ID / "app"
    half.mkdir(parents=True)
    (half / "half").write_text("x", encoding="utf-8")
    store.verify(ID, store.stage(spec(), replace(CONTENT, directory=str(code)), UNITS))
    assert not (half / "half").exists()


@pytest.fixture
def small_disk(root: Path) -> Iterator[Path]:
    """The pool's releases on a file system of 1 MiB."""
    releases = root / "releases"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "backstep", str(releases)], check=True)
    yield releases
    subprocess.run(["umount", str(releases)], check=True)


@pytest.mark.skipif(not ROOT, reason="only root can mount a small disk")
def test_a_full_disk_leaves_nothing(store: Store, code: Path, root: Path, small_disk: Path) -> None:
    (code / "big").write_bytes(b"x" * 2**21)
    with pytest.raises(HostUnfit, match="No space left on device") as refused:
        store.stage(spec(), replace(CONTENT, directory=str(code)), UNITS)
    assert "Make room below" in refused.value.next_step
    assert nothing_left(root)


# -- archives -----------------------------------------------------------------------------------------------------


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def archive_of(path: Path, *entries: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for info in entries:
            tar.addfile(info, io.BytesIO(b""))
    return path


OUTSIDE = {
    "parent": entry("../evil"),
    "parent in the middle": entry("a/../../evil"),
    "absolute": entry("/backstep-evil"),
    "link to a parent": entry("link", tarfile.SYMTYPE, "../../etc"),
    "absolute link": entry("link", tarfile.SYMTYPE, "/etc"),
    "deep link to a parent": entry("a/link", tarfile.SYMTYPE, "../../etc"),
    "hard link outside": entry("link", tarfile.LNKTYPE, "../evil"),
    "device": entry("null", tarfile.CHRTYPE),
    "pipe": entry("pipe", tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("name", sorted(OUTSIDE))
def test_an_archive_s_entry_that_leads_outside_is_refused_before_anything_is_unpacked(
    tmp_path: Path, name: str
) -> None:
    archive = archive_of(tmp_path / "x.tar", entry("first"), OUTSIDE[name])
    target = tmp_path / "app"
    target.mkdir()
    with pytest.raises(BadInput, match="The source archive's entry"):
        stores.unpack(archive, target)
    assert list(target.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app", "x.tar"]


def test_a_link_that_stays_inside_is_unpacked(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "x.tar", entry("a"), entry("b/link", tarfile.SYMTYPE, "../a"))
    target = tmp_path / "app"
    target.mkdir()
    stores.unpack(archive, target)
    assert os.readlink(target / "b" / "link") == "../a"


@pytest.mark.parametrize("raw", [b"", b"no archive", b"\x1f\x8b\x08\x00cut"])
def test_what_is_no_archive_is_said_to_be_none(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(raw)
    with pytest.raises(BadInput, match="can't be unpacked"):
        stores.unpack(tmp_path / "x.tar", tmp_path / "app")


def test_an_archive_that_was_cut_leaves_nothing(store: Store, code: Path, root: Path, tmp_path: Path) -> None:
    (code / "big").write_bytes(os.urandom(300_000))
    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as tar:
        tar.add(code, arcname=".")
    whole = (tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="can't be unpacked"):
        store.stage(spec(), replace(CONTENT, archive=str(tmp_path / "cut.tar.gz")), UNITS)
    assert nothing_left(root)


# -- users --------------------------------------------------------------------------------------------------------


def test_users_that_can_not_own_workers() -> None:
    stores.check_user(USER)
    with pytest.raises(BadInput, match="'backstep-nobody-knows' doesn't exist on this host"):
        stores.check_user("backstep-nobody-knows")
    with pytest.raises(BadInput, match="never run as root"):
        stores.check_user("root")
