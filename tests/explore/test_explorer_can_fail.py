# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each promise can be seen to be broken: with a rule taken out of the code, the explorer prints a way to the harm."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host import host as hosts
from ansible_collections.backstep.workers.plugins.module_utils._host import leasing, steps, way_back
from ansible_collections.backstep.workers.plugins.module_utils._host.layout import Part
from ansible_collections.backstep.workers.plugins.module_utils._rollout import (
    fleet,
    plans,
    pool_state,
    record,
    rules,
    schedulers,
    state,
)

from tests.explore.acting import on_paper
from tests.explore.flow import DEPLOY, ROLLBACK
from tests.explore.paper import Paper
from tests.explore.search import PromiseBroken, explore
from tests.explore.world import Scope

ONE = Scope("one host", depth=1)
BACK = Scope("a rollback", first=(ROLLBACK, ""), depth=1)
CONTROLLERS = Scope("two controllers", others=((DEPLOY, "4"), (ROLLBACK, "")), depth=1)
DYING = Scope("workers die on one of two", hosts=2, disturbances=frozenset(("workers die",)), depth=1)
STUCK = Scope(
    "the way back dies too", dying=(("w1", "3"), ("w1", "2")), disturbances=frozenset(("workers live",)), depth=1
)
SCHEDULED = Scope("a scheduler", with_scheduler=frozenset("123"), depth=1)
FLEET = Scope("two hosts", hosts=2, disturbances=frozenset(("controller dies", "verdict")), depth=1)


@dataclass(frozen=True)
class Mutation:
    """Code that is replaced, the scope in which that does harm, and what is said of it."""

    where: Any
    name: str
    new: Any
    scope: Scope
    broken: str


def nothing(*_given: Any, **_named: Any) -> None:
    """Do nothing."""


def no_guard(self: Any, *_given: Any) -> None:
    """In the place of ``arm_guard``."""
    self._deadline = 2000.0


def early(first: str, then: str) -> Callable[..., Any]:
    """``plan_confirm`` with one action moved before another."""
    real = plans.plan_confirm

    def plan(*given: Any, **named: Any) -> Any:
        actions = real(*given, **named)
        moved = [action for action in actions if action["action"] == first]
        rest = [action for action in actions if action["action"] != first]
        place = next(index for index, action in enumerate(rest) if action["action"] == then)
        return [*rest[:place], *moved, *rest[place:]]

    return plan


def all_is_well(plan: Any, noted: Any) -> dict[str, Any]:
    """In the place of ``outcome``."""
    return {**REAL_OUTCOME(plan, noted), "ok": True, "exceptions": {}}


def good_again(now: pool_state.PoolState, event: pool_state.Event) -> None:
    """In the place of what ``rolled_back`` comes to."""
    REAL_ROLLED_BACK(now, event)
    if event["origin"]:
        now.releases[event["origin"]].state = pool_state.GOOD


REAL_START, REAL_QUIET = Paper.start_stopped, Paper.quiet
REAL_HAND_OVER = schedulers.plan_hand_over
REAL_ROLLED_BACK = state.EVENTS["rolled_back"]
REAL_OUTCOME = record.outcome
MUTATIONS = {
    "no token is asked for": Mutation(hosts, "require_lease", nothing, CONTROLLERS, "changed the host"),
    "every lease is granted": Mutation(
        leasing,
        "decide_grant",
        lambda _state, _now, *, token, **_rest: rules.Grant(token, "granted"),
        CONTROLLERS,
        "took the lease of|was granted after",
    ),
    "no guard is armed": Mutation(
        steps.Steps, "_arm_guard", no_guard, ONE, "with no guard that waits|nothing consumes"
    ),
    "the guard is armed once a rollout is open": Mutation(
        steps, "_FIRST", ("verify",), BACK, "with no guard that waits"
    ),
    "the guard is disarmed before the commit": Mutation(
        plans, "plan_confirm", early("disarm_guard", "commit"), ONE, "with no guard that waits"
    ),
    "the guard never finds that it is due": Mutation(
        way_back, "_time_is_up", lambda *_given: False, ONE, "when every guard"
    ),
    "the guard never looks again at a way back that has failed": Mutation(
        way_back, "_works_again", lambda *_given: False, STUCK, "consumes, and the last good release is"
    ),
    "the guard leaves a confirmation half done": Mutation(
        way_back,
        "_let_go",
        lambda host, _state: host.supervisor.disarm_guard(),
        ONE,
        "the reaper waits on|starts at boot",
    ),
    "a deploy that gives up goes one release too far": Mutation(
        rules, "found_on", lambda now, _token: rules.rollback_target(now), ONE, "goes back to 1, and came from 2"
    ),
    "a rollback always goes one release further": Mutation(
        way_back, "rollback_target", lambda now, _wish: now.good_releases()[-1], ONE, "rolled back once"
    ),
    "everything is pruned": Mutation(
        plans,
        "to_prune",
        lambda now, target, *_rest: [name for name in now.releases if name != target],
        ONE,
        "pruned|whole",
    ),
    "the guard goes to the release that is tried": Mutation(
        rules, "last_good", lambda now: now.current, CONTROLLERS, "the guard would go to|consumes"
    ),
    "what is bad becomes good again": Mutation(state.EVENTS, "rolled_back", good_again, BACK, "was bad"),
    "every run says that all is well": Mutation(
        record, "outcome", all_is_well, FLEET, "ended well|says that|no exception"
    ),
    "the scheduler is not handed over on the way back": Mutation(
        schedulers,
        "plan_hand_over",
        lambda target, others, periods: [] if "3" in others else REAL_HAND_OVER(target, others, periods),
        SCHEDULED,
        "and the last good release is",
    ),
    "the new scheduler is started only when the old one has ended": Mutation(
        Paper,
        "start_stopped",
        lambda self, release, part: (
            None if part is Part.SCHEDULER and self.facts.schedulers else REAL_START(self, release, part)
        ),
        SCHEDULED,
        "no scheduler runs",
    ),
    "a release that is told to take no more loses its scheduler": Mutation(
        steps.Steps,
        "_quiet",
        lambda self, action, _state: self.host.supervisor.quiet(action["release"]),
        SCHEDULED,
        "no scheduler runs",
    ),
    "a scheduler that came up with a release that was left goes on": Mutation(
        Paper,
        "quiet",
        lambda self, release, part=Part.WORKERS: REAL_QUIET(self, release, part),
        replace(SCHEDULED, disturbances=frozenset(("controller dies", "reboot")), depth=2),
        "schedulers of .* live|the reaper waits on",
    ),
    "a host between two releases is left to itself": Mutation(
        fleet, "_is_open", lambda _answer: False, DYING, "the hosts are on|consumes"
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_rule_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation = MUTATIONS[name]
    replaced: tuple[Any, ...] = ()
    if isinstance(mutation.where, dict):
        monkeypatch.setitem(mutation.where, mutation.name, mutation.new)
    else:
        replaced = ((mutation.where, mutation.name, mutation.new),)
    with on_paper(*replaced), pytest.raises(PromiseBroken) as broken:
        explore(mutation.scope)
    print(broken.value)
    headline, *way = str(broken.value).splitlines()
    assert re.search(mutation.broken, headline)
    assert way[0] == "  0. the start"
    assert len(way) < 25
