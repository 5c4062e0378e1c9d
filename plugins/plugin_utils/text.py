# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What people read in the terminal: the plan before, the outcome after, the status."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from ansible_collections.backstep.workers.plugins.module_utils._rollout.alerts import Alert
from ansible_collections.backstep.workers.plugins.module_utils._rollout.answers import failure_of
from ansible_collections.backstep.workers.plugins.module_utils._rollout.drills import drill_sentence, last_drill
from ansible_collections.backstep.workers.plugins.module_utils._rollout.fleet import FleetPlan
from ansible_collections.backstep.workers.plugins.module_utils._rollout.names import utc
from ansible_collections.backstep.workers.plugins.module_utils._rollout.notices import lines as notice_lines
from ansible_collections.backstep.workers.plugins.module_utils._rollout.rules import describe_owner
from ansible_collections.backstep.workers.plugins.module_utils._rollout.schedulers import pool_problems
from ansible_collections.backstep.workers.plugins.module_utils._rollout.stranding import (
    WOULD_RUN,
    deserted,
    sentence,
    staying,
)
from ansible_collections.backstep.workers.plugins.plugin_utils.text_queues import (
    dead_and_parked_lines,
    gate_lines,
)

# From more hosts on, those of which the same is to be said share a line, unless they are so few.
MANY = 12
FEW = 3
QUEUE_COLUMNS = ("waiting", "scheduled", "executing", "retrying", "dead", "parked", "workers")


def hosts_text(hosts: Sequence[str], most: int = 6) -> str:
    """Hosts by name, cut where the line gets too long."""
    return ", ".join(hosts[:most]) + (f" and {len(hosts) - most} more" if len(hosts) > most else "")


