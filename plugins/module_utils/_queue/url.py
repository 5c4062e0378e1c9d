# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Broker URLs: checked before use, and never shown with their password."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple, Optional
from urllib.parse import parse_qsl, urlencode, urlsplit

from .._rollout.errors import BadInput
from .._rollout.masking import mask, scrub

# redis+sentinel://user:password@host:26379,host:26379/name/database?options; TLS for both kinds with rediss+sentinel.
_WATCHED = re.compile(r"(?i:(rediss?)\+sentinel)://(?:([^/?#]*)@)?([^@/?#]*)/?([^/?#]*)/?([^?#]*)(?:\?([^#]*))?")
# redis+cluster://user:password@host:6379,host:6379/?options; TLS with rediss+cluster.
_CLUSTERED = re.compile(r"(?i:(rediss?)\+cluster)://(?:([^/?#]*)@)?([^@/?#]*)/?(?:\?([^#]*))?")
_PLACE = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:\s]+)(?::(\d+))?")
_REDIS_PORT, _SENTINEL_PORT = 6379, 26379
_SENTINEL_EXAMPLE = "redis+sentinel://:password@one.example.org:26379,two.example.org:26379/mymaster/0"
_CLUSTER_EXAMPLE = "redis+cluster://:password@one.example.org:6379,two.example.org:6379/"


PREFIX_OPTION = "prefix"
"""Of a URL: how BullMQ's keys begin, where that isn't ``bull``."""


class Watched(NamedTuple):
    """A Redis whose address is asked of the sentinels that watch over it."""

    sentinels: tuple[tuple[str, int], ...]
    name: str
    """How they call it."""
    server: str
    """All that the URL says of Redis itself, as a URL with the host ``sentinel``, which nobody connects to."""
    username: Optional[str]
    """Of the sentinels themselves, as their password is."""
    password: Optional[str]


def watched(url: str) -> Optional[Watched]:
    """What a URL says of a Redis under Sentinel; None when it is another kind of URL.

    :raises BadInput: it names no sentinel, no Redis that they watch over, or no database number.
    """
    found = _WATCHED.fullmatch(url)
    if found is None:
        return None
    scheme, user, places, name, database, query = (part or "" for part in found.groups())
    if not name:
        raise _bad(url, "it doesn't say how the sentinels call the Redis, for example /mymaster at its end")
    if not re.fullmatch(r"\d*", database):
        raise _bad(url, f"'{database}' is no database number")
    options = parse_qsl(query, keep_blank_values=True)
    own = {f"sentinel_{option}" for option in ("username", "password")}
    rest = urlencode([(option, value) for option, value in options if option not in own])
    given = dict(options)
    return Watched(
        tuple(_place(url, place, "sentinel") for place in places.split(",")),
        name,
        f"{scheme.lower()}://{user}{'@' if user else ''}sentinel/{database}{'?' if rest else ''}{rest}",
        given.get("sentinel_username"),
        given.get("sentinel_password"),
    )


class Clustered(NamedTuple):
    """A Redis Cluster, some of whose nodes are named."""

    nodes: tuple[tuple[str, int], ...]
    server: str
    """All that the URL says of each node, as a URL with the host ``node``, which nobody connects to."""


def clustered(url: str) -> Optional[Clustered]:
    """What a URL says of a Redis Cluster; None when it is another kind of URL.

    :raises BadInput: it names no node, or a database, which a cluster doesn't have.
    """
    if not url.lower().startswith(("redis+cluster://", "rediss+cluster://")):
        return None
    found = _CLUSTERED.fullmatch(url)
    if found is None:
        raise _bad(url, "a cluster has no databases to choose from", _CLUSTER_EXAMPLE)
    scheme, user, places, query = (part or "" for part in found.groups())
    return Clustered(
        tuple(_place(url, place, "node") for place in places.split(",")),
        f"{scheme.lower()}://{user}{'@' if user else ''}node/0{'?' if query else ''}{query}",
    )


def _place(url: str, place: str, what: str) -> tuple[str, int]:
    found = _PLACE.fullmatch(place)
    usual, example = (_REDIS_PORT, _CLUSTER_EXAMPLE) if what == "node" else (_SENTINEL_PORT, _SENTINEL_EXAMPLE)
    port = int(found.group(2) or usual) if found else 0
    if found is None or not 0 < port < 65536:
        raise _bad(url, f"'{place}' is no place of a {what}" if place else f"it names no {what}", example)
    return found.group(1).strip("[]"), port


def taken_out(url: str, option: str) -> tuple[str, str]:
    """A URL without an option that clients don't know, and what it said; "" when it isn't there."""
    before, _mark, query = url.partition("?")
    options = parse_qsl(query, keep_blank_values=True)
    rest = urlencode([(name, value) for name, value in options if name != option])
    said = dict(options).get(option)
    return (url, "") if said is None else (f"{before}{'?' if rest else ''}{rest}", said)


def check_url(
    url: str,
    schemes: Collection[str],
    path: str = r"(/\d*)?",
    path_is: str = "database number",
    example: str = "redis://:password@redis.example.org:6379/0",
) -> str:
    """The URL, if it can be one of a broker.

    :param schemes: what the engine's client understands, for example ``redis``.
    :param path: what the path may look like, and ``path_is`` what it is, in words.
    :raises BadInput: wrong scheme, no host (no path for ``unix``), or a port that is no number.
    """
    if url.partition("://")[0].lower() in schemes and (watched(url) or clustered(url)):
        return url
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # reading it is what checks it
    except ValueError as error:
        raise _bad(url, scrub(str(error), url), example) from None
    if parts.scheme not in schemes:
        known = ", ".join(f"{scheme}://" for scheme in sorted(schemes))
        raise _bad(url, f"it has to begin with one of {known}", example)
    if parts.scheme == "unix":
        if not parts.path:
            raise _bad(url, "it names no socket", example)
    elif not parts.hostname:
        raise _bad(url, "it names no host", example)
    elif not re.fullmatch(path, parts.path):
        raise _bad(url, f"'{parts.path[1:]}' is no {path_is}", example)
    return url


def _bad(url: str, why: str, example: str = _SENTINEL_EXAMPLE) -> BadInput:
    return BadInput(
        f"The broker URL {mask(url)} can't be used: {why}.",
        left="Nothing was changed.",
        next_step=f"Set pool_broker_url (broker_url), for example {example}.",
    )


def for_workers(url: str) -> str:
    """The URL as client libraries know it: without what only Backstep has."""
    if url.lower().startswith(("amqp://", "amqps://")):
        return url.partition("?")[0]
    return taken_out(url, PREFIX_OPTION)[0]


def without_secrets(url: str) -> str:
    """The URL without user, password and query: which broker it is, whoever asks."""
    guarded = _WATCHED.fullmatch(url)
    if guarded:
        path = "/".join(filter(None, guarded.group(4, 5)))
        return f"{guarded.group(1).lower()}+sentinel://{guarded.group(3)}/{path}"
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def in_words(url: str) -> str:
    """The broker as a message names it: ``redis at redis.example.org:6379/0``.

    Not as a URL: one without a password is, letter for letter, the option that Ansible hides from every output.
    """
    scheme, place = without_secrets(url).split("://", 1)
    return f"{scheme} at {place}"
