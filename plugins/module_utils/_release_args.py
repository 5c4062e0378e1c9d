# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the module ``release``, for its controller side and its host side alike."""

from __future__ import annotations

import base64
import shlex
from typing import Any

from ._hook_args import HOOK_OPTIONS, hooks_of
from ._host.layout import Spec
from ._host.manifest import COMMAND, PYTHON, engine_arguments
from ._host.store import Content
from ._queue_args import queue_groups
from ._rollout.errors import BadInput
from ._scheduler_args import SCHEDULER_OPTIONS, scheduler_of

RELEASE_OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "default": "staged", "choices": ["planned", "staged"]},
    "version": {"type": "str", "required": True},
    "engine": {"type": "str", "required": True},
    "broker_url": {"type": "str", "required": True, "no_log": True},
    "queues": {"type": "list", "elements": "raw", "required": True},
    "routes": {"type": "bool", "default": False},
    "processes": {"type": "int", "default": 1},
    "user": {"type": "str", "required": True},
    "command": {"type": "list", "elements": "str", "default": []},
    "source": {
        "type": "dict",
        "required": True,
        "options": {name: {"type": "str"} for name in ("directory", "archive", "checksum", "git", "ref", "path")},
    },
    "config": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "src": {"type": "str"},
            "content": {"type": "str", "no_log": True},
            "dest": {"type": "str", "required": True},
            "mode": {"type": "str", "default": "0640"},
        },
    },
    "env": {"type": "dict", "default": {}, "no_log": True},
    "build": {"type": "list", "elements": "raw", "default": []},
    "build_timeout": {"type": "float", "default": 900.0},
    "rollback_barrier": {"type": "str", "default": ""},
    **HOOK_OPTIONS,
    **SCHEDULER_OPTIONS,
    "manifest": {
        "type": "dict",
        "default": {},
        "options": {
            "tasks": {"type": "list", "elements": "str"},
            "command": {"type": "raw"},
            "ask": {"type": "bool", "default": True},
            "versions": {"type": "dict", "default": {}},
        },
    },
    "tasks": {"type": "list", "elements": "dict", "default": []},
    "retired": {"type": "list", "elements": "str", "default": []},
    "now": {"type": "float"},
    "min_free_mib": {"type": "int", "default": 0},
    "rollout": {"type": "int", "default": 0},
    "to": {"type": "str", "default": ""},
    "drill": {"type": "dict", "default": {}},
    "prepared": {
        "type": "dict",
        "options": {
            "id": {"type": "str"},
            "identity": {"type": "dict"},
            "broker": {"type": "str"},
            "broker_variable": {"type": "str"},
            "extends": {"type": "list", "elements": "str", "default": []},
            "manifest": {"type": "dict", "default": {}},
            "manifest_program": {"type": "str", "default": ""},
            "archive": {"type": "str"},
            "program": {"type": "str"},
            "program_digest": {"type": "str"},
            "bytes": {"type": "int"},
        },
    },
}


def words(command: Any) -> list[str]:
    """A command as a list of arguments; a string is split like a shell would, and no shell ever sees it.

    :raises BadInput: quotes that don't match, or nothing in it.
    """
    try:
        found = [str(word) for word in command] if isinstance(command, list) else shlex.split(str(command))
    except ValueError as error:
        raise BadInput(
            f"The command {command!r} can't be split into words: {error}.", left="Nothing was changed."
        ) from None
    if not found:
        raise BadInput("An empty command can't be run.", left="Nothing was changed.")
    return found


def manifest_of(given: dict[str, Any], command: list[str], own: str) -> dict[str, Any]:
    """How a release tells which tasks it can run, as it is sealed; see ``Spec``.

    :param given: the option.
    :param command: the workers'.
    :param own: the program that the engine's own command starts, where it has a way to ask; else "".
    :raises BadInput: two ways at once.
    """
    if given.get("tasks") is not None and given.get("command"):
        raise BadInput("pool_manifest has to have either tasks or command.", left="Nothing was changed.")
    versions = {name: _versions(name, some) for name, some in sorted((given.get("versions") or {}).items())}
    declared: dict[str, Any] = {"versions": versions} if versions else {}
    if given.get("tasks") is not None:
        return {**declared, "tasks": sorted(set(given["tasks"]))}
    if given.get("command"):
        return {**declared, "command": words(given["command"])}
    asks = own and given.get("ask", True) and engine_arguments(command, own) is not None
    return {**declared, "command": [PYTHON, "{manifest}", COMMAND]} if asks else declared


def _versions(name: str, given: Any) -> list[str]:
    """The versions of a task's arguments that a release can run, the one that it enqueues last."""
    found = [str(version) for version in (given if isinstance(given, list) else [given])]
    if not found or not all(found):
        raise BadInput(f"pool_manifest.versions has no version for {name}.", left="Nothing was changed.")
    return found


def spec_of(params: dict[str, Any]) -> Spec:
    """The spec from options that the controller side has prepared.

    :raises BadInput: they were not prepared.
    """
    prepared = params["prepared"]
    if not prepared or not prepared["id"]:
        raise BadInput(
            "This module needs its controller side and can't be called by another name than backstep.workers.release.",
            left="Nothing was changed.",
        )
    return Spec(
        id=prepared["id"],
        version=params["version"],
        pool=params["pool"],
        engine=params["engine"],
        queues=queue_groups(params["queues"]),
        processes=params["processes"],
        command=params["command"],
        user=params["user"],
        broker=prepared["broker"],
        broker_variable=prepared["broker_variable"],
        identity=prepared["identity"],
        barrier=params["rollback_barrier"].strip(),
        hooks=hooks_of(params["hooks"]),
        scheduler=scheduler_of(params["scheduler"]),
        extends=prepared["extends"],
        manifest=prepared["manifest"],
    )


def content_of(params: dict[str, Any]) -> Content:
    """What goes into the release besides its spec. Config texts come base64 encoded from the controller side."""
    config = {item["dest"]: (base64.b64decode(item["content"]), int(item["mode"], 8)) for item in params["config"]}
    return Content(
        archive=params["prepared"]["archive"] or "",
        directory=params["source"]["path"] or "",
        config=config,
        environment={name: str(value) for name, value in params["env"].items()},
        build=[words(command) for command in params["build"]],
        build_seconds=params["build_timeout"],
        manifest=params["prepared"]["manifest_program"],
    )
