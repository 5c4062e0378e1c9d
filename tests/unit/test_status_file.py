# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The status as JSON, and what of leases, dead and parked tasks is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible_collections.backstep.workers.plugins.plugin_utils.status_file import status_data, write
from ansible_collections.backstep.workers.plugins.plugin_utils.text import status_lines
from ansible_collections.backstep.workers.plugins.plugin_utils.text_queues import dead_and_parked_lines

QUEUE = {"waiting": 1, "scheduled": 0, "executing": 0, "retrying": 0, "dead": 2, "parked": 1, "workers": 1}


def state(**more: Any) -> dict[str, Any]:
    settled = {
        "current": "1.0-a", "current_state": "good", "since": 60.0, "running": {"1.0-a": 2}, "rollout": None,
        "problems": [], "queues": ["mail"], "last_token": 3, "last_owner": None, "events": [{"event": "x"}],
    }  # fmt: skip
    return {"pool_state": {**settled, **more}}


def lease(left: float, released: bool = False) -> dict[str, Any]:
    owner = {"user": "ana", "controller": "ops1", "pid": 7, "run": "r"}
    return {"kind": "deploy", "token": 4, "owner": owner, "expires_in": left, "released": released}


def test_what_is_written_is_what_was_told_and_who_is_needed(tmp_path: Path) -> None:
    answers = {"w1": state(problems=["the link is gone"]), "w2": {"unreachable": True, "msg": "no route"}}
    broker = {"queues": {"mail": QUEUE}, "gates": {}, "changed": False}
    lines = status_lines("mail", answers, broker)
    data = status_data("mail", answers, broker, lines, 12.5)
    assert (data["schema"], data["pool"], data["at"]) == (1, "mail", 12.5)
    assert data["hosts"]["w1"]["current"] == "1.0-a"
    assert "events" not in data["hosts"]["w1"]
    assert data["hosts"]["w2"] == {"error": "unreachable: no route"}
    assert data["broker"] == {"queues": {"mail": QUEUE}, "gates": {}}
    assert data["needs_a_person"] == ["w1: the link is gone", "w2: unreachable: no route"]
    path = Path(write(data, str(tmp_path / "new" / "status.json")))
    assert json.loads(path.read_text("utf-8")) == data
    assert [other.name for other in path.parent.iterdir()] == ["status.json"]
    silent = status_data("mail", {}, {"failed": True, "msg": "refused"}, [], 0.0)
    assert silent["broker"] == {"error": "refused"}


def test_leases_are_told_by_who_holds_them() -> None:
    answers = {"w1": state(lease=lease(200.0)), "w2": state(lease=lease(240.0)), "w3": state(lease=lease(9.0, True))}
    (line,) = [line for line in status_lines("mail", answers, {"queues": {}}) if "lease:" in line]
    assert line.startswith("  lease: deploy 4 of ana")
    assert line.endswith(" holds w1, w2; runs out in 240 s unless it goes on")


def test_the_dead_are_told_by_kind_and_the_parked_by_who_did_it() -> None:
    group = {"queue": "mail", "task": "mail.send", "error": "KeyError", "release": "2.0-b", "count": 3, "last": 60.0}
    other = {**group, "task": None, "error": "", "release": None, "count": 1}
    assert dead_and_parked_lines({"dead": [group, other], "parked_by": ["gate x", "rollout 3"]}) == [
        "  dead: 3 x mail.send (mail, KeyError) in 2.0-b, the last at 1970-01-01 00:01:00 UTC",
        "  dead: 1 x no name (mail), the last at 1970-01-01 00:01:00 UTC",
        "  parked by: gate x, rollout 3",
    ]
    assert dead_and_parked_lines({"dead": [group] * 12})[-1] == "  dead: and 2 more kinds"
    assert dead_and_parked_lines({}) == []
