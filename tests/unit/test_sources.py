# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sources: the same code gives the same bytes, and what is not there or not right is refused by name."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput
from ansible_collections.backstep.workers.plugins.plugin_utils.sources import Source, kind_of, prepare_source, unusable


class Downloads:
    """Stands in for the network: what a URL gives, and which were asked for."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked: list[str] = []

    def __call__(self, url: str, target: Path) -> None:
        """Get a URL into a file."""
        self.asked.append(url)
        target.write_bytes(self.content)


def no_download(url: str, _target: Path) -> None:
    raise AssertionError(f"{url} was asked for")


def prepared(source: dict[str, Any], cache: Path) -> Source:
    return prepare_source(source, cache, no_download)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A directory of code with what a checkout leaves lying about."""
    code = tmp_path / "code"
    (code / "pkg" / "__pycache__").mkdir(parents=True)
    (code / ".git").mkdir()
    (code / ".git" / "HEAD").write_text("x", encoding="utf-8")
    (code / "pkg" / "__pycache__" / "a.pyc").write_bytes(b"x")
    (code / "app.py").write_text("VERSION = 1\n", encoding="utf-8")
    (code / "pkg" / "run").write_text("#!/bin/sh\n", encoding="utf-8")
    (code / "pkg" / "run").chmod(0o700)
    return code


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({}, "not none"),
        ({"directory": "/x", "path": "/y"}, "not directory and path"),
        ({"archive": "/x.tar"}, "needs its checksum"),
        ({"git": "/x"}, "git needs a ref"),
        ({"directory": None, "git": ""}, "not none"),
    ],
)
def test_exactly_one_whole_source(source: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words) as refused:
        kind_of(source)
    assert refused.value.message.startswith("pool_source can't be used: ")


def test_code_that_lies_on_the_hosts_is_not_sent(tmp_path: Path) -> None:
    source = prepared({"path": "/srv/app"}, tmp_path / "cache")
    assert (source.digest, source.archive, source.size) == ("path:/srv/app", None, 0)
    assert not (tmp_path / "cache").exists()


def test_the_same_files_give_the_same_digest_whoever_owns_them_and_whenever_they_were_made(
    code: Path, tmp_path: Path
) -> None:
    first = prepared({"directory": str(code)}, tmp_path / "one")
    copy = tmp_path / "copy"
    shutil.copytree(code, copy)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    (copy / "app.py").chmod(0o600)
    (copy / "__pycache__").mkdir()
    assert prepared({"directory": str(copy)}, tmp_path / "two").digest == first.digest
    (copy / "app.py").write_text("VERSION = 2\n", encoding="utf-8")
    assert prepared({"directory": str(copy)}, tmp_path / "three").digest != first.digest


def test_what_is_sent_and_what_is_left_out(code: Path, tmp_path: Path) -> None:
    source = prepared({"directory": str(code)}, tmp_path / "cache")
    assert source.archive is not None
    assert source.size == source.archive.stat().st_size
    with tarfile.open(source.archive) as tar:
        modes = {member.name: member.mode for member in tar.getmembers()}
        owners = {(member.uid, member.gid, member.mtime) for member in tar.getmembers()}
    assert modes == {"app.py": 0o644, "pkg": 0o755, "pkg/run": 0o755}
    assert owners == {(0, 0, 0)}


def test_a_source_is_packed_once_for_all_hosts_of_a_run(code: Path, tmp_path: Path) -> None:
    first = prepared({"directory": str(code)}, tmp_path / "cache")
    (code / "app.py").write_text("VERSION = 2\n", encoding="utf-8")
    assert prepared({"directory": str(code)}, tmp_path / "cache") == first


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="gone is not a directory on the controller"):
        prepared({"directory": str(tmp_path / "gone")}, tmp_path / "cache")


def test_no_secret_of_a_url_is_in_a_refusal() -> None:
    why = "http://u:hush-1@h/x.tar?token=hush-2&v=1 can't be had: <not http://h/y?hush-3 either>"
    assert unusable(why).message == (
        "pool_source can't be used: http://***@h/x.tar?*** can't be had: <not http://h/y?*** either>."
    )


