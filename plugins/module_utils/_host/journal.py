# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal: append-only, one JSON object a line, each line carrying the digest of the line before it.

Old lines can be cut off. Then the first line tells what they add up to, and the digest of the last of them, from which
the chain goes on; a line at the end has the digest of that first one, so that it can't be changed unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .._rollout.errors import HostUnfit, JournalDamaged
from .._rollout.pool_state import Event, PoolState
from .._rollout.rules import Moment
from .._rollout.snapshot import CUT, SO_FAR, told
from .._rollout.state import JOURNAL_SCHEMA, fold, fold_in
from .files import fsync_directory, read_if_there, write_file

_FIRST = "0" * 64
# What the lines of a journal need that was never cut: older versions of Backstep can read it.
_PLAIN = 1
_MODE = 0o600
# Who writes what stands for old lines: nobody's step, so it renews no lease.
_ITSELF = "journal"
# The youngest stay for whoever asks what happened; and a cut that would take away only a few isn't worth it.
_STAY_AT_LEAST = 500
_GO_AT_LEAST = 100


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _link(event: Event) -> str:
    """What the next line has as ``previous``."""
    return str(event["stands_for"] if event["event"] == SO_FAR else event["hash"])


def _as_bytes(line: Event) -> bytes:
    return json.dumps(line, sort_keys=True, separators=(",", ":")).encode() + b"\n"


class Journal:
    """One pool's journal on this host. Reading never writes; a missing file is an empty journal."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[list[Event], int]:
        """All events, and the number of bytes of a torn last line (0 when there is none).

        :raises JournalDamaged: a line other than the last was changed or cut, or a newer schema wrote it.
        """
        raw = read_if_there(self.path) or b""
        *lines, torn = raw.split(b"\n")
        events: list[Event] = []
        previous = _FIRST
        offset = 0
        for number, line in enumerate(lines, 1):
            event = self._check_line(line, number, offset, previous)
            previous = _link(event)
            offset = event["seq"] - number
            events.append(event)
        self._check_first(events)
        return events, len(torn)

    def _check_line(self, line: bytes, number: int, offset: int, previous: str) -> Event:
        event: Event
        try:
            event = json.loads(line)
            sealed = {key: value for key, value in event.items() if key != "hash"}
            sound = event["previous"] == previous and event["hash"] == _digest(sealed)
            if event["event"] == SO_FAR:
                sound = sound and number == 1 and isinstance(event["stands_for"], str) and event["seq"] >= 1
            else:
                sound = sound and event["seq"] == number + offset
            schema = event["schema"]
        except (ValueError, KeyError, AttributeError, TypeError):
            sound, schema = False, JOURNAL_SCHEMA
        if not sound:
            raise self._damaged(number)
        if schema > JOURNAL_SCHEMA:
            raise JournalDamaged(
                f"{self.path} was written by a newer Backstep (schema {schema}, this one knows {JOURNAL_SCHEMA}).",
                left="Nothing was changed on this host.",
                next_step="Use the newer version of backstep.workers.",
            )
        return event

    def _check_first(self, events: list[Event]) -> None:
        """A journal that was cut has to begin as its last cut has noted."""
        cuts = [event["first"] for event in events if event["event"] == CUT]
        is_cut = bool(events) and events[0]["event"] == SO_FAR
        if is_cut != bool(cuts) or (is_cut and events[0]["hash"] != cuts[-1]):
            raise self._damaged(1)

    def _damaged(self, number: int) -> JournalDamaged:
        return JournalDamaged(
            f"Line {number} of {self.path} was changed or cut: it doesn't fit the line before it.",
            left="Nothing was changed on this host.",
            next_step="Compare the file with a backup. What runs is not affected. See: bin/backstep verify",
            line=number,
        )

    def state(self) -> PoolState:
        """What the events add up to."""
        return fold(self.read()[0])

    def append(self, event: str, now: Moment, token: int, by: str, **data: Any) -> Event:
        """Write one event durably; the step it speaks of may be taken only after this returns.

        :raises HostUnfit: the event could not be written (a full disk): the step must not be taken.
        """
        events, torn = self.read()
        try:
            if torn:
                self._drop_torn_line(torn)
                note = self._line("torn_line", now, token, by, {"bytes": torn}, events)
                self._write(note)
                events.append(note)
            line = self._line(event, now, token, by, data, events)
            self._write(line)
        except OSError as error:
            raise HostUnfit(
                f"The journal {self.path} can't be written: {error.strerror or error}.",
                left="The step was not taken; what runs goes on.",
                next_step=f"Make room on the file system of {self.path.parent} and run the same command again.",
            ) from None
        return line

    def cut(self, before: float, now: Moment, stay: int = _STAY_AT_LEAST, go: int = _GO_AT_LEAST) -> int:
        """Put what old events add up to in their place, in one step; how many have gone.

        :param before: which ones are old (epoch seconds).
        :param stay: how many of the youngest stay, whatever their age.
        :param go: with fewer old ones nothing is done.
        :raises OSError: there was no room; the journal is as it was.
        """
        events, torn = self.read()
        young = next((place for place, event in enumerate(events) if event["time"] >= before), len(events))
        gone = min(young, len(events) - stay)
        if torn or gone < max(1, go):
            return 0
        old, kept = events[:gone], events[gone:]
        state = fold(old)
        # As if it were the last of the old events: it changes neither the number that is given next, nor the time.
        then = Moment(now.boot, now.up, state.changed)
        so_far = {"state": told(state), "stands_for": old[-1]["hash"], "schema": JOURNAL_SCHEMA, "seq": old[-1]["seq"]}
        first = self._line(SO_FAR, then, state.last_token, _ITSELF, so_far, [])
        whole = [first, *kept]
        noted = {"first": first["hash"], "events": gone, "schema": JOURNAL_SCHEMA}
        for event in kept:
            fold_in(state, event)
        whole.append(self._line(CUT, now, state.last_token, _ITSELF, noted, whole))
        write_file(self.path, b"".join(map(_as_bytes, whole)), _MODE)
        return gone

    @staticmethod
    def _line(event: str, now: Moment, token: int, by: str, data: dict[str, Any], events: list[Event]) -> Event:
        line = {
            "schema": _PLAIN,
            "seq": events[-1]["seq"] + 1 if events else 1,
            "time": round(now.time, 3),
            "up": round(now.up, 3),
            "boot": now.boot,
            "token": token,
            "by": by,
            "event": event,
            **data,
            "previous": _link(events[-1]) if events else _FIRST,
        }
        line["hash"] = _digest(line)
        return line

    def _write(self, line: Event) -> None:
        new = not self.path.exists()
        raw = _as_bytes(line)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _MODE)
        try:
            before = os.fstat(handle).st_size
            try:
                written = os.write(handle, raw)
                if written != len(raw):
                    raise OSError(28, "no space left for the whole line")
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, before)
                raise
        finally:
            os.close(handle)
        if new:
            fsync_directory(self.path.parent)

    def _drop_torn_line(self, torn: int) -> None:
        handle = os.open(self.path, os.O_WRONLY)
        try:
            os.ftruncate(handle, os.fstat(handle).st_size - torn)
            os.fsync(handle)
        finally:
            os.close(handle)
