# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Journals of whole rollouts of any size, as the hosts answer them, for tests of what a report makes of them."""

from __future__ import annotations

from typing import Any

from ansible_collections.backstep.workers.plugins.module_utils._rollout.observing import columns, look, observe

OLD, NEW = "1.0-aaaaaaaa", "2.0-bbbbbbbb"
BEGAN = 1795244400.0
OWNER = {"user": "ana", "controller": "ops1", "pid": 1}
CARE: dict[str, Any] = {
    "tasks": [
        {"id": "5f1d6c3e-10", "what": "killed", "now": "waiting", "task": "mail.tasks.send", "queue": "mail",
         "release": NEW, "worker": f"mail/{NEW}/w1/1/4711"},
        {"id": "5f1d6c3e-11", "what": "dead", "now": "dead", "task": "mail.tasks.send", "queue": "mail",
         "release": NEW, "worker": None},
        {"id": "5f1d6c3e-12", "what": "parked", "now": "parked", "task": None, "queue": None, "release": None,
         "worker": None},
    ],
    "more": 3,
}  # fmt: skip
CONFIG = [
    {"file": "environment", "how": "changed", "added": 1, "removed": 1, "names": ["SMTP_PASSWORD"]},
    {"file": "settings.ini", "how": "changed", "added": 2, "removed": 5, "names": []},
]


def event(name: str, at: float, by: str = "controller", **data: Any) -> dict[str, Any]:
    """One event, ``at`` seconds after the rollout began."""
    return {"event": name, "time": BEGAN + at, "token": 2, "by": by, **data}


def staged(kind: str = "deploy") -> list[dict[str, Any]]:
    """A host that got the release, and nothing else."""
    return [
        event("lease_granted", 0.5, kind=kind, owner=OWNER),
        event("stage_started", 1.0, release=NEW, version="2.0"),
        event("staged", 3.0, release=NEW, seal=""),
    ]


def switched(at: float = 4.0) -> list[dict[str, Any]]:
    """A host that was switched."""
    started = event("switch_started", at, origin=OLD, target=NEW, safe=OLD, mode="overlap")
    return [*staged(), started, event("switched", at + 0.8, target=NEW, processes={})]


def confirmed(at: float = 4.0, end: float = 60.0) -> list[dict[str, Any]]:
    """A host on which the release is good."""
    return [*switched(at), event("confirm_started", end, target=NEW), event("confirmed", end + 1, target=NEW)]


def went_back(at: float = 4.0, end: float = 40.0, by: str = "controller", reason: str = "w1: it fails") -> list[Any]:
    """A host that was taken back."""
    reason = f"{by}: it was not confirmed in time" if by == "guard" else reason
    fired = [event("guard_fired", end - 0.1, by, reason=reason)] if by == "guard" else []
    way = {"origin": NEW, "target": OLD}
    return [
        *switched(at),
        *fired,
        event("rollback_started", end, by, verdict="bad", reason=reason, mode="overlap", **way),
        event("restored", end + 1.4, by, target=OLD, processes={}),
        event("rolled_back", end + 3, by, reason=reason, config=CONFIG, **way),
    ]


def answer(events: list[dict[str, Any]], current: str, clock: float = BEGAN + 70) -> dict[str, Any]:
    """What such a host says."""
    return {"pool_state": {"clock": clock, "current": current, "events": events}}


def course(seconds: int = 60, back: int = 40) -> dict[str, Any]:
    """What was seen of two queues: the new release fails all its tasks until the way back; for five seconds nothing.

    :param back: when the way back began; 0 for never.
    """
    looks: list[Any] = []
    old, new, failed, waiting = 1000, 0, 0, 20
    for second in range(-1, seconds):
        going_bad = bool(back) and 5 <= second < back
        old += 4 if second < 5 or (back and second >= back) else 1
        new += 0 if second < 5 or (back and second >= back) else 1 if going_bad else 6
        failed += 3 if going_bad else 0
        waiting = max(0, waiting + (5 if going_bad else -4))
        if 20 <= second < 25:
            looks.append({"at": BEGAN + second, "queues": None, "workers": {}})
            continue
        queues = [
            {"queue": "mail", "waiting": waiting, "executing": 4, "retrying": 0, "dead": failed, "parked": 0},
            {"queue": "newsletter", "waiting": 7, "executing": 0, "retrying": 0, "dead": 0, "parked": None},
        ]
        workers = [
            {"name": f"mail/{OLD}/w1/1/100", "queues": ["mail"], "finished": old, "failed": 3},
            {"name": f"mail/{NEW}/w1/1/200", "queues": ["mail"], "finished": new, "failed": failed},
        ]
        looks.append(look("mail", BEGAN + second, queues, workers[: 2 if second >= 5 else 1]))
    return columns(observe({}, looks))


def observed(at: float = 64.0, noticed: float | None = 39.2, **changed: Any) -> list[dict[str, Any]]:
    """What a rollout notes of the queues at its end."""
    told = {"course": course(), "care": CARE, "noticed": None if noticed is None else BEGAN + noticed, **changed}
    return [event("observed", at, **told), event("lease_released", at + 0.1)]
