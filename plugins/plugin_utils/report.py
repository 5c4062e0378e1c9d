# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The report of one rollout: gathered as plain JSON, then written as a page, as Markdown and as that JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from ansible_collections.backstep.workers.plugins.module_utils._rollout.observing import AT_LENGTH

from .report_markdown import markdown
from .report_page import page
from .report_scale import LATE
from .report_times import aligned, phases, skew, times

SCHEMA = 1

Journals = Mapping[str, Optional[Mapping[str, Any]]]


def report_data(
    pool: str,
    plan: Mapping[str, Any],
    record: Mapping[str, Any],
    outcome: Mapping[str, Any],
    journals: Journals,
    broker: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that the report says, as plain JSON: the JSON file is this, and the page is drawn from nothing else.

    :param outcome: as ``record.outcome`` gives it, with ``recovered``.
    :param journals: each host's answer to ``release_info`` with ``events``.
    """
    return {
        "kind": plan["kind"],
        "release": plan["release"],
        "before": plan["before"],
        "back_to": {host: plan["back_to"][host] for host in [*plan["hosts"], *plan["unfinished"]]},
        "waves": plan["waves"],
        "owner": {key: plan["owner"].get(key) for key in ("user", "controller")},
        "ended": outcome["ended"],
        "ok": outcome["ok"],
        "reasons": outcome["reasons"] or plan.get("alert", ""),
        "hosts": {
            host: {
                "now": outcome["hosts"].get(host, plan["before"].get(host)),
                "exception": outcome["exceptions"].get(host, ""),
                "touched": host in record["touched"],
                **record["hosts"].get(host, {"steps": {}, "verdict": "", "reason": ""}),
            }
            for host in {**plan["before"], **record["hosts"]}
        },
        "recovered": outcome["recovered"],
        "hooks": record["hooks"],
        **observed(pool, plan["rollout"], journals, broker, noticed=record.get("noticed"), asked=record.get("noted")),
    }


def observed(
    pool: str,
    rollout: int,
    journals: Journals,
    broker: Mapping[str, Any],
    *,
    noticed: Optional[float],
    asked: Optional[float],
) -> dict[str, Any]:
    """The part of a report that the journals and the broker tell by themselves.

    :param noticed: when the controller first had a verdict that isn't good, epoch seconds; None: not known.
    :param asked: the controller's clock before the hosts were asked for their journals; None: not known.
    """
    events: list[dict[str, Any]] = []
    clocks = {}
    timeline = {}
    for host, answer in journals.items():
        state = (answer or {}).get("pool_state")
        if not state:
            continue
        clocks[host] = state["clock"]
        mine = [event for event in state["events"] if event["token"] == rollout]
        timeline[host] = phases(mine)
        events += [{"host": host, **event} for event in mine]
    now = time.time()
    off = skew(clocks, asked, now)
    noted = next((event for event in events if event["event"] == "observed"), None)
    noticed = noticed or (noted or {}).get("noticed")
    waited_for = [event for event in aligned(events, off) if event["by"] not in LATE]
    return {
        "schema": SCHEMA,
        "pool": pool,
        "rollout": rollout,
        "events": sorted(map(_listed, events), key=lambda event: event["time"]),
        "phases": timeline,
        # What drains on is no part of the rollout's time: nobody waits for it.
        "times": times(waited_for, noticed),
        "clocks": clocks,
        "skew": off,
        "course": noted["course"] if noted else None,
        "care": noted["care"] if noted else None,
        "config": _config(events),
        "queues": broker.get("queues") or {},
        "written": now,
    }


# What an event tells at length, and the report in a place of its own.
_APART = frozenset((*AT_LENGTH, "config"))


def _listed(event: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in _APART}


def _config(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What going back has changed of the config, hosts for which it is the same together.

    :returns: ``{hosts, left, restored, changes, problem}``, ``changes`` as from ``changes.changes``.
    """
    found: list[dict[str, Any]] = []
    for event in events:
        if event["event"] != "rolled_back" or not ("config" in event or "config_problem" in event):
            continue
        told = {
            "left": event["origin"],
            "restored": event["target"],
            "changes": event.get("config", []),
            "problem": event.get("config_problem", ""),
        }
        same = next((one for one in found if {**told, "hosts": one["hosts"]} == one), None)
        if same:
            same["hosts"].append(event["host"])
        else:
            found.append({**told, "hosts": [event["host"]]})
    return found


def write(data: Mapping[str, Any], directory: str) -> list[str]:
    """Write the report as ``<pool>-<rollout>.html``, ``.md`` and ``.json``; the paths, in this order."""
    folder = Path(directory).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "html": page(data),
        "md": markdown(data),
        "json": json.dumps(data, indent=1, sort_keys=True) + "\n",
    }
    paths = []
    for extension, text in texts.items():
        path = folder / f"{data['pool']}-{data['rollout']}.{extension}"
        path.write_text(text, encoding="utf-8")
        paths.append(str(path))
    return paths
