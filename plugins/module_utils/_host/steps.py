# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps that move a host from one release to another, each noted in the journal before and after it acts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, Optional

from .._rollout import barriers, hooks, plans, rules, schedulers
from .._rollout.errors import (
    BackstepError,
    DrainTimeout,
    ReleaseDamaged,
    RollbackFailed,
    StepOutOfOrder,
    SupervisorError,
    refused_by_system,
)
from .._rollout.hook_steps import AFTER_ROLLBACK, AFTER_SWITCH, BEFORE_CONFIRM, BEFORE_ROLLBACK, BEFORE_SWITCH
from .._rollout.plans import Action
from .._rollout.pool_state import GOING_BACK, RESTORED, ROLLBACK, SWITCHED, SWITCHING, PoolState
from .._waiting.deadline import until
from .clock import moment
from .comparing import config_changes
from .draining import Drained, drain
from .files import fsync_directory, replace_link
from .hooks import end_orphans, run_hook
from .host import Host
from .info import watch
from .layout import Part
from .reaping import how_it_drains, see_to_it
from .scheduling import HandedOver, hand_over
from .terms import Terms

_SPAWN_SECONDS = 5.0
# What trying again won't mend. A full disk, or a supervisor that gives no answer, may be another matter in a moment.
_FOR_A_PERSON = (StepOutOfOrder, ReleaseDamaged, DrainTimeout)
# Actions that come before the event that opens a rollout.
_FIRST = ("verify", "arm_guard")


