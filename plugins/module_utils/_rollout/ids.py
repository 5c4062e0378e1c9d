# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a release gets its id: the same on every host, and another one as soon as anything that is run changes."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from .errors import BadInput

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_POOL = re.compile(r"[a-z][a-z0-9_-]{0,31}")


def check_pool_name(pool: str) -> str:
    """The pool's name, which becomes part of unit and path names.

    :raises BadInput: it has other characters than a-z, 0-9, - and _, or is longer than 32.
    """
    if not _POOL.fullmatch(pool):
        raise BadInput(
            f"pool_name '{pool}' can't be used: a letter first, then only a-z, 0-9, - and _ (at most 32).",
            left="Nothing was changed.",
        )
    return pool


def release_id(version: str, identity: dict[str, Any]) -> str:
    """``<version>-<8 hex digits>``: the digits are a digest of everything that makes the release what it is.

    :param identity: JSON-able; source digest, config digests, environment digest, command, queues, processes, ...
    :raises BadInput: the version has characters that can't be part of a unit name.
    """
    if not _VERSION.fullmatch(version):
        raise BadInput(
            f"pool_version '{version}' can't be used: it may hold letters, digits, '.', '_', '+' and '-' (at most 64).",
            left="Nothing was changed.",
        )
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()
    return f"{_in_id(version)}-{hashlib.sha256(canonical).hexdigest()[:8]}"


def is_of_version(release: str, version: str) -> bool:
    """Whether a release, by its id, is one of this version."""
    return release.rpartition("-")[0] == _in_id(version)


def _in_id(version: str) -> str:
    return version.replace("+", "_")
