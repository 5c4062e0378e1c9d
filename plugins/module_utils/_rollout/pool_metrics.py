# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is measured of a pool: what one host can tell of itself, and what the whole of it and its broker tell. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Optional

from .answers import failure_of
from .metrics import COUNTER, Metric, Sample, sample
from .names import parse_worker_name

# What one host tells. Labels: ``pool``, ``host``, and those that are named here.
HOST_UPDATED = Metric("backstep_host_updated_timestamp_seconds", "When this host was asked last.")
HOST_INFO = Metric("backstep_host_info", "Always 1; supervisor: what keeps the workers of this host running.")
RELEASE_INFO = Metric("backstep_release_info", "Always 1; release, version and state of the current release.")
RELEASE_SINCE = Metric("backstep_release_since_timestamp_seconds", "Since when the current release is in its state.")
RELEASES = Metric("backstep_releases", "Releases that are stored on this host, by state.")
PROCESSES = Metric("backstep_worker_processes", "Worker processes that run, by the release that they report.")
DRAINING = Metric("backstep_draining_since_timestamp_seconds", "Since when a release ends its last tasks, by release.")
PROBLEMS = Metric("backstep_problems", "What a person should look at on this host; 'status' says what.")
STUCK = Metric("backstep_stuck", "1 while the way back has failed on this host, which needs a person.")
ROLLOUTS = Metric("backstep_rollouts_total", "Rollouts of the pool that this host has heard of.", COUNTER)
ROLLOUT_INFO = Metric("backstep_rollout_info", "Always 1; kind and phase of the last rollout of this host.")
ROLLOUT_OPEN = Metric("backstep_rollout_open", "1 while this host is between two releases.")
ROLLOUT_STARTED = Metric("backstep_rollout_started_timestamp_seconds", "When the last rollout of this host began.")
GUARD_ARMED = Metric("backstep_guard_armed", "1 while a guard waits to take this host back.")
GUARD_DUE = Metric("backstep_guard_due_timestamp_seconds", "When the guard takes this host back.")
LAST_EVENT = Metric("backstep_last_event_timestamp_seconds", "When the journal noted an event of this kind last.")
LEASE_EXPIRES = Metric("backstep_lease_expires_timestamp_seconds", "When the lease that is held runs out.")
WAY_BACK = Metric("backstep_way_back", "1 while there is a good release that a rollback could go to.")
SCHEDULER = Metric("backstep_scheduler_running", "1 while the scheduler of a release runs on this host.")
DRILL = Metric("backstep_drill_timestamp_seconds", "When the last drill ended; kind: how it was made to fail.")
DRILL_PASSED = Metric("backstep_drill_passed", "1 if the last drill came back by itself and lost nothing.")

# What the fleet and the broker tell. Labels: ``pool``, and those that are named here.
POOL_UPDATED = Metric("backstep_pool_updated_timestamp_seconds", "When the hosts and the broker were asked last.")
HOST_UP = Metric("backstep_host_up", "1 if the host has answered the controller, by host.")
BROKER_UP = Metric("backstep_broker_up", "1 if the broker has answered.")
NEEDS = Metric("backstep_needs_a_person", "Lines of 'status' that name what needs a person.")
TASKS = Metric("backstep_tasks", "Tasks by queue and state; a state that the engine can't count has no sample.")
OLDEST = Metric("backstep_oldest_task_age_seconds", "Age of the task that is next in a queue.")
WORKERS = Metric("backstep_queue_workers", "Live workers that listen to a queue.")
DEAD = Metric("backstep_dead_tasks", "Dead tasks by queue and by the release in which they died, where that is known.")
PARKED_BY = Metric("backstep_parked_by_info", "Always 1; by: who has parked what is parked, release: of such a worker.")
PAUSED = Metric("backstep_paused", "1 while the queues hand out nothing; by: person or backstep.")
GATE = Metric("backstep_gate_open_ratio", "Share of the tasks of one name that workers may execute; by task.")
ROUTE = Metric("backstep_route_share_ratio", "Share of a queue that goes to the workers of one version.")
EFFECTS = Metric("backstep_effects_open", "What rollouts have done to the queues and nobody has kept or undone yet.")

