# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal on disk: chained, only appended to, and no step without its event."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host.journal import Journal
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import JournalDamaged
from ansible_collections.backstep.workers.plugins.module_utils._rollout.rules import Moment
from ansible_collections.backstep.workers.plugins.module_utils._rollout.state import JOURNAL_SCHEMA

NOW = Moment("boot-1", 100.0, 1_000_000.0)
COLLECTIONS = Path(__file__).resolve().parents[2] / "build" / "collections"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A journal of three events."""
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("stage_started", NOW, 1, "controller", release="1.0-a", version="1.0")
    journal.append("staged", NOW, 1, "controller", release="1.0-a", seal="x")
    journal.append("quarantined", NOW, 1, "controller", release="1.0-a", reason="")
    return journal


def test_a_journal_that_is_not_there_is_empty_and_reading_makes_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.read() == ([], 0)
    assert journal.state().current is None
    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_can_not_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="directory"):
        Journal(tmp_path).read()


def test_each_event_carries_the_digest_of_the_one_before(journal: Journal) -> None:
    events, torn = journal.read()
    assert torn == 0
    assert [event["seq"] for event in events] == [1, 2, 3]
    assert events[0]["previous"] == "0" * 64
    for before, event in itertools.pairwise(events):
        assert event["previous"] == before["hash"]
    assert events[1] | {"boot": "boot-1", "up": 100.0, "time": 1_000_000.0, "by": "controller"} == events[1]


def test_the_journal_is_for_root_only(journal: Journal) -> None:
    assert journal.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_changed_line_is_refused_by_its_number_and_left_alone(journal: Journal, number: int) -> None:
    lines = journal.path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1].replace(b'"1.0-a"', b'"6.6-x"')
    changed = b"".join(lines)
    journal.path.write_bytes(changed)
    with pytest.raises(JournalDamaged, match=f"Line {number} of .* was changed or cut") as refused:
        journal.read()
    assert refused.value.details == {"line": number}
    with pytest.raises(JournalDamaged):
        journal.append("staged", NOW, 1, "controller", release="1.0-a", seal="x")
    assert journal.path.read_bytes() == changed


def test_a_line_taken_out_is_noticed_at_the_next_one(journal: Journal) -> None:
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(lines[0] + lines[2])
    with pytest.raises(JournalDamaged, match="Line 2"):
        journal.read()


@pytest.mark.parametrize("line", [b"{}", b"[]", b"null", b"7", b'"text"', b"not json", b"", b"\xff\xfe"])
def test_a_line_that_is_no_event(journal: Journal, line: bytes) -> None:
    journal.path.write_bytes(journal.path.read_bytes() + line + b"\n")
    with pytest.raises(JournalDamaged, match="Line 4"):
        journal.read()


def test_a_changed_line_whose_own_digest_was_made_anew_breaks_the_chain(journal: Journal) -> None:
    lines = journal.path.read_bytes().splitlines()
    event: dict[str, Any] = {**json.loads(lines[1]), "release": "6.6-x"}
    event["hash"] = digest_of(event)
    lines[1] = json.dumps(event, sort_keys=True, separators=(",", ":")).encode()
    journal.path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(JournalDamaged, match="Line 3"):
        journal.read()


def digest_of(event: dict[str, Any]) -> str:
    body = {key: value for key, value in event.items() if key != "hash"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_half_a_line_at_the_end_is_ignored_and_the_next_event_says_so(journal: Journal) -> None:
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + b'{"seq":4,"eve')
    events, torn = journal.read()
    assert (len(events), torn) == (3, 13)
    assert journal.path.read_bytes() == whole + b'{"seq":4,"eve'
    journal.append("pruned", NOW, 2, "controller", release="1.0-a")
    events, torn = journal.read()
    assert ([event["event"] for event in events[3:]], torn) == (["torn_line", "pruned"], 0)
    assert events[3]["bytes"] == 13
    assert journal.path.read_bytes().startswith(whole)


def test_a_newer_schema_is_refused_politely(journal: Journal) -> None:
    event: dict[str, Any] = json.loads(journal.path.read_bytes().splitlines()[0])
    event["schema"] = JOURNAL_SCHEMA + 1
    event["hash"] = digest_of(event)
    journal.path.write_bytes(json.dumps(event).encode() + b"\n")
    with pytest.raises(JournalDamaged, match="newer Backstep") as refused:
        journal.read()
    assert "newer version of backstep.workers" in refused.value.next_step
    assert refused.value.left == "Nothing was changed on this host."


def test_old_lines_go_and_what_they_add_up_to_stays(journal: Journal) -> None:
    before, last = journal.state(), journal.read()[0][-1]
    assert journal.cut(NOW.time, NOW, stay=0, go=1) == 0  # none is older
    later = Moment("boot-1", 900.0, NOW.time + 800)
    assert journal.cut(NOW.time + 1, later, stay=2, go=2) == 0  # not worth it
    assert journal.cut(NOW.time + 1, later, stay=1, go=1) == 2
    events, _torn = journal.read()
    assert [(event["event"], event["seq"]) for event in events] == [
        ("so_far", 2), ("quarantined", 3), ("journal_cut", 4)
    ]  # fmt: skip
    assert events[1] == last
    assert replace(journal.state(), changed=before.changed) == before
    assert journal.path.stat().st_mode & 0o777 == 0o600
    journal.append("pruned", later, 2, "controller", release="1.0-a")
    assert journal.cut(later.time + 1, later, stay=0, go=1) == 4
    assert [event["seq"] for event in journal.read()[0]] == [5, 6]
    assert journal.state().last_token == 2


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_journal_that_was_cut_can_not_be_changed_unnoticed(journal: Journal, line: int, anew: bool) -> None:
    """Not even by who makes a line's digest anew: the next one has it, and the last cut that of the first line."""
    journal.cut(NOW.time + 1, NOW, stay=1, go=1)
    journal.append("pruned", NOW, 2, "controller", release="1.0-a")
    lines = [json.loads(raw) for raw in journal.path.read_bytes().splitlines()]
    lines[line]["up"] = 5.0
    if anew:
        lines[line]["hash"] = digest_of(lines[line])
    journal.path.write_bytes(b"".join(json.dumps(each).encode() + b"\n" for each in lines))
    told = 1 if line == 0 else line + 1 + anew
    with pytest.raises(JournalDamaged, match=f"Line {told} of"):
        journal.read()


