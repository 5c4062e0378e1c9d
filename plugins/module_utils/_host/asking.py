# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking for a host whose lock somebody else holds: a drain gives way to a rollback, and to nothing else.

The request is a file next to the lock, and stands as long as its asker holds that file's own lock: one that dies asks
for nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any

from .._rollout.pool_state import ROLLBACK
from .._rollout.rules import pre_empts
from .._waiting.deadline import until
from .clock import moment
from .host import Host, try_lock

# Whoever looks whether there is a request holds its file for a moment.
_LOOK_SECONDS = 1.0


@contextlib.contextmanager
def asked_for(host: Host, request: dict[str, Any]) -> Iterator[None]:
    """Ask for the host while the block lasts.

    :param request: ``{token, kind, owner, adopt}``, as for ``rules.decide_grant``.
    """
    if request["kind"] != ROLLBACK:
        # Nobody gives way to it; and it would be in the way of a request that somebody does give way to.
        yield
        return
    host.layout.state.mkdir(parents=True, exist_ok=True)
    handle = os.open(host.layout.request, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        # Not the only one that asks: whoever does already is enough to end a drain.
        if until(_LOOK_SECONDS, lambda: try_lock(handle)):
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps(request).encode())
        yield
    finally:
        os.close(handle)


def pressing(host: Host) -> list[dict[str, Any]]:
    """The request that whoever holds the host's lock has to give way to now: one, or none."""
    try:
        handle = os.open(host.layout.request, os.O_RDONLY)
    except FileNotFoundError:
        return []
    try:
        if try_lock(handle, fcntl.LOCK_SH):
            return []
        request = json.loads(os.read(handle, 1 << 16) or b"null")
    except ValueError:
        # Its asker is just writing it.
        return []
    finally:
        os.close(handle)
    return [request] if request and pre_empts(host.state(), moment(), request) else []
