# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kills at a boundary of a play, then waits or runs the play again, and says what was not as promised."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ansible_collections.backstep.workers.plugins.module_utils._host.host import CONTROLLER

from tests.faults.gate import Boundary, Gate
from tests.faults.ground import HOSTS, PLAY_SECONDS, Consuming, Controller, Ground
from tests.faults.table import Run
from tools.common import ToolError, wait_for

DEPLOY, BAD_DEPLOY, ROLLBACK = "deploy", "deploy of a bad release", "rollback"
PLAYS = (DEPLOY, BAD_DEPLOY, ROLLBACK)
_POLL_SECONDS = 0.2


def _kill_step(_controller: Controller, step: int | None) -> None:
    if step:
        with suppress(ProcessLookupError):
            os.kill(step, signal.SIGKILL)


def _kill_both(controller: Controller, step: int | None) -> None:
    _kill_step(controller, step)
    controller.kill()


def _freeze_step(_controller: Controller, step: int | None) -> None:
    """As when the host stands still, or its disk hangs: nobody gets an answer, and nobody can take another step."""
    if step:
        os.kill(step, signal.SIGSTOP)


def _thaw_step(step: int | None) -> None:
    if step:
        with suppress(ProcessLookupError):
            os.kill(step, signal.SIGCONT)


KILLED = "controller killed"
FROZEN = "step on the host frozen"
FAULTS: dict[str, Callable[[Controller, int | None], None]] = {
    KILLED: lambda controller, _step: controller.kill(),
    "step on the host killed": _kill_step,
    "controller and step killed": _kill_both,
    FROZEN: _freeze_step,
    "controller terminated": lambda controller, _step: controller.terminate(),
    "Ctrl-C twice": lambda controller, _step: controller.interrupt_twice(),
}
# After these the play itself goes on, and has to tell the truth in the end.
_PLAY_GOES_ON = ("step on the host killed", FROZEN)
_NEEDS_A_PERSON = "NEEDS A PERSON"
# Until a host that gives no answer is given up; more than any step takes on a busy machine.
_STEP_SECONDS = 20


@dataclass(frozen=True)
class Case:
    """What is done when, and whether the play is run again at once or the host is left to its guard first."""

    play: str
    boundary: Boundary
    fault: str
    wait: bool

    def __str__(self) -> str:
        then = "wait, then run again" if self.wait else "run again"
        return f"{self.fault} {self.boundary} on {self.boundary.host} in a {self.play}; {then}"


class Attempt:
    """A play from a settled pool, which can be run again. ``home`` is the release that its hosts are on before."""

    def __init__(self, ground: Ground, play: str) -> None:
        self.ground, self.play = ground, play
        if play == ROLLBACK:
            self.target = ground.current()
            ground.require("deploy", **ground.build())
        # In `replace` mode the steps wait for a drain; in `overlap` the host does that by itself, later.
        replace = {"pool_mode": "replace"}
        self.variables: dict[str, Any] = (
            replace if play == ROLLBACK else ground.build("crash" if play == BAD_DEPLOY else "")
        )
        self.home = ground.current()
        self.before = ground.lengths()

    def start(self) -> Controller:
        """Run the play, once more perhaps."""
        terms = {**self.variables, "pool_step_timeout": _STEP_SECONDS}
        return self.ground.start("rollback" if self.play == ROLLBACK else "deploy", **terms)

    def written(self) -> dict[str, list[str]]:
        """The events that it has written, by host."""
        return {name: [event["event"] for event in self.ground.events(name, self.before[name])] for name in HOSTS}

    def misplaced(self, name: str) -> str | None:
        """Whether a settled host is on another release than its journal allows: N, the one before, nothing third."""
        state = self.ground.host(name).state()
        release = str(state.current)
        events = self.written()[name]
        if self.play == ROLLBACK:
            allowed = self.target if "rollback_started" in events else self.home
        elif "confirmed" in events and "rollback_started" not in events:
            allowed = release if release.startswith(f"{self.variables['pool_version']}-") else "the new release"
        else:
            allowed = self.home
        return None if release == allowed else f"{name} is on {release}, not on {allowed}, after {events}"

    def missed(self, status: int) -> list[str]:
        """What is wrong when the play has run to its end undisturbed, with this exit status."""
        found = {name: str(self.ground.host(name).state().current) for name in HOSTS}
        new = self.variables.get("pool_version", "")
        if self.play == DEPLOY:
            right = status == 0 and all(release.startswith(f"{new}-") for release in found.values())
        elif self.play == ROLLBACK:
            right = status == 0 and set(found.values()) == {self.target}
        else:
            right = status != 0 and set(found.values()) == {self.home}
        return [] if right else [f"run again, it ended with {status} and the hosts on {found}"]


