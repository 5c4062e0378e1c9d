# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever is asked of a host, in any order, cut short anywhere: the last good release is never lost.

The host's real steps on a real journal and real stored releases. Only the supervisor and the clock are of paper.
"""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host import clock
from ansible_collections.backstep.workers.plugins.module_utils._host.clock import moment
from ansible_collections.backstep.workers.plugins.module_utils._host.layout import Pool, Spec
from ansible_collections.backstep.workers.plugins.module_utils._host.leasing import give_back, take
from ansible_collections.backstep.workers.plugins.module_utils._host.moving import confirm_host, switch_host
from ansible_collections.backstep.workers.plugins.module_utils._host.reaping import reap
from ansible_collections.backstep.workers.plugins.module_utils._host.staging import stage_host
from ansible_collections.backstep.workers.plugins.module_utils._host.store import Content
from ansible_collections.backstep.workers.plugins.module_utils._host.supervisors import table
from ansible_collections.backstep.workers.plugins.module_utils._host.supervisors.base import REAPER
from ansible_collections.backstep.workers.plugins.module_utils._host.terms import Terms
from ansible_collections.backstep.workers.plugins.module_utils._host.way_back import go_back_alone, guard
from ansible_collections.backstep.workers.plugins.module_utils._rollout import rules
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BackstepError, NoGoodRelease
from ansible_collections.backstep.workers.plugins.module_utils._rollout.pool_state import BAD, GOOD, Event, PoolState
from ansible_collections.backstep.workers.plugins.module_utils._rollout.snapshot import SO_FAR
from ansible_collections.backstep.workers.plugins.module_utils._rollout.state import fold
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.paper import FIRST, SECOND, THIRD, Killed, Paper, PaperHost, PaperTime

USER = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
BROKER = "redis://127.0.0.1:6379/0"
# The first release has none.
WITH_SCHEDULER = frozenset((SECOND, THIRD))
CONFIRM_SECONDS, LEASE_SECONDS = 100.0, 60.0
RELEASES = st.sampled_from([FIRST, SECOND, THIRD])
OWNERS = st.sampled_from(["ana", "bob"])
# By how many rollouts a step comes late: most don't.
LATE = st.sampled_from([0, 0, 0, 0, 1])
# After how many of the supervisor's answers the process that takes a step dies; most live.
LIVES = st.sampled_from([None, None, None, 1, 2, 3, 4, 5, 6, 8])


class AnyOrder(RuleBasedStateMachine):
    """One host, two owners, three releases, a guard, a person, power cuts."""

    @initialize(deployed=st.sampled_from([2, 1, 0]))
    def begin(self, deployed: int) -> None:
        """A host with some good releases; ``teardown`` undoes what is replaced here."""
        self.folder = Path(tempfile.mkdtemp(prefix="backstep-", dir="/dev/shm"))  # a real fsync, at no cost
        self.patch = pytest.MonkeyPatch()
        self.time = PaperTime()
        self.boot = 1
        self.patch.setattr(clock, "time", self.time)
        self.patch.setattr(clock, "_boot_name", lambda: f"boot-{self.boot}")
        self.patch.setitem(table.SUPERVISORS, Paper.name, Paper)
        (self.folder / "code").mkdir()
        self.host = PaperHost(str(self.folder / "root"), Pool("mail", "w1", Paper.name, "", "", "python3"))
        self.time.busy = self.host.supervisor.busy
        self.host.supervisor.has_scheduler.update(WITH_SCHEDULER)
        (self.folder / "root").mkdir()
        self.had_good = False
        self.bad: set[str] = set()
        for release in (FIRST, SECOND)[:deployed]:
            self.whole_deploy(release, None)

    def teardown(self) -> None:
        """Whatever happened, the guard settles the host in time."""
        if not hasattr(self, "host"):
            return
        try:
            self.settles()
        finally:
            self.patch.undo()
            shutil.rmtree(self.folder)

    # -- helpers ----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> PoolState:
        return self.host.state()

    def attempt(self, step: Any, *given: Any, lives: int | None = None, by: str = "controller", **named: Any) -> Any:
        """Take a step that may be refused, or be cut short after ``lives`` acts."""
        self.time.up += 1.0
        paper = self.host.supervisor
        paper.lives, self.host.by = lives, by
        try:
            return step(*given, **named)
        except (BackstepError, Killed):
            return None
        finally:
            paper.lives = None

    # -- what can be asked for --------------------------------------------------------------------------------------

    def lease(self, run: str, kind: str, adopt: str) -> None:
        """Ask for the lease; may be refused."""
        self.attempt(
            take, self.host, moment(), rollout=self.state.last_token + 1, kind=kind, owner={"run": run, "user": run},
            seconds=LEASE_SECONDS, adopt=adopt,
        )  # fmt: skip

    def stage(self, release: str, late: int = 0, lives: int | None = None) -> None:
        """Stage a release."""
        scheduler = {"command": ["x"], "host": "w1", "period": 1.0} if release in WITH_SCHEDULER else {}
        spec = Spec(
            id=release, version=release[:3], pool="mail", engine="rq", queues=[["q"]], processes=1, command=["x"],
            user=USER, broker=BROKER, broker_variable="RQ_REDIS_URL", identity={}, scheduler=scheduler,
        )  # fmt: skip
        content = Content("", str(self.folder / "code"), {}, {}, [], 1.0)
        token = self.state.last_token - late
        self.attempt(stage_host, self.host, spec, content, rollout=token, program=b"", broker_url=BROKER, lives=lives)

    @rule(run=OWNERS, kind=st.sampled_from(["deploy", "rollback"]), adopt=st.sampled_from(["", "ana", "bob"]))
    def somebody_asks_for_the_lease(self, run: str, kind: str, adopt: str) -> None:
        self.lease(run, kind, adopt)

    @rule(run=OWNERS, release=RELEASES, mode=st.sampled_from(["overlap", "replace"]), lives=LIVES)
    def deploy(self, run: str, release: str, mode: str, lives: int | None) -> None:
        """As far as the switch."""
        self.lease(run, "deploy", "")
        self.stage(release)
        self.switch(release, mode, 0, lives)

    @rule(release=RELEASES, lives=LIVES)
    def whole_deploy(self, release: str, lives: int | None) -> None:
        """To its end, where nobody else is at work."""
        self.deploy("ana", release, "overlap", None)
        self.confirm(0, lives)
        self.end("", 0)

    @rule(release=RELEASES, late=LATE)
    def stage_only(self, release: str, late: int) -> None:
        self.stage(release, late)

    @rule(release=RELEASES, mode=st.sampled_from(["overlap", "replace"]), late=LATE, lives=LIVES)
    def switch(self, release: str, mode: str, late: int, lives: int | None) -> None:
        was_bad = self.state.state_of(release) == BAD
        done = self._move(release, mode, late, lives, verdict="unknown")
        assert not (was_bad and done), "a bad release was switched to"

    @rule(run=OWNERS, verdict=st.sampled_from(["bad", "unknown"]), late=LATE, lives=LIVES)
    def back(self, run: str, verdict: str, late: int, lives: int | None) -> None:
        self.lease(run, "rollback", "")
        self._move("previous", "overlap", late, lives, verdict=verdict)

    def _move(self, release: str, mode: str, late: int, lives: int | None, verdict: str) -> Any:
        token = self.state.last_token - late
        return self.attempt(
            switch_host, self.host, Terms(mode=mode, confirm_seconds=CONFIRM_SECONDS, keep=1), release=release, wish="",
            rollout=token, owner=None, adopt="", lease_seconds=LEASE_SECONDS, verdict=verdict, reason="",
            check_mode=False, lives=lives,
        )  # fmt: skip

    @rule(late=LATE, lives=LIVES)
    def confirm(self, late: int, lives: int | None) -> None:
        rollout = self.state.rollout
        target = rollout.target if rollout else None
        token = self.state.last_token - late
        self.attempt(
            confirm_host, self.host, Terms(keep=1), release=target or "", rollout=token, check_mode=False, lives=lives
        )

    @rule(quarantine=RELEASES, late=LATE)
    def end(self, quarantine: str, late: int) -> None:
        before = rules.last_good(self.state)
        give = quarantine if quarantine != before else ""
        lease = self.state.lease
        owner = lease.owner if lease else {}
        self.attempt(give_back, self.host, self.state.last_token - late, owner, give, "", False)

    @rule(lives=LIVES)
    def person(self, lives: int | None) -> None:
        self.attempt(go_back_alone, self.host, "", "a person", lives=lives, by="person")

    @precondition(lambda self: self.host.supervisor.guarded)
    @rule(lives=LIVES, later=st.sampled_from([0.0, CONFIRM_SECONDS]))
    def guard(self, lives: int | None, later: float) -> None:
        self.time.up += later
        good = set(self.state.good_releases())
        rollout = self.state.rollout
        tried = rollout.target if rollout else None
        self.attempt(guard, self.host, lives=lives, by="guard")
        assert good - {tried} <= set(self.state.good_releases()), "the guard made a good release bad"

    @rule(release=RELEASES)
    def a_task_outlasts_what_is_asked_of_its_release(self, release: str) -> None:
        if release in self.host.supervisor.running:
            self.host.supervisor.busy.add(release)

    @precondition(lambda self: self.host.supervisor.chore_armed(REAPER))
    @rule(lives=LIVES, ended=st.booleans())
    def reaper(self, lives: int | None, ended: bool) -> None:
        """One look; the supervisor starts it again when it has died."""
        if ended:
            self.host.supervisor.busy.clear()
        self.attempt(reap, self.host, lives=lives, by="reaper")

    @rule()
    def old_lines_go(self) -> None:
        """All of them; what they add up to stays."""
        before = self.state
        gone = self.host.journal.cut(float("inf"), moment(), stay=0, go=1)
        after = self.state
        assert gone or self.host.journal.read() == ([], 0)
        assert replace(after, changed=before.changed) == before

    @rule()
    def time_passes(self) -> None:
        self.time.up += LEASE_SECONDS

    @rule()
    def power_cut(self) -> None:
        """What is enabled comes up, and what was armed runs at boot."""
        paper = self.host.supervisor
        self.boot += 1
        paper.running = set(paper.at_boot)
        paper.boot_schedulers()
        paper.busy.clear()
        if paper.guarded:
            self.attempt(guard, self.host, boot=True, by="guard")
        elif paper.chore_armed(REAPER):
            self.attempt(reap, self.host, by="reaper")
        rollout = self.state.rollout
        if rollout and not rollout.open and self.state.current:
            assert paper.running == {self.state.current}

    # -- what always holds ------------------------------------------------------------------------------------------

    @invariant()
    def what_always_holds(self) -> None:
        """Read once for all: reading the journal, which checks its chain, is what takes the time here."""
        events, torn = self.host.journal.read()
        assert torn == 0
        state = fold(events)
        self._a_good_release_is_there_whole_and_the_way_back(state)
        self._what_is_bad_stays_bad(state)
        self._every_step_was_taken_by_who_held_the_lease(events)
        self._what_runs(state)

    def _a_good_release_is_there_whole_and_the_way_back(self, state: PoolState) -> None:
        good = state.good_releases()
        self.had_good = self.had_good or bool(good)
        assert bool(good) == self.had_good, "the last good release was lost"
        if good:
            assert self.host.store.problems(good[0], state.releases[good[0]].seal) == []
        try:
            target = rules.rollback_target(state)
        except NoGoodRelease:
            return
        assert target is None or state.state_of(target) == GOOD

    def _what_is_bad_stays_bad(self, state: PoolState) -> None:
        assert all(state.state_of(release) in (BAD, None) for release in self.bad)
        self.bad = {release for release in state.releases if state.state_of(release) == BAD}

    def _every_step_was_taken_by_who_held_the_lease(self, events: list[Event]) -> None:
        granted = [event["token"] for event in events if event["event"] == "lease_granted"]
        assert granted == sorted(set(granted)), "numbers only grow"
        held = events[0]["state"]["lease"]["token"] if events and events[0]["event"] == SO_FAR else 0
        for number, event in enumerate(events):
            if event["event"] == "lease_granted":
                held = event["token"]
            elif event["by"] == "controller":
                assert event["token"] == held, f"event {number} by who no longer held the lease"

    def _what_runs(self, state: PoolState) -> None:
        rollout, paper = state.rollout, self.host.supervisor
        if rollout and rollout.open and rollout.safe and rollout.safe not in paper.running:
            assert paper.guarded, "something was touched without a guard"
        if rollout and not rollout.open and state.current:
            assert state.current in paper.running
            assert state.current in paper.at_boot
            assert paper.scheduling == {state.current} & WITH_SCHEDULER
        if state.draining:
            assert paper.guarded or paper.chore_armed(REAPER), "what drains is nobody's"

    def settles(self) -> None:
        """The guard takes an open rollout back in time, and twice back is once back."""
        for _again in range(3):
            self.time.up += CONFIRM_SECONDS * 2
            if self.host.supervisor.guarded:
                guard(self.host)
        self.host.supervisor.busy.clear()
        if self.host.supervisor.chore_armed(REAPER):
            reap(self.host)
        state = self.state
        assert not state.draining
        if state.rollout and state.rollout.open:
            assert not self.host.supervisor.guarded, "a guard that was armed did not settle the host"
            go_back_alone(self.host, "", "")
            state = self.state
        assert not (state.rollout and state.rollout.open)
        if not state.good_releases() or state.current is None:
            return
        assert state.state_of(state.current) == GOOD
        try:
            go_back_alone(self.host, "", "")
        except NoGoodRelease:
            return
        first = self.state.current
        go_back_alone(self.host, "", "")
        assert self.state.current == first


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


# -- orders that were found to matter ------------------------------------------------------------------------------


@pytest.fixture
def host() -> Iterator[AnyOrder]:
    """A host on which the first release was good before the second."""
    host = AnyOrder()
    host.begin(2)
    yield host
    host.what_always_holds()
    host.teardown()


def test_a_restart_on_the_way_back_takes_it_anew(host: AnyOrder) -> None:
    host.back("ana", "bad", 0, None)
    host.power_cut()
    assert host.state.current == FIRST
    assert host.host.supervisor.running == {FIRST}


@pytest.mark.parametrize("lives", range(1, 5))
def test_a_switch_that_was_cut_short_goes_back_to_the_latest_good_release(host: AnyOrder, lives: int) -> None:
    host.deploy("ana", THIRD, "overlap", lives)
    host.person(None)
    assert host.state.current == SECOND


@pytest.mark.parametrize("lives", range(8))
def test_a_confirmation_that_was_cut_short_starts_one_release_at_boot(host: AnyOrder, lives: int) -> None:
    host.deploy("ana", THIRD, "overlap", None)
    host.confirm(0, lives)
    host.power_cut()
    assert host.host.supervisor.running in ({SECOND}, {THIRD})


@pytest.mark.parametrize("lives", [*range(12), None])
def test_what_drains_is_somebody_s_wherever_the_confirmation_was_cut_short(host: AnyOrder, lives: int | None) -> None:
    host.a_task_outlasts_what_is_asked_of_its_release(SECOND)
    host.deploy("ana", THIRD, "overlap", None)
    host.confirm(0, lives)
    assert lives is not None or host.state.draining.keys() == {SECOND}
    assert SECOND in host.host.supervisor.units
