# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One notification: what it is called, when it is wanted, and what may be said of how it went. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput
from ansible_collections.backstep.workers.plugins.module_utils._rollout.masking import hide
from ansible_collections.backstep.workers.plugins.module_utils._rollout.notices import TRIES_AT_MOST, is_pending

SECONDS = 10.0
_WHY_AT_MOST = 200


def name_of(entry: Mapping[str, Any], number: int) -> str:
    """What it is called, by default its module and its place in the list."""
    return str(entry.get("name") or f"{entry.get('module')} ({number})")


def is_wanted(entry: Mapping[str, Any], name: str, notice: Mapping[str, Any]) -> bool:
    """Whether it is to be sent for this notice: as its ``about`` says, and later, if it could not be sent before."""
    if notice["left"] is not None:
        return name in notice["left"]
    about: Sequence[str] = entry.get("about") or ()
    return not about or notice["event"]["what"] in about


def require_module(module: str) -> str:
    """Refuse what isn't a module's full name.

    :raises BadInput: says so.
    """
    if len(module.split(".")) < 3:
        raise BadInput(f"'{module}' is not the full name of a module, such as ansible.builtin.uri.")
    return module


def _values(given: Any) -> Iterator[str]:
    if isinstance(given, Mapping):
        for each in given.values():
            yield from _values(each)
    elif isinstance(given, (list, tuple)):
        for each in given:
            yield from _values(each)
    elif isinstance(given, str):
        yield given
        # What of a webhook's address is secret is its path, of which a message may have a part.
        yield from given.split("/")[3:] if "://" in given else ()


def without_values(text: str, args: Mapping[str, Any]) -> str:
    """A message without anything that the notification was called with: it may be a secret, and nobody says which."""
    return hide(text, set(_values(args)))


def one_line(message: object) -> str:
    """The first line of a message, or so much of it as can be read."""
    text = " ".join(str(message).split())
    return text if len(text) <= _WHY_AT_MOST else f"{text[:_WHY_AT_MOST]}..."


def lines(notice: Mapping[str, Any], sent: Sequence[str]) -> list[str]:
    """What is said of a notice after it was tried."""
    said = [f"notification {notice['id']}: sent to {', '.join(sent)}"] if sent else []
    if is_pending(dict(notice)):
        left = TRIES_AT_MOST - notice["tries"]
        then = f"any later run sends it again ({left} more tries)" if left > 0 else "it is not tried again"
        said.append(f"notification {notice['id']}: NOT sent, and {then}. {notice['why']}")
    return said