HOST_METRICS = (
    HOST_UPDATED, HOST_INFO, RELEASE_INFO, RELEASE_SINCE, RELEASES, PROCESSES, DRAINING, PROBLEMS, STUCK, ROLLOUTS,
    ROLLOUT_INFO, ROLLOUT_OPEN, ROLLOUT_STARTED, GUARD_ARMED, GUARD_DUE, LAST_EVENT, LEASE_EXPIRES, WAY_BACK, SCHEDULER,
    DRILL, DRILL_PASSED,
)  # fmt: skip
POOL_METRICS = (
    POOL_UPDATED, HOST_UP, BROKER_UP, NEEDS, TASKS, OLDEST, WORKERS, DEAD, PARKED_BY, PAUSED, GATE, ROUTE, EFFECTS,
)  # fmt: skip

_STATES = ("waiting", "scheduled", "executing", "retrying", "dead", "parked", "abandoned", "deferred")


def host_samples(state: Mapping[str, Any], at: float, host: str = "") -> list[Sample]:
    """What one host tells of itself.

    :param state: as ``release_info`` tells it (``pool_state``).
    :param at: when it was asked (epoch seconds, by the clock of whoever asked).
    :param host: its name, where it isn't the one that it knows itself by.
    """
    names = {"pool": str(state["pool"]), "host": host or str(state["host"])}
    current = state["current"]
    found = sample(HOST_UPDATED, at, **names)
    found += sample(HOST_INFO, 1, **names, supervisor=state["supervisor"])
    if current:
        version = next((release["version"] for release in state["releases"] if release["id"] == current), "")
        found += sample(RELEASE_INFO, 1, **names, release=current, version=version, state=state["current_state"])
    found += sample(RELEASE_SINCE, state["since"], **names)
    for name, count in sorted(Counter(release["state"] for release in state["releases"]).items()):
        found += sample(RELEASES, count, **names, state=name)
    # That none of the current one runs was seen, too.
    for release, count in {**({current: 0} if current else {}), **state["running"]}.items():
        found += sample(PROCESSES, count, **names, release=release)
    for entry in state["draining"]:
        found += sample(DRAINING, entry["since"], **names, release=entry["release"])
    found += sample(PROBLEMS, len(state["problems"]), **names)
    back = state["rollback"]
    found += sample(WAY_BACK, bool(back["target"]) and not back["problem"], **names)
    scheduler = state["scheduler"]
    found += sample(SCHEDULER, scheduler["release"] is not None if scheduler else None, **names)
    return found + _rollout_samples(state, names) + _drill_samples(state, names)


def _rollout_samples(state: Mapping[str, Any], names: Mapping[str, str]) -> list[Sample]:
    """The last rollout, its guard and the lease. What is told as seconds from now counts by the host's own clock."""
    rollout, lease, clock = state["rollout"], state["lease"], state["clock"]
    found = sample(ROLLOUTS, state["last_token"], **names)
    if rollout:
        found += sample(ROLLOUT_INFO, 1, **names, kind=rollout["kind"], phase=rollout["phase"])
        found += sample(ROLLOUT_STARTED, rollout["started"], **names)
    found += sample(ROLLOUT_OPEN, bool(rollout and rollout["open"]), **names)
    found += sample(STUCK, bool(rollout and rollout["phase"] == "stuck"), **names)
    found += sample(GUARD_ARMED, state["guard_armed"], **names)
    left = state["guard_seconds_left"]
    found += sample(GUARD_DUE, clock + left if left is not None else None, **names)
    if lease and not lease["released"]:
        found += sample(LEASE_EXPIRES, clock + lease["expires_in"], **names, kind=lease["kind"])
    for event, when in sorted(state["last_events"].items()):
        found += sample(LAST_EVENT, when, **names, event=event)
    return found


