# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this host reaches a broker at all, whatever a release's workers make of it."""

from __future__ import annotations

import socket
from typing import Optional
from urllib.parse import unquote, urlsplit

from .._waiting.deadline import Deadline
from .host import Host

_SECONDS = 3.0
# For one more server when the others have taken it all.
_LEAST_SECONDS = 0.1
# By the scheme of a URL, where a server listens that is named without a port.
_PORTS = {
    "redis": 6379, "rediss": 6379, "redis+sentinel": 26379, "rediss+sentinel": 26379, "redis+cluster": 6379,
    "rediss+cluster": 6379, "amqp": 5672, "amqps": 5671,
}  # fmt: skip


def unreachable(host: Host, release: str) -> str:
    """Why this host has no connection to the broker of a release, or "" when it has one, or can't tell."""
    url = host.broker_url(host.store.spec(release).broker)
    return why_unreachable(url) if url else ""


def why_unreachable(url: str) -> str:
    """Why none of the servers that a broker's URL names takes a connection, or "" when one does.

    At most 3 seconds, beside what looking up names takes.
    """
    deadline, said = Deadline(_SECONDS), ""
    for place in _places(url):
        refused = _refused(place, max(_LEAST_SECONDS, deadline.left))
        if refused is None:
            return ""
        said = said or refused
    return said


def _places(url: str) -> list[tuple[str, int]]:
    """Hosts and ports; of a socket in the file system its path, and 0."""
    scheme, _colon, rest = url.partition("://")
    if scheme == "unix":
        return [(urlsplit(url).path, 0)]
    netloc = rest.partition("/")[0].partition("?")[0].rpartition("@")[2]
    return [_place(place, _PORTS[scheme.lower()]) for place in netloc.split(",")] if scheme.lower() in _PORTS else []


def _place(text: str, port: int) -> tuple[str, int]:
    host, colon, given = text.rpartition(":")
    if not colon or not given.isdecimal():
        host, given = text, str(port)
    return unquote(host).strip("[]"), int(given)


def _refused(place: tuple[str, int], seconds: float) -> Optional[str]:
    """What was said instead of a connection; None when there is one."""
    name, port = place
    try:
        if port:
            socket.create_connection(place, seconds).close()
            return None
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            connection.connect(name)
            return None
    except (OSError, UnicodeError) as error:
        return f"{name}{f':{port}' if port else ''}: {getattr(error, 'strerror', None) or error}"