def sharing(said: Mapping[str, tuple[str, ...]]) -> list[tuple[tuple[str, ...], list[str]]]:
    """What is said of hosts, each with the hosts of which it is, and what is said of few of them first."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for host, what in said.items():
        groups.setdefault(what, []).append(host)
    return sorted(groups.items(), key=lambda item: len(item[1]))


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Rows as lines with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return [(indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths))).rstrip() for row in rows]


def _one(values: Sequence[Optional[str]]) -> str:
    names = sorted({value or "nothing" for value in values})
    return " / ".join(names) if names else "nothing"


def plan_lines(pool: str, plan: FleetPlan, check_mode: bool) -> list[str]:
    """Where the rollout will go, said before it goes."""
    would = "would go" if check_mode else "goes"
    if plan.unfinished:
        back = _one([plan.back_to[host] for host in plan.unfinished])
        return [
            f"Pool {pool}: an interrupted rollback is finished first, to {back} on {hosts_text(plan.unfinished)}.",
            f"{plan.release} is not deployed by this run.",
        ]
    if not plan.hosts:
        return [
            f"Pool {pool} is on {plan.release or 'no release'} on all {len(plan.settled)} hosts already: nothing to do."
        ]
    before = _one([plan.before[host] for host in plan.hosts])
    way = f"{would} {'back ' if plan.kind == 'rollback' else ''}from {before} to {plan.release or 'nothing running'}"
    total = len(plan.hosts) + len(plan.settled)
    lines = [f"Pool {pool} {way} on {len(plan.hosts)} of {total} hosts (rollout {plan.rollout})."]
    if plan.drill:
        lines.append(f"  a drill: it is what runs already, made to fail ({plan.drill}), and goes back by itself")
    if plan.kind == "deploy":
        lines += [
            f"  wave {number} of {len(plan.waves)}: {hosts_text(wave)}" for number, wave in enumerate(plan.waves, 1)
        ]
        lines.append(
            f"  if it is not good: back to {_one([plan.back_to[host] for host in plan.hosts])}, every touched host"
        )
    if plan.left_out:
        names = hosts_text(plan.left_out)
        lines.append(f"  left out on purpose: {names}; status names them until they are taken along")
    if plan.adopt:
        lines.append(f"  taking over from a run that has died on {hosts_text(sorted(plan.adopt))}")
    return lines


def alert_lines(pool: str, alert: Alert, stays: str, plan: Sequence[str]) -> list[str]:
    """What an alert comes to.

    :param stays: why it takes the pool nowhere; "" when it does.
    :param plan: what is said of the plan.
    """
    if stays:
        return [f"Pool {pool} stays where it is. Alert {alert.id} about {alert.release} changes nothing: {stays}."]
    return [*plan[:1], f"  asked for by {alert.sentence}", *plan[1:]]


_ENDS = {
    "deployed": "is on {release}",
    "rolled_back": "went back to {back}",
    "stopped": "was not touched",
    "superseded": "was superseded: another rollout decides where it is from here on",
    "mixed": "NEEDS A PERSON: not every touched host is where it should be",
}


def end_sentence(pool: str, ended: str, release: Optional[str], back_to: Sequence[Optional[str]]) -> str:
    """How a rollout ended, in a sentence.

    :param release: that it was to bring the pool to.
    :param back_to: where each of its hosts goes back to.
    """
    return f"Pool {pool} {_ENDS[ended].format(release=release or 'no release', back=_one(back_to))}."


def care_lines(outcome: Mapping[str, Any], broker: Mapping[str, Any], told: Sequence[str] = ()) -> list[str]:
    """What needs care: tasks that were taken back from workers that are gone, by id, and how the queues are.

    :param told: what was said already of tasks that were parked on the way back.
    """
    lines = []
    cut_off = [task for task in outcome["recovered"] if task["started"] or task["worker"]]
    for to, what in (
        ("waiting", "may run twice"),
        ("scheduled", "will be tried again"),
        ("dead", "failed, to be replayed"),
        ("lost", "LOST, as the engine had acknowledged them before they were executed"),
    ):
        ids = [task["id"] for task in cut_off if task["to"] == to]
        if ids:
            lines.append(f"  {len(ids)} task(s) were cut off; {what}: {', '.join(ids)}")
    ids = [task["id"] for task in outcome["recovered"] if task not in cut_off]
    if ids:
        lines.append(f"  {len(ids)} task(s) were put back that a worker had taken and never begun: {', '.join(ids)}")
    parked = sum(queue.get("parked") or 0 for queue in (broker.get("queues") or {}).values())
    if parked and (outcome["ended"] == "deployed" or (outcome["ended"] == "rolled_back" and not told)):
        lines.append(f"  {parked} task(s) are parked; next: ansible-playbook backstep.workers.replay puts them back")
    return lines + _queue_lines(broker)


def parking_lines(parking: Mapping[str, Any]) -> list[str]:
    """What became, on a way back, of tasks that the old release doesn't know.

    :param parking: ``named``, ``told`` and ``parked`` (a list); see the module ``rollout``.
    """
    named, told, parked = (parking.get(part) for part in ("named", "told", "parked"))
    if not named or named.get("skipped"):
        return []
    why = failure_of(named, "tasks")
    if why:
        return [f"  ! nobody has looked for tasks that the old release doesn't know: {why}"]
    answers = [one for one in told or () if one["tasks"] is not None]
    if told and not answers:
        return [f"  ! which tasks {told[0]['release']} knows could not be found out: {told[0]['problem']}"]
    changed = {name: version for one in answers for name, version in one["changed"].items()}
    held = {some["task"] for some in named["tasks"]}
    would_run = {some["task"] for some in named["tasks"] if some["state"] in WOULD_RUN}
    names = {
        name: changed.get(name) for one in answers for name in one["tasks"] if name in would_run or name not in held
    }
    parked_ones = _parked_lines(answers[0]["release"], names, parked or [None]) if names else []
    return parked_ones + staying_lines(parking)


def deserted_lines(parking: Mapping[str, Any], broker: Mapping[str, Any]) -> list[str]:
    """After a way back, the queues that hold tasks and to which the old release doesn't listen.

    :param parking: ``listened``; see the module ``rollout``.
    """
    listened = parking.get("listened")
    left = deserted(listened, broker.get("queues") or {}) if listened else {}
    return [
        f"  ! nobody listens to {queue} any more ({counts}); next: deploy a release that does, or park them"
        for queue, counts in sorted(left.items())
    ]


def staying_lines(parking: Mapping[str, Any]) -> list[str]:
    """Which tasks of names that the release doesn't know are left where they are.

    :param parking: ``named`` and ``told``, as for ``parking_lines``.
    """
    tasks = (parking.get("named") or {}).get("tasks") or []
    answers = [one for one in parking.get("told") or () if one["tasks"] is not None]
    names = {name for one in answers for name in one["tasks"]}
    lines = {staying(one["release"], tasks, names) for one in answers[:1]}
    return [f"  ! {line}" for line in lines if line]


def schedule_lines(told: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a release enqueues by the clock other than the one before it.

    :param told: ``unknown_tasks`` of the module ``release``, of each host.
    """
    changes: Mapping[str, Sequence[str]] = next((one["schedules"] for one in told if one.get("schedules")), {})
    says = {
        "begin": "    the schedule begins: {}", "end": "    the schedule ends: {}",
        "unknown": "  ! the schedule has tasks that the release itself doesn't know: {}",
    }  # fmt: skip
    return [text.format(", ".join(changes[kind])) for kind, text in says.items() if changes.get(kind)]


