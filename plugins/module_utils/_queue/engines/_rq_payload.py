# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A task's name out of an RQ job, without loading its payload. Pure."""

from __future__ import annotations

import pickle
import pickletools
import re
import zlib
from datetime import datetime, timezone
from typing import Optional

# The name stands at the very beginning: this much is unpacked, whatever the payload's size.
_HEAD_BYTES = 64 * 1024
_CALL = re.compile(r"([A-Za-z_]\w*(?:\.\w+)+)\(")
_JSON_HEAD = re.compile(rb'\s*\[\s*"([^"\\]+)"')
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


def name_in_description(description: str) -> Optional[str]:
    """``app.tasks.send`` from ``app.tasks.send(1, to='x')``; ``None`` when the app wrote a text of its own."""
    found = _CALL.match(description)
    return found.group(1) if found else None


def name_in_payload(data: bytes) -> Optional[str]:
    """The name in a payload: its first string, found by reading pickle opcodes (nothing is executed) or as JSON."""
    try:
        head = zlib.decompressobj().decompress(data, _HEAD_BYTES)
    except zlib.error:
        head = data[:_HEAD_BYTES]  # RQ reads uncompressed payloads too
    as_json = _JSON_HEAD.match(head)
    if as_json:
        return as_json.group(1).decode("utf-8", "replace")
    try:
        for opcode, argument, _position in pickletools.genops(head):
            if "UNICODE" in opcode.name or "STRING" in opcode.name:
                return argument if isinstance(argument, str) else None
    except ValueError:
        pass  # no pickle, or cut off before the first string: the name can't be told
    return None


def canary_payload(task: str) -> bytes:
    """The payload of a call without arguments."""
    return zlib.compress(pickle.dumps((task, None, (), {}), protocol=4))


def to_time(epoch: float) -> str:
    """A time as RQ writes it, which also sorts as text."""
    return datetime.fromtimestamp(epoch, timezone.utc).strftime(_TIME_FORMAT)


def from_time(text: str) -> Optional[float]:
    """Epoch seconds of a time that RQ wrote; ``None`` when it is empty or in another form."""
    try:
        return datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None
