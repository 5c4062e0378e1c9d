# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is decided for the whole fleet, from what each host has answered. Pure.

An *answer* is a step's result as Ansible registers it: a dict with the step's own keys when it went well, with ``msg``
when it failed, with ``unreachable: true`` when there was no answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Union

from .answers import Answer, failure_of, name_hosts, require_answers, require_none
from .barriers import refusal
from .errors import BadInput, HostUnfit, LeaseHeld, NoGoodRelease
from .hooks import Hooks, seconds_of
from .pool_state import GOING_BACK, GOOD, RESTORED
from .routes import is_tagged
from .rules import describe_owner
from .schedulers import has_own_scheduler, require_no_move, scheduler_of
from .waves import Consumers, hold_minimum, waves


@dataclass
class FleetPlan:
    """What a rollout will do. ``hosts`` are those that have to move; ``settled`` those that are there already.

    ``adopt`` names, by host, the run of a dead owner whose lease is taken over. ``unfinished`` are hosts on which a
    rollback was interrupted, ``between`` those of ``hosts`` that an interrupted deploy has switched. ``once`` is the
    host that runs the hooks that are meant for one host. ``left_out`` are
    hosts of the pool that are not looked at, on purpose. ``drill`` is how it is made to fail, or "".
    """

    kind: str
    rollout: int
    release: Optional[str]
    hosts: list[str]
    settled: list[str]
    waves: list[list[str]]
    adopt: dict[str, str]
    before: dict[str, Optional[str]]
    back_to: dict[str, Optional[str]]
    unfinished: list[str] = field(default_factory=list)
    between: list[str] = field(default_factory=list)
    once: Optional[str] = None
    partial: bool = False
    left_out: list[str] = field(default_factory=list)
    drill: str = ""

    @property
    def needed(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.hosts or self.unfinished)


def left_out(
    whole: Collection[str],
    playing: Collection[str],
    batch: Collection[str],
    skip: Collection[str],
    partial: bool,
    whole_again: str = "Run it without --limit, or declare it with -e pool_partial=true.",
) -> list[str]:
    """Which hosts of the pool a run leaves out; refuses one that sees only part of the pool without having said so.

    :param batch: the hosts of the present ``serial`` batch.
    :param skip: the hosts that are left out by name.
    :param whole_again: what a person does who has limited the run.
    :raises BadInput: ``--limit`` without ``pool_partial``, a play with ``serial``, or a name that is no host's.
    """
    if set(batch) - set(skip) != set(playing) - set(skip):
        raise BadInput(
            "This play has 'serial', which would hide the other batches from the verdict.",
            left="Nothing was changed.",
            next_step="Remove it and set pool_waves instead.",
        )
    unknown = sorted(set(skip) - set(whole))
    if unknown or set(playing) <= set(skip):
        raise BadInput(
            f"pool_skip names {name_hosts(unknown, 0)}, which the pool doesn't have."
            if unknown
            else "pool_skip leaves no host.",
            left="Nothing was changed.",
            next_step=f"The pool's hosts are: {name_hosts(sorted(whole), 0)}.",
        )
    missing = sorted(set(whole) - set(playing) - set(skip))
    if missing and not partial:
        raise BadInput(
            f"--limit leaves out {name_hosts(missing, 0)}, which would leave the pool on two releases.",
            left="Nothing was changed.",
            next_step=whole_again,
        )
    return sorted({*missing, *skip})


def require_free(states: Mapping[str, Answer], dead_runs: Collection[str], kind: str) -> dict[str, str]:
    """Which leases can be taken over because their owners are dead, by host.

    :raises LeaseHeld: a living owner, or one that can't be looked at from here, holds a host.
    """
    adopt: dict[str, str] = {}
    held: dict[str, list[str]] = {}
    for host, state in states.items():
        lease = state.get("lease")
        if not lease:
            continue
        if lease["owner"].get("run") in dead_runs:
            adopt[host] = lease["owner"]["run"]
        elif kind == "deploy" or lease["kind"] == "rollback":
            held.setdefault(f"{describe_owner(lease['owner'])} for a {lease['kind']}", []).append(host)
    if held:
        lines = [f"{name_hosts(hosts, len(states))} by {who}" for who, hosts in held.items()]
        seconds = max(float(state["lease"]["expires_in"]) for state in states.values() if state.get("lease"))
        raise LeaseHeld(
            f"The pool is held: {'; '.join(lines)}.",
            left="Nothing was changed.",
            next_step=f"Wait for them. If they are gone, the lease runs out by itself within {seconds:.0f} s.",
        )
    return adopt


