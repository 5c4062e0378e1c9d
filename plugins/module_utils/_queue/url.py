# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Broker URLs: checked before use, and never shown with their password."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import urlsplit

from .._rollout.errors import BadInput
from .._rollout.masking import mask, scrub


def check_url(url: str, schemes: Collection[str]) -> str:
    """The URL, if it can be one of a broker.

    :param schemes: what the engine's client understands, for example ``redis``.
    :raises BadInput: wrong scheme, no host (no path for ``unix``), or a port that is no number.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # reading it is what checks it
    except ValueError as error:
        raise _bad(url, scrub(str(error), url)) from None
    if parts.scheme not in schemes:
        raise _bad(url, f"it has to begin with one of {', '.join(f'{scheme}://' for scheme in sorted(schemes))}")
    if parts.scheme == "unix":
        if not parts.path:
            raise _bad(url, "it names no socket")
    elif not parts.hostname:
        raise _bad(url, "it names no host")
    elif not re.fullmatch(r"(/\d*)?", parts.path):
        raise _bad(url, f"'{parts.path[1:]}' is no database number")
    return url


def _bad(url: str, why: str) -> BadInput:
    return BadInput(
        f"The broker URL {mask(url)} can't be used: {why}.",
        left="Nothing was changed.",
        next_step="Set pool_broker_url (broker_url), for example redis://:password@redis.example.org:6379/0.",
    )


def without_secrets(url: str) -> str:
    """The URL without user, password and query: which broker it is, whoever asks."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def in_words(url: str) -> str:
    """The broker as a message names it: ``redis at redis.example.org:6379/0``.

    Not as a URL: one without a password is, letter for letter, the option that Ansible hides from every output.
    """
    scheme, place = without_secrets(url).split("://", 1)
    return f"{scheme} at {place}"
