# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes two worlds the same: equal but for names, numbers and times that nothing can tell apart."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from tests.explore.flow import Run, program
from tests.explore.paper import Facts
from tests.explore.world import World, lease_is_live

# Texts for people, and times that only a report reads.
_NOISE = frozenset(
    ("msg", "message", "reason", "reasons", "noted", "noticed", "clock", "since", "started", "deadline", "granted",
     "expires", "expires_in", "seconds", "text", "diff", "owner", "problem", "changed", "uptime", "worker", "events",
     "broker_before", "baseline", "waited", "running", "pid", "up")
)  # fmt: skip
_NUMBERS = frozenset(("rollout", "token", "last_token"))
_SAME_STATE = frozenset(("releases", "rollout", "lease", "last_token", "changed", "draining", "reaped", "drill"))


def world_key(world: World) -> Hashable:
    """Equal for worlds in which the same can happen."""
    ranks = _ranks(world)
    names = {run.name: f"run {number}" for number, run in enumerate(world.runs)}
    names.update(dict.fromkeys(world.dead, "dead"))
    hosts = tuple(_host(facts, ranks, names) for facts in world.facts)
    return hosts, tuple(_run(run, ranks, names) for run in world.runs)


def hosts_key(world: World) -> Hashable:
    """Equal for worlds whose hosts are in the same state, whoever is at work."""
    ranks = _ranks(World(world.facts))
    return tuple(_host(facts, ranks, {}) for facts in world.facts)


def _ranks(world: World) -> dict[int, int]:
    numbers = {0}
    for facts in world.facts:
        state = facts.state
        numbers.add(state.last_token)
        numbers.update(held.token for held in (state.lease, state.rollout) if held)
    numbers.update(run.plan.get("rollout", 0) for run in world.runs)
    return {number: rank for rank, number in enumerate(sorted(numbers))}


def _host(facts: Facts, ranks: dict[int, int], names: Mapping[str, str]) -> Hashable:
    state, rollout, lease = facts.state, facts.state.rollout, facts.state.lease
    ages = {since: rank for rank, since in enumerate(sorted({r.since for r in state.releases.values()}))}
    releases = tuple((r.id, r.state, ages[r.since], bool(r.seal), r.drill) for r in state.releases.values())
    drains = tuple(
        (d.release, d.policy, d.boot == f"boot-{facts.boot}", max(0, round(d.deadline - facts.up)), bool(d.overran))
        for d in state.draining.values()
    )
    gone = tuple((r.release, r.outcome, r.again) for r in state.reaped.values())
    rest: Hashable = tuple(repr(value) for name, value in vars(state).items() if name not in _SAME_STATE)
    held: Hashable = None
    if lease and not lease.released:
        owner = names.get(str(lease.owner.get("run")), "gone")
        live = lease_is_live(facts)
        left = round(lease.expires - facts.up) if live else 0
        held = (ranks[lease.token], lease.kind, owner if live else "", live, left, lease.seconds if live else 0)
    moving: Hashable = None
    if rollout:
        moving = (ranks[rollout.token], rollout.kind, rollout.origin, rollout.target, rollout.safe, rollout.phase)
    workers: tuple[Hashable, ...] = ()
    noted = rollout.processes if rollout and rollout.open else {}
    for (release, index), worker in sorted(facts.workers.items()):
        same = noted.get(str(index)) == worker.pid
        workers = (*workers, (release, index, worker.ending, worker.again, same))
    if rollout and rollout.open:
        due = None if rollout.deadline is None else max(0, round(rollout.deadline - facts.up))
        moving = (moving, due, rollout.boot == f"boot-{facts.boot}", rollout.mode, len(noted))
    guard = None if facts.guard is None else max(0, round(facts.guard - facts.up))
    stored = tuple(sorted(facts.stored.items()))
    paper = (facts.torn, facts.installed, facts.at_boot, facts.link, guard, facts.booting, stored, facts.dying)
    drill = (state.drill["kind"], ranks.get(state.drill["token"]), state.drill["passed"]) if state.drill else None
    rest = (rest, drill, drains, gone, facts.reaper, facts.schedulers, facts.with_scheduler)
    return releases, rest, held, moving, ranks[state.last_token], workers, paper


def _run(run: Run, ranks: dict[int, int], names: Mapping[str, str]) -> Hashable:
    live = program(run.flow).live[run.at]
    shared = {name: value for name, value in run.shared.items() if name in live}
    own = {host: {name: value for name, value in found.items() if name in live} for host, found in run.own.items()}
    return run.flow, run.release, run.at, run.turn, _plain(shared, ranks, names), _plain(own, ranks, names)


def _plain(value: Any, ranks: dict[int, int], names: Mapping[str, str]) -> Hashable:
    if isinstance(value, dict):
        items: list[Hashable] = []
        for key, item in value.items():
            if key in _NUMBERS and isinstance(item, int):
                items.append((key, ranks.get(item, -1)))
            elif key == "steps":
                items.append((key, tuple((step, why == "done") for step, why in item.items())))
            elif key == "error":
                items.append(key)
            elif key == "processes":
                items.append((key, len(item), isinstance(item, list) and all(worker["pid"] for worker in item)))
            elif key not in _NOISE:
                items.append((key, _plain(item, ranks, names)))
        return tuple(items)
    if isinstance(value, list | tuple):
        return tuple(_plain(item, ranks, names) for item in value)
    if isinstance(value, str):
        return names.get(value, value)
    return value if isinstance(value, bool | int | None) else repr(value)