def _parked_lines(release: str, names: Mapping[str, Optional[str]], parked: Sequence[Any]) -> list[str]:
    versions = (f" with version {version} of its arguments" if version else "" for version in names.values())
    told = ", ".join(f"{name}{version}" for name, version in zip(names, versions))
    whys = [why for why in (failure_of(answer, "moved") for answer in parked) if why]
    if whys:
        return [f"  ! {release} doesn't know {told}, which could not be parked: {whys[0]}"]
    moved = [answer["moved"] for answer in parked]
    if not sum(some["count"] for some in moved):
        return [f"  {release} doesn't know {told}; workers had taken all of them already"]
    shown = "; ".join(
        sentence({**some, "version": names.get(some["task"])}, None) for part in moved for some in part["tasks"]
    )
    return [
        f"  {sum(some['count'] for some in moved)} task(s) were parked, as {release} doesn't know them: {shown}",
        "  next: once a release that knows them is deployed: ansible-playbook backstep.workers.replay",
    ]


def status_lines(pool: str, answers: Mapping[str, Any], broker: Mapping[str, Any]) -> list[str]:
    """The pool, host by host, and its queues."""
    rows: dict[str, tuple[str, ...]] = {}
    notes = []
    barriers: dict[str, str] = {}
    for host, answer in answers.items():
        why = failure_of(answer, "pool_state")
        if why:
            rows[host] = ("?",) * 5
            notes.append(f"  ! {host}: {why}")
            continue
        state = answer["pool_state"]
        rollout = state["rollout"]
        last = f"{rollout['token']} {rollout['kind']}: {rollout['phase'].replace('_', ' ')}" if rollout else "none"
        runs = ", ".join(f"{name} ({count} processes)" for name, count in state["running"].items()) or "nothing"
        rows[host] = (state["current"] or "nothing", state["current_state"] or "-", utc(state["since"]), runs, last)
        notes += _draining_lines(host, state, broker)
        notes += [f"  ! {host}: {problem}" for problem in state["problems"]]
        barriers.update({release: barrier["reason"] for release, barrier in (state.get("barriers") or {}).items()})
    notes += [
        f"  rollback barrier: {release} can't be undone ({reason}), so going back out of it needs pool_cross_barrier"
        for release, reason in barriers.items()
    ]
    states = {host: answer["pool_state"] for host, answer in answers.items() if not failure_of(answer, "pool_state")}
    notes += notice_lines(states, time.time())
    more = [*_drill_lines(answers), *_scheduler_lines(answers), *_lease_lines(answers), *_mixed_lines(answers)]
    more += [*_queue_lines(broker), *dead_and_parked_lines(broker), *gate_lines(broker)]
    return [f"Pool {pool}", *table(_host_rows(rows)), *notes, *more]