class Steps:
    """Carries out the actions of a plan on one host, under rollout ``token``."""

    def __init__(self, host: Host, token: int, terms: Terms) -> None:
        self.host = host
        self.token = token
        self.terms = terms
        self.drained: list[Drained] = []
        self.hooked: list[dict[str, Any]] = []
        """How each hook has ended."""
        self.handed_over: Optional[HandedOver] = None
        """How the scheduler was handed over, if it was."""
        self.evidence: dict[str, Any] = {}
        """What was seen of the workers that were brought back, as ``watch`` gives it."""
        self._deadline: Optional[float] = None
        self._note_commit: Callable[[], Any] = lambda: None

    # -- what there is ------------------------------------------------------------------------------------------

    def others(self, state: PoolState, target: Optional[str]) -> list[str]:
        """Releases besides ``target`` that run, or whose units are installed, the current one first."""
        running = self.host.running()
        known = [release for release in state.releases if self.host.supervisor.installed(release)]
        found = [release for release in [*known, *sorted(running)] if release in state.releases]
        unique = [release for release in dict.fromkeys(found) if release != target]
        return sorted(unique, key=lambda release: release != state.current)

    def _wanted(self, release: str) -> bool:
        """Whether the supervisor keeps every worker of a release up."""
        mains = self.host.supervisor.processes(release)
        return bool(mains) and all(main.wanted for main in mains)

    def _plan_hand_over(self, state: PoolState, target: Optional[str]) -> list[Action]:
        periods = schedulers.periods_here(state, self.host.pool.host)
        return schedulers.plan_hand_over(target, self.others(state, target), periods)

    # -- steps --------------------------------------------------------------------------------------------------

    def plan_switch(self, state: PoolState, target: str) -> list[Action]:
        """What ``switch`` will do; an empty list when the host is there already."""
        idle = state.rollout is not None and not state.rollout.open
        if idle and state.current == target and all(main.pid for main in self.host.supervisor.processes(target)):
            return []
        safe = rules.last_good(state)
        return plans.plan_switch(
            target,
            self.others(state, target),
            safe,
            mode=self.terms.mode,
            seconds=self.terms.drain_seconds,
            policy=self.terms.drain_policy,
            at_boot=barriers.holds_at_boot(state, target),
            hand_over=self._plan_hand_over(state, target),
        )

    def switch(self, target: str) -> list[Action]:
        """Switch to a staged release with the guard armed; what was done.

        A host that an interrupted rollout has switched already gets a new guard and keeps its processes.
        """
        state = self.host.require(self.token)
        rules.require_switch(state, target)
        actions = self.plan_switch(state, target)
        if not actions:
            return []
        hooks.require_ran(state, target, (BEFORE_SWITCH,), once=self.terms.once)
        if self.terms.part.goes_on:
            rules.require_under_way(state, self.token, SWITCHING, target)
        else:
            self._make_safe(actions, state)
            self.host.note(
                "switch_started",
                self.token,
                origin=state.current,
                target=target,
                safe=rules.last_good(state),
                mode=self.terms.mode,
                deadline=self._deadline,
                once=self.terms.once,
            )
        self._carry_out(actions, state)
        self.host.note("switched", self.token, target=target, processes=self._pids(target))
        return actions

    @staticmethod
    def left(state: PoolState, target: Optional[str]) -> Optional[str]:
        """Which release a way back to ``target`` leaves."""
        rollout = state.rollout
        if rollout and rollout.open and rollout.kind == ROLLBACK:
            return rollout.origin
        return rollout.target if rollout and rollout.open and rollout.target != target else state.current

    def plan_back(self, state: PoolState, target: Optional[str]) -> list[Action]:
        """What ``back`` will do; an empty list when the host is at its target already."""
        rollout = state.rollout
        if rollout is None or not rollout.open:
            there = state.current == target
        else:
            restored = (rollout.phase, rollout.target, rollout.token) == (RESTORED, target, self.token)
            # It doesn't start at boot before it is confirmed: a host that came up since then has to be taken back anew.
            there = restored and (target is None or self._wanted(target))
        if there:
            return []
        return plans.plan_back(
            target,
            self.others(state, target),
            mode=self.terms.mode,
            seconds=self.terms.drain_seconds,
            policy=self.terms.drain_policy,
            hooks=hooks.pending_rollback(state, self.left(state, target), target, BEFORE_ROLLBACK),
            hand_over=self._plan_hand_over(state, target),
        )

    def back(self, state: PoolState, target: Optional[str], *, verdict: str, reason: str) -> list[Action]:
        """Go back to ``target`` (None: to nothing running); what was done.

        :param state: the present state; the caller has checked that it may be changed.
        :param verdict: ``bad`` quarantines the release that is left.
        :raises RollbackFailed: of a host between two releases, which stays as it is until a person has decided.
        """
        actions = self.plan_back(state, target)
        try:
            if actions:
                self._go_back(actions, state, target, verdict, reason)
            elif target and _is_between(state):
                self._prove_up({"release": target, "seconds": plans.PROOF_SECONDS}, state)
            elif target:
                # It was there before anybody asked: whether it works is for the verdict to say.
                self.evidence = watch(self.host, target, plans.PROOF_SECONDS, self._pids(target))
        except _FOR_A_PERSON as error:
            if not _is_between(self.host.state()):
                raise
            raise self._stuck(error, target) from None
        return actions

    def _go_back(
        self, actions: Sequence[Action], state: PoolState, target: Optional[str], verdict: str, reason: str
    ) -> None:
        if self.terms.part.goes_on:
            rules.require_under_way(state, self.token, GOING_BACK, target)
        else:
            self._begin_back(actions, state, target, verdict, reason)
        self._carry_out(actions, self.host.state())
        self.host.note("restored", self.token, target=target, processes=self._pids(target) if target else {})

    def _begin_back(
        self, actions: Sequence[Action], state: PoolState, target: Optional[str], verdict: str, reason: str
    ) -> None:
        self._make_safe(actions, state)
        left = self.left(state, target)
        self.host.note(
            "rollback_started",
            self.token,
            origin=left,
            target=target,
            verdict=verdict,
            reason=reason,
            mode=self.terms.mode,
            deadline=self._deadline,
            once=bool(left and hooks.is_once(state, left)),
        )

    def _stuck(self, error: BackstepError, target: Optional[str]) -> RollbackFailed:
        """Note that the way back has failed; the failure to raise."""
        runs = sorted(self.host.running())
        self.host.note("rollback_failed", self.token, target=target, reason=error.message, running=runs)
        return RollbackFailed(
            f"{self.host.pool.host} can't go back to {target or 'no release'}: {error.message}",
            left=f"{', '.join(runs) or 'Nothing'} runs on there. The guard disturbs it no more"
            + (f", and goes on by itself once {target} stays up." if target else "."),
            next_step="Mend it, and run backstep.workers.rollback again or wait, name another good release with "
            "-e pool_to=<id>, deploy a release that works, or leave this host out with "
            f"-e pool_skip={self.host.pool.host}.",
            running=runs,
        )

    def plan_confirm(self, state: PoolState, target: Optional[str], left: Optional[str] = None) -> list[Action]:
        """What ``confirm`` will do.

        :param left: the release that a way back has left, None when a deploy is confirmed.
        """
        others = self.others(state, target)
        return plans.plan_confirm(
            target,
            others,
            seconds=self.terms.drain_seconds,
            policy=self.terms.drain_policy,
            prune=plans.to_prune(state, target, self.terms.keep, [*others, *self.host.running()]),
            hooks=hooks.pending_rollback(state, left, target, AFTER_ROLLBACK),
        )

    def confirm(self, target: Optional[str]) -> list[Action]:
        """Confirm the release that this rollout has brought the host to; what was done."""
        state = self.host.state()
        rollout = rules.require_confirm(state, self.token, target)
        if rollout is None:
            return []
        switched = rollout.phase == SWITCHED
        actions = self.plan_confirm(state, target, None if switched else rollout.origin)
        if switched:
            once = hooks.is_once(state, str(target))
            hooks.require_ran(state, str(target), (AFTER_SWITCH, BEFORE_CONFIRM), once=once)
            self._require_alive(str(target), rollout.processes)
            event: dict[str, Any] = {"event": "confirmed"}
        else:
            event = {"event": "rolled_back", "origin": rollout.origin, "reason": rollout.reason}
            event.update(config_changes(self.host, rollout.origin, target))
        leaves = self._leaves(self.others(state, target))

        def commit() -> None:
            if switched:
                rules.require_in_time(self.host.require(self.token), moment(), str(target))
            self.host.note(token=self.token, target=target, leaves=leaves, **event)

        self._note_commit = commit
        self.host.note("confirm_started", self.token, target=target)
        self._carry_out(actions, state)
        return actions

    def _leaves(self, others: list[str]) -> dict[str, Any]:
        """What becomes the reaper's in the very moment of the commit, and until when in peace."""
        return {
            "releases": others,
            "seconds": self.terms.drain_seconds,
            "policy": plans.after_commit(self.terms.drain_policy),
            "keep": self.terms.keep,
        }

    def _require_alive(self, release: str, processes: dict[str, int]) -> None:
        """Refuse to confirm a release of which a worker has died since the switch, while later waves were proven."""
        evidence = watch(self.host, release, 0.0, processes)
        if evidence["outcome"] != "ok":
            raise StepOutOfOrder(
                f"{release} is not confirmed: {'; '.join(evidence['problems'])}.",
                left="The guard is still armed.",
                next_step="The rollout takes every touched host back.",
            )

    # -- actions ------------------------------------------------------------------------------------------------

    def _make_safe(self, actions: Sequence[Action], state: PoolState) -> None:
        """Refuse while there is nothing to undo; then have a guard wait, for whoever dies once a rollout is open."""
        for action in actions:
            if action["action"] in _FIRST:
                self._carry_out_one(action, state)

    def _carry_out(self, actions: Sequence[Action], state: PoolState) -> None:
        end_orphans(self.host, self.token)
        for action in actions:
            if action["action"] not in _FIRST:
                self._carry_out_one(action, state)

    def _carry_out_one(self, action: Action, state: PoolState) -> None:
        try:
            getattr(self, f"_{action['action']}")(action, state)
        except OSError as error:
            what = " ".join(filter(None, (action["action"].replace("_", " "), action.get("release"))))
            raise refused_by_system(error, f"'{what}' could not be done") from None

    def _verify(self, action: Action, state: PoolState) -> None:
        self.host.store.verify(action["release"], state.releases[action["release"]].seal)

    def _hook(self, action: Action, state: PoolState) -> None:
        """On the way back, where a hook that fails stops nothing: a pool is never left silent."""
        rollout = state.rollout
        way = (rollout.origin, rollout.target) if rollout else (None, None)
        self.hooked.append(run_hook(self.host, action, self.token, *way))

    def _arm_guard(self, _action: Action, _state: PoolState) -> None:
        self._deadline = moment().up + self.terms.confirm_seconds
        self.host.note("guard_armed", self.token, seconds=self.terms.confirm_seconds, deadline=self._deadline)
        self.host.supervisor.arm_guard(self.token, self.terms.confirm_seconds)

    def _install_units(self, action: Action, _state: PoolState) -> None:
        self.host.install_units(self.host.store.spec(action["release"]))

    def _start(self, action: Action, _state: PoolState) -> None:
        self.host.supervisor.start(action["release"])

    def _prove_up(self, action: Action, _state: PoolState) -> None:
        release = action["release"]
        expected = self._pids(release, Part.WORKERS)
        self.evidence = watch(self.host, release, action["seconds"], expected, Part.WORKERS)
        if self.evidence["outcome"] != "ok":
            problems = "; ".join(self.evidence["problems"])
            raise StepOutOfOrder(f"{release} was started again and doesn't stay up: {problems}.")

    def _quiet(self, action: Action, _state: PoolState) -> None:
        self.host.supervisor.quiet(action["release"], Part.WORKERS)

    def _hand_over_scheduler(self, action: Action, _state: PoolState) -> None:
        target = action["release"]
        self.handed_over = hand_over(self.host, target, action["others"], action["period"], self.token)
        if target and self.evidence:
            # On the way back nobody watches the host any more: what is not so is said, and the way back goes on.
            expected = self._pids(target, Part.SCHEDULER)
            seen = watch(self.host, target, plans.PROOF_SECONDS, expected, Part.SCHEDULER)
            outcome = "ok" if seen["outcome"] == self.evidence["outcome"] == "ok" else "failed"
            found = [*self.evidence["problems"], *seen["problems"]]
            self.evidence = {**self.evidence, "outcome": outcome, "problems": found, "scheduler": seen["scheduler"]}

    def _drain(self, action: Action, _state: PoolState) -> None:
        seconds, policy = action["seconds"], action["policy"]
        self.drained.append(drain(self.host, action["release"], self.token, seconds, policy, self.terms.part))

    def _link(self, action: Action, _state: PoolState) -> None:
        link = self.host.layout.current
        if action["release"]:
            replace_link(link, f"releases/{action['release']}")
        elif link.is_symlink():
            link.unlink()
            fsync_directory(link.parent)

    def _enable(self, action: Action, _state: PoolState) -> None:
        self.host.supervisor.enable(action["release"])

    def _disable(self, action: Action, _state: PoolState) -> None:
        self.host.supervisor.disable(action["release"])

    def _commit(self, _action: Action, _state: PoolState) -> None:
        self._note_commit()

    def _disarm_guard(self, _action: Action, _state: PoolState) -> None:
        self.host.supervisor.disarm_guard()
        self.host.note("guard_disarmed", self.token)

    def _reap(self, action: Action, _state: PoolState) -> None:
        """At once if nothing of the release lives; what has a task keeps its units and its files until it has ended."""
        see_to_it(self.host)
        self.drained.append(how_it_drains(self.host, action["release"]))

    def _prune(self, action: Action, _state: PoolState) -> None:
        self.host.store.discard(action["release"])
        self.host.note("pruned", self.token, release=action["release"])

    def _pids(self, release: str, part: Part = Part.ALL) -> dict[str, int]:
        """The main process of each, once each has one or its supervisor has given one up.

        0 stands for one that is not up yet, and for one that still has a task from before, after which it is replaced.
        """

        def mains_are_there() -> bool:
            return all(main.pid for main in self.host.supervisor.processes(release, part))

        until(_SPAWN_SECONDS, mains_are_there)
        found = self.host.supervisor.processes(release, part)
        if not found:
            raise SupervisorError(f"The supervisor knows no worker of {release} after it was told to start them.")
        return {str(main.index): main.pid if main.pid and main.wanted else 0 for main in found}


def _is_between(state: PoolState) -> bool:
    return state.rollout is not None and state.rollout.open