def observed(ground: Ground, play: str) -> dict[str, list[str]]:
    """The events that the steps of an undisturbed run of a play write, by host; not what the host does by itself later.

    :raises ToolError: it did not go as it has to.
    """
    attempt = Attempt(ground, play)
    with ground.production():
        controller = attempt.start()
        wrong = attempt.missed(controller.wait())
    if wrong:
        raise ToolError(f"An undisturbed {play} went wrong: {wrong}\n{controller.output[-6000:]}")
    ground.wait_settled(ground.grace_seconds)
    return {
        name: [event["event"] for event in ground.events(name, attempt.before[name]) if event["by"] == CONTROLLER]
        for name in HOSTS
    }


def run_case(ground: Ground, case: Case) -> Run:
    """Do it, and say what was not as promised."""
    attempt = Attempt(ground, case.play)
    run = Run(case.fault, f"{case.play}: {case.boundary}")
    with ground.production():
        controller = attempt.start()
        with Gate(ground.journal(case.boundary.host)) as gate:
            if not gate.wait_for(case.boundary, PLAY_SECONDS, controller.running):
                run.complaints.append(f"the play ended before it came to this: {gate.seen}")
            consuming, step = Consuming(ground), gate.writer()
            FAULTS[case.fault](controller, step)
        try:
            run.complaints += _aftermath(ground, case, attempt, controller, consuming, step)
        except ToolError as error:
            run.complaints.append(str(error))
    run.seconds = consuming.seconds
    _count(ground, run)
    if run.complaints:
        print(controller.output)
    return run


def _aftermath(
    ground: Ground, case: Case, attempt: Attempt, controller: Controller, consuming: Consuming, step: int | None
) -> list[str]:
    found = []
    if case.fault in _PLAY_GOES_ON:
        status = _wait_consuming(controller, consuming)
        found += attempt.missed(status) if status == 0 else []
        if case.fault == FROZEN:
            _thaw_step(step)
        else:
            # A way back that was cut short is the guard's from then on; the run has failed and named the host.
            named = status != 0 and _NEEDS_A_PERSON in controller.output
            ground.wait_settled((ground.confirm_seconds if named else 0) + ground.grace_seconds)
            found += _one_verdict(ground)
    else:
        controller.wait()
    if case.wait:
        # Before its first event a step that goes on is not to be seen in the journal.
        controller.wait_steps()
        ground.wait_settled(ground.confirm_seconds + ground.grace_seconds)
        found += filter(None, map(attempt.misplaced, HOSTS))
        if case.fault == FROZEN:
            found += _named(ground, case.boundary.host, controller)
        wait_for("every host to consume", lambda: _silent(consuming), timeout=ground.grace_seconds)
    return [*found, *_run_again(ground, case, attempt, consuming)]


def _run_again(ground: Ground, case: Case, attempt: Attempt, consuming: Consuming) -> list[str]:
    again = attempt.start()
    status = _wait_consuming(again, consuming)
    if case.play == DEPLOY and status != 0:
        # It had an interrupted way back to finish first, and says so.
        again = attempt.start()
        status = _wait_consuming(again, consuming)
    wrong = attempt.missed(status)
    if wrong:
        print(again.output)
    ground.wait_settled(ground.grace_seconds)
    wait_for("every host to consume", lambda: _silent(consuming), timeout=ground.grace_seconds)
    return [*wrong, *ground.complaints()]


def _named(ground: Ground, frozen: str, controller: Controller) -> list[str]:
    """A frozen host may end on another release than the rest, but then the run has failed and named it."""
    said = controller.wait() != 0 and f"{frozen} has given no answer for" in controller.output
    return [] if said else _one_verdict(ground)


def _one_verdict(ground: Ground) -> list[str]:
    found = {name: ground.host(name).state().current for name in HOSTS}
    return [] if len(set(found.values())) == 1 else [f"a run that went to its end left {found}"]


def _wait_consuming(controller: Controller, consuming: Consuming) -> int:
    def not_over() -> str | None:
        consuming.look()
        return "under way" if controller.running() else None

    wait_for("the playbook to end", not_over, timeout=PLAY_SECONDS, interval=_POLL_SECONDS)
    return controller.wait()


def _silent(consuming: Consuming) -> str | None:
    consuming.look()
    return None if consuming.seconds is not None else "not every host has finished a task since"


def _count(ground: Ground, run: Run) -> None:
    """The ledger since the last count."""
    try:
        found = ground.take_balance()
    except ToolError as error:
        run.complaints.append(str(error))
        return
    lost, duplicated = found.lost - ground.known, found.duplicated - ground.known
    announced = found.announced - ground.known
    ground.known |= found.lost | found.duplicated
    run.lost, run.duplicated, run.announced = len(lost), len(duplicated), len(announced)
    run.complaints += [f"lost: {sorted(lost)}"] if lost else []
    silent = duplicated - announced
    run.complaints += [f"ran twice, unannounced: {sorted(silent)}"] if silent else []