def _host_rows(rows: Mapping[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    """A row for each host; of many hosts one for all that are the same but for the time, with the first one's."""
    found: list[tuple[str, ...]] = [("host", "current", "state", "since", "running", "last rollout")]
    if len(rows) <= MANY:
        return [*found, *((host, *row) for host, row in rows.items())]
    for (current, state, *rest), hosts in sharing({host: (*row[:2], *row[3:]) for host, row in rows.items()}):
        if len(hosts) > FEW:
            found.append((f"{len(hosts)} hosts", current, state, min(rows[host][2] for host in hosts), *rest))
        else:
            found += [(host, *rows[host]) for host in hosts]
    return found


def _drill_lines(answers: Mapping[str, Any]) -> list[str]:
    """When the pool was drilled last, and how that ended."""
    states = [answer["pool_state"] for answer in answers.values() if not failure_of(answer, "pool_state")]
    drill = last_drill(states)
    return [f"  last drill: {drill_sentence(drill) if drill else 'none yet'}"] if states else []


def _lease_lines(answers: Mapping[str, Any]) -> list[str]:
    """Who holds the leases, and for how long if nothing more is heard of them."""
    held: dict[str, list[tuple[str, float]]] = {}
    for host, answer in answers.items():
        lease = None if failure_of(answer, "pool_state") else answer["pool_state"].get("lease")
        if lease and not lease["released"]:
            who = f"{lease['kind']} {lease['token']} of {describe_owner(lease['owner'])}"
            held.setdefault(who, []).append((host, lease["expires_in"]))
    return [
        f"  lease: {who} holds {hosts_text([host for host, _left in hosts])}; "
        f"runs out in {max(left for _host, left in hosts):.0f} s unless it goes on"
        for who, hosts in held.items()
    ]


def _scheduler_lines(answers: Mapping[str, Any]) -> list[str]:
    """Whose scheduler runs where, and what is wrong with them all together."""
    states = {host: answer["pool_state"] for host, answer in answers.items() if not failure_of(answer, "pool_state")}
    found = {host: state["scheduler"] for host, state in states.items() if state.get("scheduler")}
    lines = [f"  scheduler: that of {each['release']} on {host}" for host, each in found.items() if each["release"]]
    return lines + [f"  ! {problem}" for problem in pool_problems(states)]


def _mixed_lines(answers: Mapping[str, Any]) -> list[str]:
    """That hosts are on different releases, and which ones were left out of the last rollout on purpose."""
    states = {host: answer["pool_state"] for host, answer in answers.items() if not failure_of(answer, "pool_state")}
    if not states:
        return []
    newest = max(states.values(), key=lambda state: int(state["last_token"]))
    owner = newest["last_owner"] or {}
    left_out = [
        host
        for host in owner.get("left_out") or []
        if host not in states or states[host]["current"] != newest["current"]
    ]
    by_release: dict[str, list[str]] = {}
    for host, state in states.items():
        by_release.setdefault(state["current"] or "nothing", []).append(host)
    lines = []
    if len(by_release) > 1:
        where = "; ".join(f"{release} on {hosts_text(hosts)}" for release, hosts in sorted(by_release.items()))
        lines.append(f"  ! mixed: {where}")
    if left_out:
        who = f"rollout {newest['last_token']} of {describe_owner(owner)}"
        lines.append(f"  ! left out of {who} on purpose: {hosts_text(left_out)}")
    if lines:
        lines.append("  next: a deploy or a rollback of the whole pool brings every host to one release")
    return lines


def _draining_lines(host: str, state: Mapping[str, Any], broker: Mapping[str, Any]) -> list[str]:
    """What drains with no play that waits for it, and which tasks were killed when their time was up."""
    lines = []
    for entry in state.get("draining") or []:
        names = ", ".join(_worker_text(worker["worker"], broker) for worker in entry["running"])
        lines.append(f"  {host}: {entry['release']} drains since {utc(entry['since'])}: {names or 'about to end'}")
    for entry in state.get("reaped") or []:
        killed = [worker["worker"] for worker in entry["running"]]
        held = {task["worker"] for task in broker.get("executing") or []}
        # Once their tasks are taken back, the broker holds none for them; while it can't be asked, nobody knows.
        if killed and (failure_of(broker, "queues") or held & set(killed)):
            names = ", ".join(_worker_text(worker, broker) for worker in killed)
            when = utc(entry["ended"])
            lines.append(f"  ! {host}: killed at {when}: {names}; the next deploy takes its tasks back")
    return lines


def _worker_text(worker: str, broker: Mapping[str, Any]) -> str:
    """A worker, and the task that it has."""
    tasks = [task["id"] for task in broker.get("executing") or [] if task.get("worker") == worker]
    return f"{worker} with {', '.join(tasks)}" if tasks else worker


def _queue_lines(broker: Mapping[str, Any]) -> list[str]:
    why = failure_of(broker, "queues")
    if why:
        return [f"  ! queues: {why}"]
    rows = [("queue", *QUEUE_COLUMNS)]
    for name, queue in broker["queues"].items():
        rows.append((name, *(count(queue.get(column)) for column in QUEUE_COLUMNS)))
    paused = broker.get("paused") or {}
    lines = table(rows)
    if paused.get("paused"):
        left = paused.get("expires_in")
        until = "" if left is None else f", for {left:.0f} s more"
        lines.append(f"  ! paused by {'a person' if paused.get('by_person') else paused.get('owner')}{until}")
    return lines


def count(value: Any) -> str:
    """A number that may not be known."""
    return "?" if value is None else str(value)