def require_unpaused(broker: Mapping[str, Any]) -> None:
    """Refuse to deploy while somebody has paused the workers: new ones could prove nothing, or not even start.

    :raises BadInput: names who paused.
    """
    paused = broker.get("paused") or {}
    if paused.get("paused"):
        who = "a person, by the engine's own means" if paused.get("by_person") else str(paused.get("owner"))
        raise BadInput(
            f"The workers are paused by {who}, so a new release could not prove that it works.",
            left="Nothing was changed, and the pause stays.",
            next_step="Deploy once it is lifted.",
        )


def _unfinished_rollbacks(answers: Mapping[str, Answer]) -> list[str]:
    """Where a rollback was interrupted; once one host is known to go back, also where it had yet to begin."""
    states = {host: answer["pool_state"] for host, answer in answers.items()}
    between = [host for host, state in states.items() if _is_open(state)]
    going_back = any(states[host]["rollout"]["phase"] in (GOING_BACK, RESTORED) for host in between)
    return between if going_back or any(answer.get("refused") for answer in answers.values()) else []


def plan_deploy(
    answers: Mapping[str, Optional[Answer]],
    sizes: Sequence[Union[int, str]],
    dead_runs: Collection[str],
    partial: bool,
    scheduler: Optional[Mapping[str, Any]] = None,
) -> FleetPlan:
    """Plan a deploy from each host's answer to ``release`` with ``state: planned``.

    :param scheduler: that of the release; empty or None when it has none.
    :raises HostUnfit: a host has not answered, or not well.
    :raises BadInput: the release is not the same on every host, or its scheduler runs on another one than now.
    :raises LeaseHeld: somebody else is at work.
    """
    require_answers(answers, "pool_state")
    good = {host: answer for host, answer in answers.items() if answer}
    releases = {answer["release"]: host for host, answer in good.items()}
    if len(releases) > 1:
        examples = ", ".join(f"{release} on {host}" for release, host in releases.items())
        raise BadInput(
            f"The release is not the same on every host: {examples}.",
            left="Nothing was changed.",
            next_step="A template or variable of the release depends on the host: let workers find those at start.",
        )
    release = next(iter(releases))
    states = {host: answer["pool_state"] for host, answer in good.items()}
    adopt = require_free(states, dead_runs, "deploy")
    require_no_move(states, release, scheduler or {}, "again with the new host")
    unfinished = _unfinished_rollbacks(good)
    if not unfinished:
        refused: dict[str, list[str]] = {}
        for host, answer in good.items():
            if answer.get("refused"):
                refused.setdefault(answer["refused"], []).append(host)
        require_none(refused, len(answers))
    todo = [] if unfinished else [host for host, answer in good.items() if not _settled_on(answer, release)]
    back_to = {host: home(state) for host, state in states.items()}
    _require_way_back(states, back_to, todo)
    return FleetPlan(
        kind="deploy",
        rollout=_next_number(states),
        release=release,
        hosts=todo,
        settled=[host for host in good if host not in todo],
        waves=waves(todo, sizes),
        adopt=adopt,
        before={host: state["current"] for host, state in states.items()},
        back_to=back_to,
        unfinished=unfinished,
        between=[host for host in todo if _is_open(states[host])],
        once=_once_host(states, todo, release),
        partial=partial,
    )


def _is_open(state: Answer) -> bool:
    rollout = state.get("rollout")
    return bool(rollout and rollout["open"])


def home(state: Answer) -> Optional[str]:
    """Where a host goes if this rollout comes to nothing."""
    found: Optional[str] = state["rollout"]["safe"] if _is_open(state) else next(iter(state["good"]), None)
    return found


def _once_host(states: Mapping[str, Answer], todo: Sequence[str], release: str) -> Optional[str]:
    """The host that runs a release's hooks for one host; it stays the same in a run that is repeated."""
    for host, state in states.items():
        rollout = state.get("rollout") or {}
        if rollout.get("once") and rollout.get("target") == release:
            return host
    return next(iter(todo), None)


