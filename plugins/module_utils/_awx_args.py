# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the module that has AWX be as it is wanted."""

from __future__ import annotations

from typing import Any

_DICT: dict[str, Any] = {"type": "dict", "default": {}}
_TEXT: dict[str, Any] = {"type": "str", "default": ""}
_LIST: dict[str, Any] = {"type": "list", "elements": "dict"}
MADE = (
    "credential_types", "credentials", "execution_environments", "projects", "labels", "job_templates",
    "workflow_job_templates", "schedules",
)  # fmt: skip
AWX_OPTIONS: dict[str, Any] = {
    "url": {"type": "str", "required": True},
    "prefix": {"type": "str", "default": "/api/v2/"},
    "token": {**_TEXT, "no_log": True},
    "user": _TEXT,
    "password": {**_TEXT, "no_log": True},
    "ca_file": _TEXT,
    "timeout": {"type": "float", "default": 30.0},
    "organization": {"type": "str", "required": True},
    "renew_secrets": {"type": "bool", "default": False, "no_log": False},
    "objects": {
        **_LIST,
        "required": True,
        "options": {
            "kind": {"type": "str", "required": True, "choices": list(MADE)},
            "name": {"type": "str", "required": True},
            "fields": _DICT,
            "variables": {"type": "dict"},
            "secrets": {**_DICT, "no_log": True},
            "refs": _DICT,
            "survey": _LIST,
            "attached": _DICT,
            "roles": _DICT,
            "nodes": _LIST,
            "wait": {"type": "float", "default": 300.0},
        },
    },
}
