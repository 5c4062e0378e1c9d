# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that all modules for worker hosts share, and what they are turned into."""

from __future__ import annotations

from typing import Any

from ._host.host import Host, default_python
from ._host.layout import Pool
from ._host.supervisors.table import SUPERVISORS
from ._host.terms import Slice, Terms
from ._rollout.errors import BadInput
from ._rollout.ids import check_pool_name

_CONF_DIRS = {"systemd": "/etc/systemd/system", "supervisord": "/etc/supervisor/conf.d"}

POOL_OPTIONS: dict[str, Any] = {
    "pool": {"type": "str", "required": True},
    "root": {"type": "path"},
    "host": {"type": "str", "required": True},
    "supervisor": {"type": "str", "default": "systemd", "choices": sorted(SUPERVISORS, reverse=True)},
    "supervisor_socket": {"type": "path", "default": "/var/run/supervisor.sock"},
    "supervisor_conf_dir": {"type": "path"},
    "step_timeout": {"type": "float", "default": 120.0},
}

DRAIN_OPTIONS: dict[str, Any] = {
    "drain": {
        "type": "dict",
        "default": {},
        "options": {
            "timeout": {"type": "float", "default": 300.0},
            "on_timeout": {"type": "str", "default": "abort", "choices": ["abort", "requeue", "kill", "leave"]},
        },
    },
}

# What the controller's side shows while tasks are executing: whose they are, and how far that is.
PROGRESS_OPTIONS: dict[str, Any] = {
    "part_seconds": {"type": "float", "default": 0.0},
    "goes_on": {"type": "bool", "default": False},
    "engine": {"type": "str", "default": ""},
    "broker_url": {"type": "str", "default": "", "no_log": True},
    "queues": {"type": "list", "elements": "raw", "default": []},
}


def open_host(params: dict[str, Any]) -> Host:
    """The host's side of the pool that the options name.

    :raises BadInput: a pool name that can't be used.
    """
    name = check_pool_name(params["pool"])
    supervisor = params["supervisor"]
    if "/" in params["host"] or not params["host"]:
        raise BadInput(f"host '{params['host']}' can't be part of a worker's name: it may not hold a slash.")
    pool = Pool(
        name=name,
        host=params["host"],
        supervisor=supervisor,
        socket=params["supervisor_socket"] if supervisor == "supervisord" else "",
        conf_dir=params["supervisor_conf_dir"] or _CONF_DIRS[supervisor],
        python=default_python(),
    )
    return Host(params["root"] or f"/opt/backstep/{name}", pool)


def part_of(params: dict[str, Any]) -> Slice:
    """Which part of a drain is asked for."""
    return Slice(params.get("part_seconds") or 0.0, bool(params.get("goes_on")))


def terms_of(params: dict[str, Any]) -> Terms:
    """How a step is to be taken, from whichever of the options a module has."""
    given = {
        "mode": params.get("mode"),
        "drain_seconds": params["drain"]["timeout"],
        "drain_policy": params["drain"]["on_timeout"],
        "confirm_seconds": params.get("confirm_timeout"),
        "keep": params.get("keep"),
        "once": params.get("once"),
        "part": part_of(params),
    }
    return Terms(**{name: value for name, value in given.items() if value is not None})