def test_an_archive_with_its_checksum(tmp_path: Path) -> None:
    archive = tmp_path / "app.tar"
    archive.write_bytes(b"bytes")
    right = f"sha256:{hashlib.sha256(b'bytes').hexdigest()}"
    found = prepared({"archive": str(archive), "checksum": right.upper()}, tmp_path / "cache")
    assert found.digest == right
    assert found.archive is not None
    assert found.archive.read_bytes() == b"bytes"


@pytest.mark.parametrize(
    ("checksum", "words"),
    [("sha256:" + "0" * 64, "the checksum of .* is sha256:.*, not sha256:0000"), ("md5:1", "sha256:")],
)
def test_a_wrong_checksum_is_refused_and_nothing_of_it_is_kept(tmp_path: Path, checksum: str, words: str) -> None:
    archive = tmp_path / "app.tar"
    archive.write_bytes(b"bytes")
    for _attempt in range(2):
        with pytest.raises(BadInput, match=words):
            prepared({"archive": str(archive), "checksum": checksum}, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.digest"))


def test_an_archive_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"gone\.tar is not a file on the controller"):
        prepared({"archive": str(tmp_path / "gone.tar"), "checksum": "sha256:0"}, tmp_path / "cache")


def test_an_archive_by_its_url_is_downloaded_once(tmp_path: Path) -> None:
    download = Downloads(b"bytes")
    source = {"archive": "https://example.org/a.tar", "checksum": f"sha256:{hashlib.sha256(b'bytes').hexdigest()}"}
    first = prepare_source(source, tmp_path / "cache", download)
    assert prepare_source(source, tmp_path / "cache", download) == first
    assert download.asked == ["https://example.org/a.tar"]


# -- git ----------------------------------------------------------------------------------------------------------


def git(repository: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments],
        cwd=repository,
        env={**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with one commit, tagged."""
    repository = tmp_path / "repository"
    repository.mkdir()
    git(repository, "init", "--quiet", "--initial-branch=main")
    (repository / "app.py").write_text("VERSION = 1\n", encoding="utf-8")
    git(repository, "add", "app.py")
    git(repository, "commit", "--quiet", "--message=one")
    git(repository, "tag", "v1")
    return repository


@pytest.mark.parametrize("ref", ["main", "v1"])
def test_git_by_branch_and_tag(repository: Path, tmp_path: Path, ref: str) -> None:
    source = prepared({"git": str(repository), "ref": ref}, tmp_path / "cache")
    assert source.digest == f"git:{git(repository, 'rev-parse', 'HEAD')}"
    assert source.archive is not None
    with tarfile.open(source.archive) as tar:
        assert [member.name for member in tar.getmembers()] == ["app.py"]


def test_git_by_commit_and_a_branch_that_has_moved(repository: Path, tmp_path: Path) -> None:
    first = git(repository, "rev-parse", "HEAD")
    (repository / "app.py").write_text("VERSION = 2\n", encoding="utf-8")
    git(repository, "commit", "--quiet", "--all", "--message=two")
    assert prepared({"git": str(repository), "ref": first}, tmp_path / "one").digest == f"git:{first}"
    assert prepared({"git": str(repository), "ref": "main"}, tmp_path / "two").digest != f"git:{first}"


@pytest.mark.parametrize("ref", ["nowhere", "--help", "HEAD:app.py"])
def test_a_ref_that_is_not_there(repository: Path, tmp_path: Path, ref: str) -> None:
    with pytest.raises(BadInput, match="git rev-parse failed"):
        prepared({"git": str(repository), "ref": ref}, tmp_path / "cache")


def test_a_repository_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"git clone failed: .*does not exist"):
        prepared({"git": str(tmp_path / "gone"), "ref": "main"}, tmp_path / "cache")


def test_no_git_on_the_controller(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="there is no git on the controller"):
        prepared({"git": str(repository), "ref": "main"}, tmp_path / "cache")


def test_a_password_in_a_source_s_url_is_never_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="git clone failed") as refused:
        prepared({"git": "https://ana:hush@127.0.0.1:9/app.git", "ref": "main"}, tmp_path / "cache")
    assert "hush" not in str(refused.value.result())

    def wrong(url: str, target: Path) -> None:
        target.write_bytes(b"something else")

    with pytest.raises(BadInput, match=r"checksum of https://\*\*\*@example.org/a.tar is") as refused:
        prepare_source({"archive": "https://ana:hush@example.org/a.tar", "checksum": "sha256:0"}, tmp_path / "c", wrong)
    assert "hush" not in str(refused.value.result())
