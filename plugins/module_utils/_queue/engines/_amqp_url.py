# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The URL of a RabbitMQ broker, and of its management API."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from ..._rollout.errors import BadInput
from ..url import check_url

_EXAMPLE = "amqp://user:password@rabbit.example.org:5672/vhost"


class Place(NamedTuple):
    """Where a broker is, and as whom to come."""

    host: str
    port: int
    vhost: str
    user: str
    password: str
    tls: bool
    management: str
    """The API's URL, without user and password: these are the same."""


def parse(url: str) -> Place:
    """What a URL says, read as pika and most clients read it: no path, or an empty one, is the virtual host ``/``.

    :raises BadInput: it can't be used.
    """
    vhost = "virtual host (write / in one as %2F)"
    check_url(url, ("amqp", "amqps"), path=r"(/[^/]*)?", path_is=vhost, example=_EXAMPLE)
    parts = urlsplit(url)
    tls = parts.scheme == "amqps"
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    host = parts.hostname or ""
    shown = f"[{host}]" if ":" in host else host
    management = options.pop("management", "") or f"http{'s' if tls else ''}://{shown}:{15671 if tls else 15672}"
    where = urlsplit(management)
    wrong = ""
    if options:
        wrong = f"it has options that aren't known here: {', '.join(sorted(options))}"
    elif where.scheme not in ("http", "https") or not where.hostname:
        wrong = "its option management has to be a URL with http:// or https://"
    elif "@" in where.netloc:
        wrong = "its option management may name no user: the broker's own is taken"
    if wrong:
        raise BadInput(
            f"The broker URL can't be used: {wrong}.",
            left="Nothing was changed.",
            next_step=f"Set pool_broker_url (broker_url), for example {_EXAMPLE}?management=https://rabbit.example.org.",
        )
    return Place(
        host=host,
        port=parts.port or (5671 if tls else 5672),
        vhost=unquote(parts.path[1:]) or "/",
        user=unquote(parts.username or "guest"),
        password=unquote(parts.password or "guest"),
        tls=tls,
        management=management.rstrip("/"),
    )
