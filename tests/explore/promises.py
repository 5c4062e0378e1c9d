# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to hold in every world that can be reached, and of everything that happens in it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ansible_collections.backstep.workers.plugins.module_utils._host.layout import SCHEDULER_INDEX
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import NoGoodRelease
from ansible_collections.backstep.workers.plugins.module_utils._rollout.pool_state import BAD, DEPLOY, GOOD, ROLLBACK
from ansible_collections.backstep.workers.plugins.module_utils._rollout.rules import rollback_target

from tests.explore import flow
from tests.explore.acting import fire_guard, is_stuck, person_goes_back, reaper_looks, reboot, tasks_end
from tests.explore.flow import Run
from tests.explore.paper import Facts
from tests.explore.world import Move, Scope, World, begin, go_on, lease_is_live


def at_every_moment(facts: Facts) -> Iterator[str]:
    """What a host must never be like, also in the middle of a step."""
    yield from _of_targets(facts)
    yield from _of_what_is_unconfirmed(facts)
    yield from _of_schedulers(facts)


def _of_targets(facts: Facts) -> Iterator[str]:
    state, rollout = facts.state, facts.state.rollout
    good = state.good_releases()
    for release in good[:1]:
        if facts.stored.get(release) != "whole":
            yield f"the last good release, {release}, is not whole: {facts.stored.get(release)}"
    opened = rollout if rollout and rollout.open else None
    if opened and opened.safe and (state.state_of(opened.safe) != GOOD or facts.stored.get(opened.safe) != "whole"):
        yield f"the guard would go to {opened.safe}, which is {state.state_of(opened.safe)}"
    if opened and opened.kind == DEPLOY and opened.safe != (good[0] if good else None):
        yield f"the guard would go to {opened.safe}, and the last good release is {good[:1]}"
    if opened and state.state_of(opened.target) == BAD:
        yield f"the bad release {opened.target} is a target"
    for release in state.confirmed:
        if state.is_drill(release):
            yield f"{release} was made to fail for a drill, and is {state.state_of(release)}"
    try:
        target = rollback_target(state)
    except NoGoodRelease:
        target = None
    if target and state.state_of(target) != GOOD:
        yield f"a rollback would go to {target}, which is {state.state_of(target)}"


def _of_what_is_unconfirmed(facts: Facts) -> Iterator[str]:
    state = facts.state
    waiting = facts.guard is not None or facts.booting
    for release in sorted({release for release, _index in facts.at_boot}):
        if state.state_of(release) != GOOD and not waiting:
            yield f"{release} is {state.state_of(release)} and starts at boot, with no guard that waits"
    for release in sorted({release for release, _index in facts.workers}):
        asked = any(not worker.ending for (name, _index), worker in facts.workers.items() if name == release)
        if asked and state.state_of(release) != GOOD and not waiting and not _needs_a_person(facts):
            yield f"{release} is {state.state_of(release)} and runs, with no guard that waits"


def _of_schedulers(facts: Facts) -> Iterator[str]:
    """The lock lets one run at a time; it has to be one that may, and there has to be one whoever dies."""
    rollout = facts.state.rollout
    ends = (rollout.origin, rollout.target, rollout.safe) if rollout and rollout.open else ()
    places = {facts.state.current, *ends}
    if facts.guard is None and not facts.booting and set(facts.schedulers) - places:
        yield f"schedulers of {facts.schedulers} live, and the host is on {facts.state.current}"
    always = facts.state.current and all(place and SCHEDULER_INDEX in facts.units(place) for place in places)
    if always and not facts.schedulers:
        yield f"no scheduler runs, and each of {sorted(map(str, places))} has one"


def _needs_a_person(facts: Facts) -> bool:
    """Whether even the last good release dies: then what still consumes may go on."""
    good = facts.state.good_releases()
    return not good or good[0] in facts.dying


def of_a_move(before: World, move: Move) -> Iterator[str]:
    """What must never happen."""
    if not move.host:
        return
    old, new = before.of(move.host), move.after.of(move.host)
    yield from _of_releases(old, new)
    for event in move.events:
        if event["event"] == "lease_granted":
            yield from _of_a_grant(old, event)
            yield from _of_the_others_leases(before, move, event)
        elif event["event"] == "rollback_started" and not _asked_for(move, event):
            yield from _of_a_way_back(old, event)
    if move.late and move.late[0].plan:
        yield from _of_a_late_step(new, *move.late)
    if move.run and move.run.plan and move.run.task.module not in ("rollout_verdict", "release_info"):
        yield from _of_a_step(old, new, move)


def _asked_for(move: Move, event: dict[str, Any]) -> bool:
    """Whether somebody has asked for a rollback, as against a deploy that gives up, or a guard."""
    return event["by"] != "guard" and not (move.run and move.run.flow in (flow.DEPLOY, flow.DRILL))