def _settled_on(answer: Answer, release: str) -> bool:
    state = answer["pool_state"]
    idle = not _is_open(state)
    runs = bool(state["processes"]) and all(worker["pid"] for worker in state["processes"])
    runs = runs and has_own_scheduler(state)
    here = state["current"] == release and state["current_state"] == GOOD and not state.get("hooks_pending")
    return idle and runs and here and not answer["actions"]


def _require_way_back(states: Mapping[str, Answer], back_to: Mapping[str, Optional[str]], todo: Sequence[str]) -> None:
    """Find out now, not at 03:00, that a host's last good release can't be gone back to."""
    problems: dict[str, list[str]] = {}
    for host in todo:
        release = back_to[host]
        for problem in states[host]["problems"]:
            if release and release in problem and "can't be used" in problem:
                problems.setdefault(problem, []).append(host)
    if problems:
        lines = [f"{name_hosts(hosts, len(states))}: {problem}" for problem, hosts in problems.items()]
        raise HostUnfit(
            "There would be no way back. " + " | ".join(lines),
            left="Nothing was changed.",
            next_step="Restore the stored release, or choose another good one with: ansible-playbook "
            "backstep.workers.rollback -e pool_to=<id>",
        )


def _next_number(states: Mapping[str, Answer]) -> int:
    return max((int(state["last_token"]) for state in states.values()), default=0) + 1


def plan_rollback(
    answers: Mapping[str, Optional[Answer]], dead_runs: Collection[str], partial: bool, cross: bool = False
) -> FleetPlan:
    """Plan a rollback from each host's answer to ``release_info`` with ``verify``.

    Hosts that don't answer are left out: the others go back all the same, and the run fails in the end.

    :param cross: whether it may lead out of a release that can't be undone.
    :raises NoGoodRelease: no host has a good release to go back to.
    :raises HostUnfit: no host answers, or a stored release can't be used.
    :raises BadInput: the hosts would go to different releases, or the scheduler to another host.
    :raises LeaseHeld: another rollback is under way.
    :raises RollbackBarrier: it leads out of a release that can't be undone, and nobody has asked to cross that barrier.
    """
    there = {host: answer for host, answer in answers.items() if answer and not failure_of(answer, "pool_state")}
    if not there:
        require_answers(answers, "pool_state")
    states = {host: answer["pool_state"] for host, answer in there.items()}
    adopt = require_free(states, dead_runs, "rollback")
    ways = _pool_ways(states)
    problems = {host: way["problem"] for host, way in ways.items() if way["problem"]}
    if problems:
        lines = Counter(problems.values())
        text = " | ".join(f"{count} of {len(states)} hosts: {problem}" for problem, count in lines.items())
        silent = {host: failure_of(answer, "pool_state") for host, answer in answers.items() if host not in there}
        text = " | ".join([text, *(f"{host}: {why}" for host, why in silent.items())])
        kind = NoGoodRelease if all(way["target"] is None for way in ways.values()) else HostUnfit
        raise kind(f"No rollback was begun. {text}", left="Nothing was changed.", hosts=sorted(problems))
    targets = {way["target"] for way in ways.values()}
    if len(targets) > 1:
        listed = ", ".join(f"{way['target']} on {host}" for host, way in ways.items())
        raise BadInput(
            f"The hosts' last good releases differ: {listed}.",
            left="Nothing was changed.",
            next_step="Name one: ansible-playbook backstep.workers.rollback -e pool_to=<id>",
        )
    target = next(iter(targets))
    require_no_move(states, target, scheduler_of(states, target), f"go back with -e pool_to={target}")
    # Hosts that are there already are asked all the same: a deploy that is at work could yet switch them.
    todo = list(ways) if any(way["needed"] or states[host].get("lease") for host, way in ways.items()) else []
    barred = [host for host, way in ways.items() if way["needed"] and way.get("barrier")]
    if barred and not cross:
        way = ways[barred[0]]
        left = f"Nothing was changed: {name_hosts(barred, 0)} would have to cross it."
        raise refusal(way["barrier"], way["target"], left, hosts=barred)
    return FleetPlan(
        kind="rollback",
        rollout=_next_number(states),
        release=target,
        hosts=todo,
        settled=[host for host in states if host not in todo],
        waves=[todo] if todo else [],
        adopt=adopt,
        before={host: state["current"] for host, state in states.items()},
        back_to={host: way["target"] for host, way in ways.items()},
        partial=partial,
    )