def _drill_samples(state: Mapping[str, Any], names: Mapping[str, str]) -> list[Sample]:
    drill = state.get("drill")
    if not drill:
        return []
    kind = str(drill["kind"])
    return sample(DRILL, drill["ended"], **names, kind=kind) + sample(DRILL_PASSED, drill["passed"], **names, kind=kind)


def pool_samples(
    pool: str, answers: Mapping[str, Any], broker: Mapping[str, Any], needs: int, at: float
) -> list[Sample]:
    """What the whole pool tells: of every host that has answered what it tells of itself, and how the queues are.

    :param answers: each host's answer to ``release_info``.
    :param broker: the answer of ``queue_info``, with ``details``.
    :param needs: how many lines of the status name what needs a person.
    :param at: when they were asked (epoch seconds, by the controller's clock).
    """
    silent = {host: failure_of(answer, "pool_state") for host, answer in answers.items()}
    broker_silent = failure_of(broker, "queues")
    found = sample(POOL_UPDATED, at, pool=pool)
    found += sample(NEEDS, needs, pool=pool)
    found += sample(BROKER_UP, not broker_silent, pool=pool)
    for host, why in silent.items():
        found += sample(HOST_UP, not why, pool=pool, host=host)
    for host, answer in answers.items():
        found += [] if silent[host] else host_samples(answer["pool_state"], at, host)
    return found if broker_silent else found + _broker_samples(pool, broker)


def _broker_samples(pool: str, broker: Mapping[str, Any]) -> list[Sample]:
    found: list[Sample] = []
    for queue, told in broker["queues"].items():
        for state in _STATES:
            found += sample(TASKS, told.get(state), pool=pool, queue=queue, state=state)
        found += sample(OLDEST, told.get("oldest_waiting_seconds"), pool=pool, queue=queue)
        found += sample(WORKERS, told.get("workers"), pool=pool, queue=queue)
    dead: Counter[tuple[str, str]] = Counter()
    for group in broker.get("dead") or []:
        dead[group["queue"], group["release"] or ""] += group["count"]
    for (queue, release), count in sorted(dead.items()):
        found += sample(DEAD, count, pool=pool, queue=queue, release=release)
    for by, release in sorted({_who_parked(by) for by in broker.get("parked_by") or []}):
        found += sample(PARKED_BY, 1, pool=pool, by=by, release=release)
    return found + _held_samples(pool, broker)


def _who_parked(by: str) -> tuple[str, str]:
    """Who has parked, and of a worker its release: each start of one has a name of its own, which is no label."""
    worker = parse_worker_name(by)
    return ("worker", worker.release) if worker else (by, "")


def _held_samples(pool: str, broker: Mapping[str, Any]) -> list[Sample]:
    """What keeps tasks from workers on purpose."""
    found: list[Sample] = []
    paused: Optional[Mapping[str, Any]] = broker.get("paused")
    if paused:
        by = ("person" if paused["by_person"] else "backstep") if paused["paused"] else ""
        found += sample(PAUSED, paused["paused"], pool=pool, by=by)
    for task, gate in (broker.get("gates") or {}).items():
        share = 0 if gate["retired"] else gate["open"] / 100
        found += sample(GATE, share, pool=pool, task=task, retired="true" if gate["retired"] else "")
    now = (broker.get("server") or {}).get("time") or 0.0
    for queue, route in (broker.get("routes") or {}).items():
        if route["until"] > now:
            found += sample(ROUTE, route["share"] / 100, pool=pool, queue=queue, version=route["version"])
    mine = [effect for effect in broker.get("effects") or [] if effect["unit"]["pool"] == pool]
    return found + sample(EFFECTS, len(mine) if "effects" in broker else None, pool=pool)
