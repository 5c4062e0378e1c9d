# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a person has typed to start this run, turned into what to type next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

# Options of ansible-playbook that say where and as whom, and what they are called in what it has parsed.
_WITH_VALUES = {
    "inventory": "-i", "subset": "--limit", "remote_user": "-u", "private_key_file": "--private-key",
    "become_user": "--become-user", "become_method": "--become-method", "vault_ids": "--vault-id",
    "vault_password_files": "--vault-password-file",
}  # fmt: skip
_FLAGS = {"become": "-b", "become_ask_pass": "-K", "ask_pass": "-k", "ask_vault_pass": "-J"}
# What is repeated of variables that were given in the command: of which hosts it speaks. Others may be secrets.
_KEPT = ("pool_hosts", "pool_name", "pool_root", "pool_partial")
_OF_ONE_RUN = (
    "pool_version", "pool_to", "pool_reason", "pool_skip", "pool_replay", "pool_cross_barrier",
    "pool_drill_kind", "pool_drill_production",
)  # fmt: skip
_DEFAULTS = {"become_method": "sudo"}


def next_command(parsed: Mapping[str, Any], playbook: str, **extra: Any) -> str:
    """The command for another playbook of the collection, on the same hosts and in the same way as this run.

    :param parsed: what ``ansible-playbook`` was called with, as it has parsed it.
    :param extra: extra variables, among them ``pool_version``.
    """
    words = ["ansible-playbook"]
    for name, option in _WITH_VALUES.items():
        for value in _values(parsed.get(name)):
            if value != _DEFAULTS.get(name):
                words += [option, value]
    words += [option for name, option in _FLAGS.items() if parsed.get(name)]
    own = [each for each in _values(parsed.get("args")) if not each.startswith("backstep.workers.")]
    # A playbook of one's own is what deploys: it has variables that the collection's lacks.
    words += own if own and playbook == "deploy" else [f"backstep.workers.{playbook}"]
    given = [str(each) for each in _values(parsed.get("extra_vars"))]
    for text in given:
        words += ["-e", text] if text.startswith("@") else []
    for name, value in {**_kept(given), **extra}.items():
        plain = isinstance(value, str) and value and not set(value) & set(" \t'\"{}[]=")
        words += ["-e", f"{name}={value}" if plain else json.dumps({name: value})]
    return shlex.join(words)


def not_repeated(parsed: Mapping[str, Any]) -> list[str]:
    """The names of the other variables that this run was given, which the next one may need as well."""
    names = [name for text in _values(parsed.get("extra_vars")) for name in _variables(text)]
    return sorted({name for name in names if name not in (*_KEPT, *_OF_ONE_RUN)})


def next_template(playbook: str, **extra: Any) -> str:
    """The same where a person can't type a command."""
    given = " with " + ", ".join(f"{name}: {json.dumps(value)}" for name, value in extra.items()) if extra else ""
    return f"launch the job template that plays backstep.workers.{playbook}{given}"


# What AWX offers after a failed job, on the hosts that failed, isn't what a person wants there.
WHOLE_TEMPLATE = (
    "Launch the template again, not 'Relaunch on failed hosts': on hosts where all is done, nothing is done twice. "
    "For a part of the pool on purpose, the template needs the extra variable pool_partial: true."
)


def _values(given: Any) -> list[str]:
    if given is None or given is False or given == "":
        return []
    return [str(each) for each in given] if isinstance(given, (list, tuple)) else [str(given)]


def _variables(text: str) -> dict[str, Any]:
    if text.startswith("@"):
        return {}
    try:
        found: dict[str, Any] = (
            json.loads(text) if text.startswith("{") else dict(word.split("=", 1) for word in shlex.split(text))
        )
    except ValueError:
        return {}  # YAML, of which nothing is repeated
    return found


def _kept(given: list[str]) -> dict[str, Any]:
    found = {name: value for text in given for name, value in _variables(text).items()}
    return {name: found[name] for name in _KEPT if name in found}
