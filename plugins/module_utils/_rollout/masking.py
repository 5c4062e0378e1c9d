# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text that may be shown: without passwords and other secrets. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote, unquote_plus

# What is shorter than this is no secret, and hiding it would hide everything else.
_SHORTEST = 4
_HIDDEN = "***"
_IN_QUERY = re.compile(r"([?&][^=&#]*password=)([^&#]*)", re.IGNORECASE)
_IN_AUTHORITY = re.compile(r"(://[^/?#@:]*:)(.*)(@[^@/?#]*(?:[/?#]|$))")


def mask(url: str) -> str:
    """The URL with ``***`` in place of each password. Works on malformed URLs too."""
    return _IN_QUERY.sub(rf"\1{_HIDDEN}", _IN_AUTHORITY.sub(rf"\1{_HIDDEN}\3", url))


def _secrets(url: str) -> set[str]:
    # Celery names several sentinels by several URLs in one.
    found = {match.group(2) for part in (url, *url.split(";")) for match in _IN_AUTHORITY.finditer(part)}
    found |= {match.group(2) for match in _IN_QUERY.finditer(url)}
    return {form for secret in found for form in (secret, unquote(secret), unquote_plus(secret)) if form}


def scrub(text: str, url: str) -> str:
    """``text`` (a client library's message, say) without the URL's password in any of its spellings."""
    text = text.replace(url, mask(url))
    for secret in sorted(_secrets(url), key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    return text


def hide(text: str, secrets: Iterable[str]) -> str:
    """``text`` without any of the secrets, any line or password of one, or the password of any other URL."""
    forms = {form for secret in secrets for form in (secret, *secret.splitlines(), *_secrets(secret))}
    for form in sorted(forms, key=len, reverse=True):
        if len(form.strip()) >= _SHORTEST:
            text = text.replace(form, _HIDDEN)
    return mask(text)
