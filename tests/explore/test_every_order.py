# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every order of events, not only those that somebody thought of.

What is explored is the collection's own code: the role's task files (``flow.py`` reads them), the modules, the host's
steps, the guard, the reaper and the fleet's decisions. Only what they act on is of paper (``paper.py``). From a start
(a ``Scope``), everything that can happen next is tried (``world.py``): a controller's next step, cut short before
each of its acts and half way through each line of the journal, with the controller dead or only without an answer;
the guard, which may be killed as well; power cuts, leases that run out, workers that die, a bad or an unknown
verdict, a person, a second controller, and one step that waits for the lock while another one comes first. What a
controller does when nothing disturbs it is free; all the rest counts as a disturbance, and all ways with up to
``depth`` of them are tried. Worlds that nothing can tell apart (``canonical.py``) are visited once. Promises are in
``promises.py``.

In a test run the depth is 1, and 2 for what leaves one host alone: some minutes. ``BACKSTEP_EXPLORE_DEPTH=1``
(or more) is added to all of them, for a run that may take its time.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout.state import EVENTS

from tests.explore.acting import on_paper
from tests.explore.flow import DEPLOY, DRILL, ON_HOSTS, ROLLBACK, Task, only_reads, program
from tests.explore.search import Explored, explore
from tests.explore.world import DISTURBANCES, Scope

MORE = int(os.environ.get("BACKSTEP_EXPLORE_DEPTH", "0"))
REPLACE = ("pool_mode", "replace")
REQUEUE = ("pool_drain", {"timeout": 10.0, "on_timeout": "requeue"})
ALWAYS = frozenset("1234")
DEPLOYS, ROLLS_BACK, DRILLS = (DEPLOY, "3"), (ROLLBACK, ""), (DRILL, "")
ALLOWED = ("pool_drill", True)
# What leaves a host alone, which may happen twice; and what tells two hosts apart (all the rest with more depth).
WHAT_DIES = frozenset(("controller dies", "guard", "reboot"))
OF_FLEETS = DISTURBANCES if MORE else frozenset(("controller dies", "verdict", "guard"))

NONE: frozenset[str] = frozenset()

# Of releases with hooks or a rollback barrier, which have tests of their own: nothing runs a hook on paper.
ELSEWHERE = ("hook_started", "hook_ended", "barrier_held", "journal_cut", "so_far", "notified")

SCOPES = {
    scope.name: replace(scope, depth=scope.depth + MORE)
    for scope in (
        Scope("a deploy", depth=1),
        Scope("a deploy, disturbed twice", disturbances=WHAT_DIES, depth=2),
        Scope("a first deploy", good=0, depth=1),
        Scope("a deploy that dies", dying=(("w1", "3"),), depth=1),
        Scope("a deploy that dies, and so does the way back", dying=(("w1", "3"), ("w1", "2")), depth=1),
        Scope("a deploy with tasks that last", busy=True, depth=1),
        Scope("a deploy that requeues", busy=True, settings=(REQUEUE,), depth=1),
        Scope("a deploy that replaces", busy=True, settings=(REPLACE,), depth=1),
        Scope("a deploy that replaces and requeues", busy=True, settings=(REPLACE, REQUEUE), depth=1),
        Scope("a rollback", first=ROLLS_BACK, depth=1),
        Scope("a rollback, disturbed twice", first=ROLLS_BACK, disturbances=WHAT_DIES, depth=2),
        Scope("two controllers", others=((DEPLOY, "4"), ROLLS_BACK), depth=1),
        Scope("a controller after a dead one", others=(DEPLOYS,), provable=True, depth=1),
        Scope("a deploy with a scheduler", with_scheduler=ALWAYS, depth=1),
        Scope("a deploy with a scheduler, disturbed twice", with_scheduler=ALWAYS, disturbances=WHAT_DIES, depth=2),
        Scope("a deploy that brings a scheduler", with_scheduler=frozenset("3"), depth=1),
        Scope(
            "a deploy that replaces and has no scheduler any more",
            with_scheduler=frozenset("12"),
            busy=True,
            settings=(REPLACE,),
            depth=1,
        ),
        Scope("a rollback with a scheduler", first=ROLLS_BACK, with_scheduler=ALWAYS, depth=1),
        Scope(
            "two hosts, a scheduler on one",
            hosts=2,
            with_scheduler=ALWAYS,
            disturbances=OF_FLEETS - {"person"},
            depth=1,
        ),
        Scope("two hosts", hosts=2, others=(ROLLS_BACK,), disturbances=OF_FLEETS - {"person"}, depth=1),
        Scope(
            "two hosts, one of them bad", hosts=2, dying=(("w2", "3"),), disturbances=OF_FLEETS - {"person"}, depth=1
        ),
        Scope("a drill", first=DRILLS, settings=(ALLOWED,), failing=True, depth=1),
        Scope("a drill that seems to work", first=DRILLS, settings=(ALLOWED,), busy=True, depth=1),
        *(
            Scope(
                f"a drill, and {what}",
                first=DRILLS,
                others=(other,),
                settings=(ALLOWED,),
                failing=True,
                disturbances=dying,
                depth=1,
            )
            # Two drills come to five times the worlds of the others together.
            for what, other, dying in (
                ("a deploy", DEPLOYS, WHAT_DIES),
                ("a rollback", ROLLS_BACK, WHAT_DIES),
                ("another drill", DRILLS, NONE),
            )
        ),
        Scope(
            "two hosts are drilled, with a scheduler on one",
            hosts=2,
            first=DRILLS,
            with_scheduler=ALWAYS | {f"drill-{number}" for number in range(20)},
            settings=(ALLOWED,),
            failing=True,
            disturbances=OF_FLEETS - {"person"},
            depth=1,
        ),
        Scope("two hosts, two rollbacks", hosts=2, first=ROLLS_BACK, others=(ROLLS_BACK,), disturbances=NONE, depth=1),
        Scope("two hosts go back", hosts=2, first=ROLLS_BACK, disturbances=OF_FLEETS - {"person"}, depth=1),
    )
}

# What takes longest and reaches nothing that another scope does not.
LONG = ("a drill, and another drill",)

pytestmark = pytest.mark.timeout(300 * 10**MORE)


@cache
def explored(name: str) -> Explored:
    """What there is in a scope."""
    with on_paper():
        return explore(SCOPES[name])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.thorough] if name in LONG else []) for name in SCOPES]
)
def test_every_promise_holds_in_every_order(name: str) -> None:
    seen = explored(name)
    print(f"{name}: {seen.worlds} worlds, {seen.moves} moves")


def test_every_event_and_every_step_of_the_flows_is_reached() -> None:
    everything = [explored(name) for name in SCOPES if name not in LONG]
    assert set(EVENTS) - {event for seen in everything for event in seen.events} == set(ELSEWHERE)
    steps = {
        (flow, task.name)
        for flow in (DEPLOY, ROLLBACK, DRILL)
        for task in program(flow).code
        # What only reads is left out: journals to show, and tasks, of which a broker of paper holds none.
        if isinstance(task, Task) and task.module in ON_HOSTS and "tasks" not in task.arguments and not only_reads(task)
    }
    assert steps - set().union(*(seen.tasks for seen in everything)) == set()