def _of_releases(old: Facts, new: Facts) -> Iterator[str]:
    good = old.state.good_releases()
    # Where there was nothing before, a rollout that comes to nothing goes back to nothing.
    first = old.state.rollout is not None and old.state.rollout.safe is None
    if good and not new.state.good_releases() and not first:
        yield "the last good release was lost"
    for release in old.state.releases:
        if old.state.state_of(release) == BAD and new.state.state_of(release) not in (BAD, None):
            yield f"{release} was bad and is {new.state.state_of(release)}"
    if good and good[0] not in new.stored:
        yield f"the last good release, {good[0]}, was pruned"


def _of_a_way_back(old: Facts, event: dict[str, Any]) -> Iterator[str]:
    """Nobody has asked to go back: it goes where the rollout came from, and no further."""
    rollout, good = old.state.rollout, old.state.good_releases()
    home = good[0] if good else None
    if rollout and (rollout.open or rollout.token == event["token"]):
        home = rollout.safe
    if event["target"] != home:
        yield f"it goes back to {event['target']}, and came from {home}"


def _of_a_grant(old: Facts, event: dict[str, Any]) -> Iterator[str]:
    lease = old.state.lease
    if event["token"] <= old.state.last_token:
        yield f"number {event['token']} was granted after {old.state.last_token}"
    if lease and lease_is_live(old) and lease.kind == ROLLBACK and event.get("how") != "adopted":
        yield f"a {event['kind']} took the lease of a rollback"
    if lease and lease_is_live(old) and event["kind"] == DEPLOY and event.get("how") != "adopted":
        yield "a deploy took the lease of a living owner"


def _of_the_others_leases(before: World, move: Move, event: dict[str, Any]) -> Iterator[str]:
    """Two rollbacks never have a part of the hosts each."""
    alive = {run.name for run in before.runs if move.run and run.name != move.run.name}
    for facts in before.facts:
        lease = facts.state.lease
        theirs = lease and lease_is_live(facts) and lease.kind == ROLLBACK and lease.owner.get("run") in alive
        if theirs and facts.name != move.host and event["kind"] == ROLLBACK:
            yield f"{move.host} was given to a rollback, and {facts.name} has another one"


def _of_a_step(old: Facts, new: Facts, move: Move) -> Iterator[str]:
    """A step changes a host only under the lease that is live when it begins, or that it takes itself."""
    assert move.run is not None
    token = move.run.plan["rollout"]
    lease = old.state.lease
    takes = any(event["event"] == "lease_granted" for event in move.events)
    holds = _owns(move.run, old) and lease_is_live(old)
    # An expired lease that nobody has taken since may still be given back.
    returns = move.run.arguments().get("state") == "released" and _owns(move.run, old)
    # That a drill has ended is noted once the lease is given back, and nothing else is done then.
    told = {event["event"] for event in move.events}
    notes = move.run.task.module == "rollout_drill" and told <= {"drilled", "torn_line"}
    if new != old and not (takes or holds or returns or notes):
        yield f"rollout {token} changed the host, and its lease was {lease}"


def _of_a_late_step(new: Facts, run: Run, found: Facts) -> Iterator[str]:
    """A step that had to wait has to ask again whether it still may."""
    returns = run.task.module == "rollout_lease" and _owns(run, found)
    notes = run.task.module == "rollout_drill"
    if new != found and not (returns or notes or (_owns(run, found) and lease_is_live(found)) or _owns(run, new)):
        yield f"{run.name} changed the host, and its lease had passed to {found.state.lease}"


def _owns(run: Run, facts: Facts) -> bool:
    """Whether the last lease of a host, run out or not, is that of a run."""
    return facts.state.lease is not None and facts.state.lease.owner.get("run") == run.name


# -- in the end -----------------------------------------------------------------------------------------------------


def settled(facts: Facts) -> Facts:
    """The host once every guard has fired and every task has ended, with no controller there."""
    for _turn in range(6):
        before = facts
        if facts.booting:
            facts = fire_guard(facts, boot=True).facts
        elif facts.guard is not None:
            facts = fire_guard(facts).facts
        if facts == before:
            break
    return reaped(tasks_end(facts))


def reaped(facts: Facts) -> Facts:
    """The host once the reaper has let go what has ended."""
    return reaper_looks(facts).facts if facts.reaper else facts


def in_the_end(facts: Facts) -> Iterator[str]:
    """What a host comes to by itself."""
    end = settled(facts)
    yield from _rest(end, "when every guard has fired")
    again = settled(reboot(end))
    yield from _rest(again, "after that and a power cut")
    if again.consuming() != end.consuming() and end.state.rollout and not end.state.rollout.open:
        yield f"{sorted(end.consuming())} consumed, and after a power cut {sorted(again.consuming())}"
    yield from _twice_back(end)


