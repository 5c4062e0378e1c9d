# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole small world: its hosts and its controllers, and everything that can happen next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.backstep.workers.plugins.module_utils._rollout.rules import Moment, is_live

from tests.explore.acting import (
    Done,
    behalf,
    drain_is_over,
    fire_guard,
    person_goes_back,
    reaper_looks,
    reboot,
    take_step,
    tasks_end,
)
from tests.explore.flow import DEPLOY, HOSTS, Run, advance, answered
from tests.explore.paper import Facts

_LOST = {"unreachable": True, "msg": "no answer"}
# Steps that only look can be asked again at any time: nothing comes of cutting them short.
_LOOKS = ("release_info", "rollout_verdict")


DISTURBANCES = frozenset(
    ("controller dies", "answer lost", "verdict", "guard", "reboot", "lease", "person", "workers die", "workers live")
)


@dataclass(frozen=True)
class Scope:
    """What is explored: the world at the start, and what may disturb it.

    :param good: how many releases were good before, one after the other.
    :param first: the flow and the release of the first controller.
    :param others: the flows and releases of the controllers that may come later.
    :param settings: variables of the role, the same for all controllers.
    :param dying: releases whose workers die as soon as they are started, by host.
    :param failing: whether workers of a drill die, as they are meant to.
    :param with_scheduler: the releases that have a scheduler.
    :param provable: whether a controller can prove that another one is dead.
    :param disturbances: which kinds there are.
    :param depth: how many disturbances there may be in one way.
    """

    name: str
    hosts: int = 1
    good: int = 2
    first: tuple[str, str] = (DEPLOY, "3")
    others: tuple[tuple[str, str], ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()
    dying: tuple[tuple[str, str], ...] = ()
    busy: bool = False
    failing: bool = False
    provable: bool = False
    with_scheduler: frozenset[str] = frozenset()
    disturbances: frozenset[str] = DISTURBANCES
    depth: int = 2


@dataclass(frozen=True)
class World:
    """Everything that there is. Never changed, only replaced."""

    facts: tuple[Facts, ...]
    runs: tuple[Run, ...] = ()
    dead: frozenset[str] = frozenset()
    begun: int = 0

    def of(self, host: str) -> Facts:
        """One host."""
        return next(facts for facts in self.facts if facts.name == host)

    def with_facts(self, new: Facts) -> World:
        """The world with one host replaced."""
        return replace(self, facts=tuple(new if facts.name == new.name else facts for facts in self.facts))

    def with_run(self, new: Run) -> World:
        """The world with one controller replaced; it goes when it has ended."""
        runs = [new if run.name == new.name else run for run in self.runs]
        return replace(self, runs=tuple(run for run in runs if run.code is None))

    def without(self, gone: Run) -> World:
        """The world in which a controller has died."""
        return replace(
            self, runs=tuple(run for run in self.runs if run.name != gone.name), dead=self.dead | {gone.name}
        )


@dataclass(frozen=True)
class Move:
    """Something that happens.

    :param cost: 1 for a disturbance.
    :param run: who did it, as it was before; None for what no controller did.
    :param ended: the controller, if this was its last step.
    :param late: a controller that had to wait for the host's lock, and how it then found the host.
    """

    label: str
    cost: int
    after: World
    host: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    run: Run | None = None
    ended: Run | None = None
    late: tuple[Run, Facts] | None = None


def lease_is_live(facts: Facts) -> bool:
    """Whether somebody holds the host."""
    return is_live(facts.state.lease, Moment(f"boot-{facts.boot}", facts.up, 0.0))


def begin(world: World, flow: str, release: str, scope: Scope) -> tuple[World, Run]:
    """A new controller, before its first step."""
    name = f"controller {world.begun + 1}"
    run = Run(name, flow, release, HOSTS[: scope.hosts], scope.settings)
    behalf(run, world.dead if scope.provable else frozenset())
    run = advance(run)
    return replace(world, runs=(*world.runs, run), begun=world.begun + 1), run


def step(world: World, run: Run, scope: Scope, answer: dict[str, Any] | None = None) -> tuple[World, Run, Done]:
    """A controller's next step, undisturbed."""
    behalf(run, world.dead if scope.provable else frozenset())
    done = Done(world.of(run.host), [], [], answer or {}) if answer else take_step(run, world.of(run.host))
    after = advance(answered(run, done.answer))
    return world.with_facts(done.facts).with_run(after), after, done


def go_on(world: World, run: Run, scope: Scope) -> tuple[World, Run]:
    """A controller's run to its end, with nobody else there; what can be good is found to be good."""
    while run.code is None:
        world, run, _done = step(world, run, scope, good_verdict(run))
    return world, run


def good_verdict(run: Run) -> dict[str, Any] | None:
    """The best answer that chance can give, or None where it isn't asked."""
    if run.task.module != "rollout_verdict":
        return None
    alive = run.arguments()["evidence"].get("outcome") == "ok"
    return {"verdict": "good" if alive else "bad", "reason": ""}


def start(scope: Scope) -> World:
    """The world before the first move."""
    hosts = [Facts(name, busy=False, with_scheduler=scope.with_scheduler) for name in HOSTS[: scope.hosts]]
    world = World(tuple(hosts))
    for number in range(scope.good):
        world, run = begin(world, DEPLOY, str(number + 1), scope)
        world, run = go_on(world, run, scope)
        assert run.code == 0
    dying: dict[str, frozenset[str]] = {}
    for host, release in scope.dying:
        dying[host] = dying.get(host, frozenset()) | {release}
    facts = tuple(
        replace(one, dying=dying.get(one.name, frozenset()), busy=scope.busy, failing=scope.failing)
        for one in world.facts
    )
    world, _run = begin(replace(world, facts=facts), *scope.first, scope)
    return world


def moves(world: World, scope: Scope) -> Iterator[Move]:
    """Everything that can happen next."""
    for run in world.runs:
        yield from _moves_of(world, run, scope)
    for facts in world.facts:
        yield from _moves_on(world, facts, scope)
    if len(world.runs) < 2:
        for flow, release in scope.others:
            after, run = begin(world, flow, release, scope)
            yield Move(f"{run.name} begins: {flow} {release}".rstrip(), 1, after)


def _moves_of(world: World, run: Run, scope: Scope) -> Iterator[Move]:
    where = f"{run.name}: {run.task.name} ({run.host})"
    answer = good_verdict(run)
    after, next_run, done = step(world, run, scope, answer)
    ended = next_run if next_run.code is not None else None
    told = f" -> {done.answer['msg'][:110]}" if "msg" in done.answer else ""
    if answer:
        told = f" -> {answer['verdict']}"
    yield Move(where + told, 0, after, run.host, done.events, run, ended)
    yield from _raced(world, run, done, scope)
    if answer and answer["verdict"] == "good" and "verdict" in scope.disturbances:
        for verdict in ("bad", "unknown"):
            after, next_run, _done = step(world, run, scope, {"verdict": verdict, "reason": "chance"})
            yield Move(f"{where} -> {verdict}", 1, after, run.host, [], run)
    # Dead before the step is dead at the end of the step before: each way is shown once.
    ways = [("at its end", done.facts)] if run.task.module in _LOOKS else [*done.ways, ("at its end", done.facts)]
    for what, facts in ways:
        cut = world.with_facts(facts)
        if "controller dies" in scope.disturbances:
            yield Move(f"{where}, the controller dies {what}", 1, cut.without(run), run.host)
        if "answer lost" in scope.disturbances:
            behalf(run, world.dead if scope.provable else frozenset())
            next_run = advance(answered(run, _LOST))
            ended = next_run if next_run.code is not None else None
            yield Move(f"{where}, no answer: cut off {what}", 1, cut.with_run(next_run), run.host, ended=ended)


def _raced(world: World, run: Run, alone: Done, scope: Scope) -> Iterator[Move]:
    """While the step waits for the host's lock, another controller's step or the guard comes first."""
    facts = world.of(run.host)
    for lock in range(1, alone.locks + 1):
        for other in world.runs:
            if other.name == run.name or other.host != run.host or other.task.module in _LOOKS:
                continue
            first: list[Done] = []
            behalf(run, world.dead if scope.provable else frozenset())
            done = take_step(run, facts, (lock, _noting(other, first)))
            after = world.with_facts(done.facts).with_run(advance(answered(run, done.answer)))
            behalf(other, world.dead if scope.provable else frozenset())
            after = after.with_run(advance(answered(other, first[0].answer)))
            label = f"{run.name}: {run.task.name} ({run.host}), while {other.name}: {other.task.name} comes first"
            told = f" -> {done.answer['msg'][:110]}" if "msg" in done.answer else ""
            yield Move(label + told, 1, after, run.host, late=(run, first[0].facts))
        if facts.guard is not None and "guard" in scope.disturbances:
            behalf(run, world.dead if scope.provable else frozenset())
            done = take_step(run, facts, (lock, lambda now: fire_guard(now).facts))
            after = world.with_facts(done.facts).with_run(advance(answered(run, done.answer)))
            label = f"{run.name}: {run.task.name} ({run.host}), while the guard comes first"
            yield Move(label, 1, after, run.host, late=(run, fire_guard(facts).facts))


def _moves_on(world: World, facts: Facts, scope: Scope) -> Iterator[Move]:
    name = facts.name
    able = scope.disturbances
    if facts.booting:
        yield from _acts(world, "the guard runs at boot", 0, fire_guard(facts, boot=True), name)
    if facts.guard is not None and "guard" in able:
        yield from _acts(world, "the guard fires", 1, fire_guard(facts), name)
    if "reboot" in able:
        yield Move(f"{name}: power cut", 1, world.with_facts(reboot(facts)), name)
    lease = facts.state.lease
    if lease and lease_is_live(facts) and "lease" in able:
        expired = replace(facts, up=max(facts.up, lease.expires))
        yield Move(f"{name}: the lease runs out", 1, world.with_facts(expired), name)
    if "person" in able:
        yield from _acts(world, "a person rolls back", 1, person_goes_back(facts), name)
    if facts.reaper:
        yield from _acts(world, "the reaper looks", 0, reaper_looks(facts), name)
    later = drain_is_over(facts)
    if later and "guard" in able:
        yield Move(f"{name}: the time to drain is up", 1, world.with_facts(later), name)
    if any(worker.ending for worker in facts.workers.values()):
        yield Move(f"{name}: tasks end", 0, world.with_facts(tasks_end(facts)), name)
    yield from _of_workers(world, facts, scope)


def _of_workers(world: World, facts: Facts, scope: Scope) -> Iterator[Move]:
    name, release = facts.name, scope.first[1] or "3"
    if "workers live" in scope.disturbances and facts.dying:
        alive = replace(facts, dying=frozenset())
        yield Move(f"{name}: workers of {', '.join(sorted(facts.dying))} live", 1, world.with_facts(alive), name)
    if "workers die" in scope.disturbances and release in facts.consuming():
        dead = replace(facts, dying=facts.dying | {release})
        yield Move(f"{name}: workers of {release} die", 1, world.with_facts(dead), name)


def _acts(world: World, what: str, cost: int, done: Done, host: str) -> Iterator[Move]:
    told = f" -> {done.answer['msg'][:110]}" if "msg" in done.answer else ""
    yield Move(f"{host}: {what}{told}", cost, world.with_facts(done.facts), host, done.events)
    for way, facts in done.ways:
        yield Move(f"{host}: {what}, and is killed {way}", cost + 1, world.with_facts(facts), host)


def _noting(run: Run, done: list[Done]) -> Callable[[Facts], Facts]:
    """Takes a run's step, and adds to ``done`` what came of it."""

    def take(now: Facts) -> Facts:
        done.append(take_step(run, now))
        return done[-1].facts

    return take
