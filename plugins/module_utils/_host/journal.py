# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal: append-only, one JSON object a line, each line carrying the digest of the line before it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .._rollout.errors import HostUnfit, JournalDamaged
from .._rollout.rules import Moment
from .._rollout.state import JOURNAL_SCHEMA, Event, PoolState, fold
from .files import fsync_directory, read_if_there

_FIRST = "0" * 64


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


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
        for number, line in enumerate(lines, 1):
            event = self._check_line(line, number, previous)
            previous = event["hash"]
            events.append(event)
        return events, len(torn)

    def _check_line(self, line: bytes, number: int, previous: str) -> Event:
        event: Event
        try:
            event = json.loads(line)
            sealed = {key: value for key, value in event.items() if key != "hash"}
            sound = event["previous"] == previous and event["hash"] == _digest(sealed) and event["seq"] == number
            schema = event["schema"]
        except (ValueError, KeyError, AttributeError, TypeError):
            sound, schema = False, JOURNAL_SCHEMA
        if not sound:
            raise JournalDamaged(
                f"Line {number} of {self.path} was changed or cut: it doesn't fit the line before it.",
                left="Nothing was changed on this host.",
                next_step="Compare the file with a backup. What runs is not affected. See: bin/backstep verify",
                line=number,
            )
        if schema > JOURNAL_SCHEMA:
            raise JournalDamaged(
                f"{self.path} was written by a newer Backstep (schema {schema}, this one knows {JOURNAL_SCHEMA}).",
                left="Nothing was changed on this host.",
                next_step="Use the newer version of backstep.workers.",
            )
        return event

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

    @staticmethod
    def _line(event: str, now: Moment, token: int, by: str, data: dict[str, Any], events: list[Event]) -> Event:
        line = {
            "schema": JOURNAL_SCHEMA,
            "seq": len(events) + 1,
            "time": round(now.time, 3),
            "up": round(now.up, 3),
            "boot": now.boot,
            "token": token,
            "by": by,
            "event": event,
            **data,
            "previous": events[-1]["hash"] if events else _FIRST,
        }
        line["hash"] = _digest(line)
        return line

    def _write(self, line: Event) -> None:
        new = not self.path.exists()
        raw = json.dumps(line, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
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