def _rest(end: Facts, when: str) -> Iterator[str]:
    state, rollout = end.state, end.state.rollout
    good = state.good_releases()
    if end.reaper or state.draining:
        yield f"{when}: the reaper waits on, for {sorted(state.draining)}"
    if (end.guard is not None and not is_stuck(end)) or end.booting:
        yield f"{when}: there is always one more guard"
    if _needs_a_person(end) and good:
        return
    consuming = end.consuming()
    if consuming != set(good[:1]):
        yield f"{when}: {sorted(consuming) or 'nothing'} consumes, and the last good release is {good[:1]}"
    schedules = tuple(release for release in good[:1] if SCHEDULER_INDEX in end.units(release))
    if end.schedulers != schedules:
        yield f"{when}: schedulers of {end.schedulers} live, and the last good release is {good[:1]}"
    if rollout and not rollout.open:
        wanted = {(release, index) for release in good[:1] for index in end.units(release)}
        if end.at_boot != wanted:
            yield f"{when}: {sorted(end.at_boot)} starts at boot, and the last good release is {good[:1]}"
        if state.current != (good[0] if good else None) or end.link != state.current:
            yield f"{when}: current is {state.current}, its link {end.link}, the last good release {good[:1]}"


def _twice_back(end: Facts) -> Iterator[str]:
    """Rolling back twice never lands on a worse place."""
    once = settled(person_goes_back(end).facts)
    twice = settled(person_goes_back(once).facts)
    if twice.state.current != once.state.current or twice.consuming() != once.consuming():
        yield f"rolled back once: {once.state.current}, twice: {twice.state.current}"


def unleased(facts: Facts) -> Facts:
    """The host once the lease has run out."""
    state = copy.copy(facts.state)
    state.lease = None
    return replace(facts, state=state)


def runs_again(world: World, scope: Scope, when: str) -> Iterator[str]:
    """What a fleet comes to when somebody runs a playbook again, with nobody else at work."""
    drills = [(flow.DRILL, "")] if scope.first[0] == flow.DRILL else []
    for playbook, release in ((flow.DEPLOY, scope.first[1] or "3"), (flow.ROLLBACK, ""), *drills):
        yield from _converges(world, playbook, release, scope, when)


def _converges(world: World, playbook: str, release: str, scope: Scope, when: str) -> Iterator[str]:
    codes: list[int | None] = []
    for _turn in range(3):
        world, run = begin(world, playbook, release, scope)
        world, run = go_on(world, run, scope)
        codes.append(run.code)
        yield from of_an_exit(Move("", 0, world, ended=run))
        if run.code == 0 or _named(run):
            break
    if playbook != flow.ROLLBACK and (_named(run) or "pool__ended" not in run.shared):
        # It was refused, or it names the hosts that are an exception: a person takes them all back.
        yield from _converges(world, flow.ROLLBACK, "", scope, f"{when}, after a deploy")
        return
    if (
        playbook == flow.ROLLBACK
        and run.code
        and "pool__ended" not in run.shared
        and "pool_to" not in dict(scope.settings)
    ):
        # It was refused, as the hosts would go to different releases: a person names one.
        shared = set.intersection(*(set(facts.state.good_releases()) for facts in world.facts))
        for wish in sorted(shared)[-1:]:
            named = replace(scope, settings=(*scope.settings, ("pool_to", wish)))
            yield from _converges(world, playbook, release, named, f"{when}, with a wish")
            return
    world = World(tuple(reaped(tasks_end(facts)) for facts in world.facts))
    what = f"{when}, {playbook} {release} ended with {codes}"
    places = {facts.name: facts.state.current for facts in world.facts}
    if any(_needs_a_person(facts) and facts.state.good_releases() for facts in world.facts):
        return
    if len(set(places.values())) > 1:
        yield f"{what}, and the hosts are on {places}"
    for facts in world.facts:
        yield from (f"{what}, and {facts.name}: {broken}" for broken in _rest(settled(facts), "then"))


def _named(run: Run) -> bool:
    """Whether a run has named hosts as exceptions."""
    return bool(run.shared.get("pool__ended", {}).get("outcome", {}).get("exceptions"))


def of_an_exit(move: Move) -> Iterator[str]:
    """What a run says in the end is so, and it never says that all is well while the hosts are on two releases."""
    run = move.ended
    if run is None or "pool__ended" not in run.shared:
        return
    plan, outcome = run.plan, run.shared["pool__ended"]["outcome"]
    places = {facts.name: facts.state.current for facts in move.after.facts}
    mine = [facts.name for facts in move.after.facts if _only(run, facts)]
    for host in run.shared["pool__ended"]["touched"]:
        release = outcome["hosts"][host]
        if host in mine and host not in outcome["exceptions"] and places[host] != release:
            yield f"{run.name} says that {host} is on {release}, and it is on {places[host]}"
    if len(mine) < len(places):
        return
    if not outcome["exceptions"] and len(set(places.values())) > 1:
        yield f"{run.name} names no exception, and the hosts are on {places}"
    wanted = set(plan["back_to"].values()) if plan["drill"] else {plan["release"]}
    if run.code == 0 and set(places.values()) != wanted:
        yield f"{run.name} ended well, for {wanted}, and the hosts are on {places}"


def _only(run: Run, facts: Facts) -> bool:
    """Whether nobody has had the lease of a host since this run made its plan, but this run."""
    return facts.state.last_token < run.plan["rollout"] or _owns(run, facts)
