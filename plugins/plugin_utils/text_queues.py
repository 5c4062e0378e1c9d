# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of gates, and of what rollouts have done to the queues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.backstep.workers.plugins.module_utils._rollout.answers import failure_of
from ansible_collections.backstep.workers.plugins.module_utils._rollout.effects import KEPT, OPEN
from ansible_collections.backstep.workers.plugins.module_utils._rollout.names import utc
from ansible_collections.backstep.workers.plugins.module_utils._rollout.stranding import WOULD_RUN, sentence

_GROUPS_SHOWN = 10
_KINDS = {"park": "tasks parked ({})", "gate": "gate of {} set", "pause": "paused for {}", "route": "route of {} set"}


def effect_lines(effects: Mapping[str, Any]) -> list[str]:
    """What was done to the queues, and what of it was undone, or could not be ended.

    :param effects: ``closed``, the answer of the module ``task_gate``, ``unrouted``, those of ``queue_route``, and
        ``ended``, that of ``queue_effects``.
    """
    lines = []
    closed, ended = effects.get("closed"), effects.get("ended")
    if closed and not closed.get("skipped"):
        why = failure_of(closed, "gates")
        names = [action["task"] for action in closed.get("actions") or () if action["action"] == "gate"]
        if why:
            lines.append(f"  ! gates that a rollback closes could not be closed: {why}")
        elif names:
            lines.append(f"  gates were closed first: {', '.join(names)}; next: open them with task_gate")
    for unrouted in effects.get("unrouted") or ():
        lines += _unrouted_lines(unrouted)
    if ended and not ended.get("skipped"):
        why = failure_of(ended, "ended")
        if why:
            lines.append(f"  ! what rollouts have done to the queues could not be ended, and stays noted: {why}")
        lines += [_ended_line(one) for one in ended.get("ended") or () if one["fate"] != KEPT]
    return lines


def to_park_lines(parking: Mapping[str, Any], broker: Mapping[str, Any]) -> list[str]:
    """What a rollback will park, said before it begins: on which queue, how many, how old.

    :param parking: ``told``, as for ``parking_lines``.
    :param broker: the answer of the module ``queue_info`` with the tasks by their names.
    """
    answers = [one for one in parking.get("told") or () if one["tasks"] is not None]
    changed = {name: version for one in answers for name, version in one["changed"].items()}
    unknown = {name for one in answers for name in one["tasks"]}
    found = [
        {**some, "version": None if some["task"] in unknown else changed[some["task"]]}
        for some in broker.get("tasks") or ()
        if some["state"] in WOULD_RUN and some["task"] in unknown | set(changed)
    ]
    now = (broker.get("server") or {}).get("time")
    shown = [sentence(some, now) for some in found[:_GROUPS_SHOWN]]
    more = [f"and {len(found) - _GROUPS_SHOWN} more"] if len(found) > _GROUPS_SHOWN else []
    return [f"  to be parked, as {answers[0]['release']} doesn't know them: {'; '.join(shown + more)}"] if found else []


def _unrouted_lines(unrouted: Mapping[str, Any]) -> list[str]:
    why = "" if unrouted.get("skipped") else failure_of(unrouted, "moved")
    if why:
        return [f"  ! what is for the workers alone that were left could not be moved: {why}"]
    actions = unrouted.get("actions") or ()
    gone = [f"{action['queue']} to {action['to']}" for action in actions if action["action"] == "end_route"]
    moved = sum(action["count"] for action in actions if action["action"] == "move")
    said = [f"  routes were taken away first: {', '.join(gone)}"] if gone else []
    return said + ([f"  {moved} task(s) were moved back from queues for the release that was left"] if moved else [])


def _ended_line(one: Mapping[str, Any]) -> str:
    what = f"rollout {one['rollout']}: {_KINDS[one['kind']].format(one['what'])}"
    if one["fate"] == OPEN:
        return f"  ! {what}; the hosts differ, so it stays noted until they don't"
    return f"  {what}; undone, as the pool is where that began: {one['said']}"


def dead_and_parked_lines(broker: Mapping[str, Any]) -> list[str]:
    """Which tasks are dead, by their release where that is known, and who has parked some."""
    lines = []
    groups = broker.get("dead") or []
    for group in groups[:_GROUPS_SHOWN]:
        kind = f", {group['error']}" if group["error"] else ""
        where = f" in {group['release']}" if group["release"] else ""
        lines.append(
            f"  dead: {group['count']} x {group['task'] or 'no name'} ({group['queue']}{kind}){where}, "
            f"the last at {utc(group['last'])}"
        )
    if len(groups) > _GROUPS_SHOWN:
        lines.append(f"  dead: and {len(groups) - _GROUPS_SHOWN} more kinds")
    parked = broker.get("parked_by") or []
    return lines + ([f"  parked by: {', '.join(parked)}"] if parked else [])


def gate_lines(broker: Mapping[str, Any]) -> list[str]:
    """The gates that hold something, and what rollouts have done that nobody has ended."""
    lines = []
    for task, gate in (broker.get("gates") or {}).items():
        why = f" ({gate['reason']})" if gate["reason"] else ""
        state = "is retired" if gate["retired"] else f"lets {gate['open']:g} % pass"
        lines.append(f"  gate: {task} {state}, set by {gate['by']} at {utc(gate['at'])}{why}")
    now = (broker.get("server") or {}).get("time") or 0.0
    for queue, route in (broker.get("routes") or {}).items():
        if route["until"] > now:
            what = f"{route['share']:g} % of {', '.join(route['tasks']) or 'all'}"
            until = f"until {utc(route['until'])}"
            lines.append(f"  route: {what} in {queue} to version {route['version']}, by {route['by']}, {until}")
    for effect in broker.get("effects") or ():
        unit = effect["unit"]
        what = _KINDS[effect["kind"]].format(effect["what"])
        lines.append(f"  ! rollout {unit['rollout']} of {unit['pool']} was not ended: {what} at {utc(effect['at'])}")
    if broker.get("effects"):
        lines.append("  next: a deploy or a rollback of that pool keeps or undoes it")
    return lines