def test_a_first_line_that_stands_for_others_stands_nowhere_else(journal: Journal) -> None:
    whole = journal.path.read_bytes()
    journal.cut(NOW.time + 1, NOW, stay=1, go=1)
    first, *rest = journal.path.read_bytes().splitlines(keepends=True)
    for raw in (whole + first, first + first, b"".join(rest), first + rest[0]):
        journal.path.write_bytes(raw)
        with pytest.raises(JournalDamaged):
            journal.read()


# Run by a process of its own, so that the limit is nobody else's: the kernel then refuses the write, as on a full disk.
_FULL = """
import resource, signal, sys
from pathlib import Path
from ansible_collections.backstep.workers.plugins.module_utils._host.journal import Journal
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import HostUnfit
from ansible_collections.backstep.workers.plugins.module_utils._rollout.rules import Moment
path, room = Path(sys.argv[1]), int(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, size + room))
try:
    Journal(path).append("pruned", Moment("boot-1", 1.0, 2.0), 2, "controller", release="1.0-a")
except HostUnfit as error:
    print(error)
"""


@pytest.mark.parametrize("room", [0, 40])
def test_a_full_disk_refuses_the_step_and_leaves_the_journal_whole(journal: Journal, room: int) -> None:
    before = journal.path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(journal.path), str(room)],
        env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "can't be written" in done.stdout
    assert "The step was not taken; what runs goes on." in done.stdout
    assert "Make room on the file system of" in done.stdout
    assert journal.path.read_bytes() == before