def _pool_ways(states: Mapping[str, Answer]) -> dict[str, Mapping[str, Any]]:
    """Each host's way back, seen with the others'.

    A rollout that failed in an early wave took some hosts back, or has yet to, and never touched the rest. Those don't
    know of it and would each go one release further: where the touched ones belong, they stay.
    """
    ways = {host: state["rollback"] for host, state in states.items()}
    between = {host for host, state in states.items() if (state.get("rollout") or {}).get("open")}
    homes = {way["target"] for host, way in ways.items() if way["target"] and (host in between or not way["needed"])}
    for host, way in ways.items():
        here = states[host]["current"]
        if host not in between and here in homes and way["target"] != here:
            ways[host] = {"target": here, "needed": False, "problem": ""}
    return ways


def require_time(plan: FleetPlan, wave_seconds: float, confirm_seconds: float, end_seconds: float = 0.0) -> None:
    """Refuse a rollout whose first hosts' guards would fire before its last wave is proven.

    :param wave_seconds: how long a wave may take.
    :param end_seconds: how long what is done once, and before the confirmation, may take.
    :raises BadInput: with the numbers.
    """
    needed = wave_seconds * len(plan.waves) + end_seconds
    if needed > confirm_seconds:
        raise BadInput(
            f"{len(plan.waves)} waves of up to {wave_seconds:.0f} s"
            + (f" and up to {end_seconds:.0f} s for hooks and the scheduler" if end_seconds else "")
            + f" don't fit into pool_confirm_timeout "
            f"({confirm_seconds:.0f} s): the guards of the first hosts would take them back in the middle of it.",
            left="Nothing was changed.",
            next_step=f"Set pool_confirm_timeout to more than {needed:.0f}, or use fewer waves, a shorter bake or "
            "quicker hooks.",
        )


def hold_consuming(
    plan: FleetPlan,
    least: Union[int, str],
    answers: Mapping[str, Optional[Answer]],
    queues: Sequence[Union[str, Sequence[str]]],
    processes: int,
    workers: Sequence[Mapping[str, Any]],
) -> None:
    """Cut the waves of a deploy so that at least so many workers consume each queue at every moment.

    :param least: a number of worker processes, or a percentage; "" or 0 for none.
    :param queues: as in ``pool_queues``.
    :param workers: those that the broker knows. A process that the host doesn't see alive consumes nothing.
    :raises BadInput: it can't be held.
    """
    if str(least).strip() in ("", "0"):
        return
    alive = {
        host: {worker["worker"] for worker in answer["pool_state"]["processes"] if worker["pid"]}
        for host, answer in answers.items()
        if answer
    }
    items = [[item] if isinstance(item, str) else list(item) for item in queues]
    consumers = [
        Consumers(
            queue=queue,
            now={
                host: sum(worker["name"] in names and queue in worker["queues"] for worker in workers)
                for host, names in alive.items()
            },
            then=processes * sum(queue in item for item in items),
        )
        # Nobody has to listen to the queue of a version before its workers are there.
        for queue in dict.fromkeys(queue for item in items for queue in item if not is_tagged(queue))
    ]
    plan.waves = hold_minimum(plan.waves, least, consumers)


def require_lease_time(hooks: Hooks, lease_seconds: float) -> None:
    """Refuse hooks during which the leases of the hosts that wait for them would run out.

    :raises BadInput: with the numbers.
    """
    for step in hooks:
        needed = seconds_of(hooks, step)
        if needed >= lease_seconds:
            raise BadInput(
                f"The hooks {step} may take {needed:.0f} s, and the lease of a host that waits for them runs out after "
                f"pool_lease_timeout ({lease_seconds:.0f} s).",
                left="Nothing was changed.",
                next_step=f"Set pool_lease_timeout to more than {needed:.0f}, or give the hooks less time.",
            )


def baseline(plan: FleetPlan, workers: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What the workers of the releases before have finished and failed: ``{finished, failed}`` in tasks."""
    before = {release for release in plan.before.values() if release and release != plan.release}
    mine = [
        worker
        for worker in workers
        if str(worker.get("name", "")).split("/")[1:2] and worker["name"].split("/")[1] in before
    ]
    return {count: sum(int(worker.get(count) or 0) for worker in mine) for count in ("finished", "failed")}
