# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The status of a pool as JSON, for whatever reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.backstep.workers.plugins.module_utils._host.files import write_file
from ansible_collections.backstep.workers.plugins.module_utils._rollout.answers import failure_of
from ansible_collections.backstep.workers.plugins.module_utils._rollout.drills import last_drill
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import refused_by_system

SCHEMA = 1
# Of what a host tells: all but the events of its journal, which are the report's.
_LEFT_OUT = ("events",)
_OF_BROKER = ("queues", "workers", "executing", "paused", "gates", "routes", "effects", "dead", "parked_by", "server")


def status_data(
    pool: str, answers: Mapping[str, Any], broker: Mapping[str, Any], lines: Sequence[str], at: float
) -> dict[str, Any]:
    """What ``status`` shows.

    :param lines: as it shows it.
    :param at: when the hosts were asked (epoch seconds, by the controller's clock).
    :returns: ``schema``, ``pool``, ``at``, ``hosts`` (each with ``error``, or as the module ``release_info`` tells it),
        ``broker`` (``error``, or as ``queue_info`` tells it), ``drill`` (the last one, or None) and ``needs_a_person``
        (a list of sentences).
    """
    hosts = {}
    for host, answer in answers.items():
        why = failure_of(answer, "pool_state")
        state = {} if why else answer["pool_state"]
        hosts[host] = {"error": why} if why else {key: state[key] for key in state if key not in _LEFT_OUT}
    why = failure_of(broker, "queues")
    told = {"error": why} if why else {key: broker[key] for key in _OF_BROKER if key in broker}
    needs = needs_a_person(lines)
    of_pool = {"hosts": hosts, "broker": told, "drill": last_drill(hosts.values()), "needs_a_person": needs}
    return {"schema": SCHEMA, "pool": pool, "at": at, **of_pool}


def needs_a_person(lines: Sequence[str]) -> list[str]:
    """Of the lines that ``status`` shows, those that name what needs a person."""
    return [line.strip().removeprefix("! ") for line in lines if line.lstrip().startswith("! ")]


def write(data: Mapping[str, Any], path: str) -> str:
    """Write it, so that whoever reads it meanwhile has the old one or this; its path."""
    target = Path(path).expanduser().absolute()
    write_text(target, json.dumps(data, indent=1, sort_keys=True) + "\n")
    return str(target)


def write_text(path: Path, text: str) -> None:
    """Write a file for whoever may read it, whole or not at all.

    :raises HostUnfit: the system refuses it; what was there before still is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode("utf-8"), 0o644)
    except OSError as error:
        raise refused_by_system(error, f"{path} could not be written") from None
