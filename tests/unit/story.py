# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Journals by hand: the events that a host writes, as short calls, for tests of what they add up to."""

from __future__ import annotations

from typing import Any

from ansible_collections.backstep.workers.plugins.module_utils._rollout.pool_state import Event, PoolState
from ansible_collections.backstep.workers.plugins.module_utils._rollout.rules import Moment
from ansible_collections.backstep.workers.plugins.module_utils._rollout.state import fold

BOOT = "boot-1"


def person(run: str) -> dict[str, Any]:
    """An owner of leases."""
    return {"run": run, "user": run, "controller": "ops1", "pid": 4711}


class Story:
    """Events of one host, one a second, under rollout ``token``."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.token = 0
        self.up = 100.0
        self.boot = BOOT

    @property
    def now(self) -> Moment:
        """The host's time of the next event."""
        return Moment(self.boot, self.up, 1_000_000.0 + self.up)

    @property
    def state(self) -> PoolState:
        """What the events so far add up to."""
        return fold(self.events)

    def note(self, event: str, by: str = "controller", **data: Any) -> Story:
        """One event."""
        stamp = {"time": self.now.time, "up": self.up, "boot": self.boot, "token": self.token, "by": by}
        self.events.append({**stamp, "event": event, **data})
        self.up += 1.0
        return self

    def lease(self, run: str = "ana", kind: str = "deploy", seconds: float = 300.0) -> Story:
        """A lease is granted, under the next number."""
        self.token += 1
        return self.note("lease_granted", kind=kind, owner=person(run), seconds=seconds)

    def stage(self, release: str, **sealed: Any) -> Story:
        """A release is stored and sealed."""
        self.note("stage_started", release=release, version=release.partition("-")[0])
        return self.note("staged", release=release, seal=f"seal of {release}", **sealed)

    def switch(self, release: str, deadline: float = 600.0) -> Story:
        """The host is switched, with its guard armed."""
        state = self.state
        good = state.good_releases()
        safe = good[0] if good else None
        self.note("switch_started", origin=state.current, target=release, safe=safe, mode="overlap")
        self.note("guard_armed", seconds=deadline, deadline=self.up + deadline)
        return self.note("switched", target=release, processes={"1": 4242})

    def confirm(self) -> Story:
        """The open rollout is confirmed."""
        rollout = self.state.rollout
        assert rollout is not None
        return self.note("confirmed", target=rollout.target)

    def back(self, target: str | None, verdict: str = "unknown", reason: str = "it broke") -> Story:
        """The host is taken back, not yet confirmed there."""
        rollout = self.state.rollout
        origin = rollout.target if rollout and rollout.open else self.state.current
        self.note("rollback_started", origin=origin, target=target, verdict=verdict, reason=reason, mode="overlap")
        return self.note("restored", target=target, processes={"1": 4243})

    def hook(self, release: str, step: str, number: int = 1, outcome: str = "done") -> Story:
        """A hook was run."""
        self.note("hook_started", release=release, step=step, number=number, command=["x"])
        ended = {"outcome": outcome, "code": 0, "seconds": 0.1, "output": ""}
        return self.note("hook_ended", release=release, step=step, number=number, command=["x"], **ended)

    def settle(self) -> Story:
        """The way back is confirmed."""
        rollout = self.state.rollout
        assert rollout is not None
        return self.note("rolled_back", origin=rollout.origin, target=rollout.target, reason=rollout.reason)

    def good(self, release: str, **sealed: Any) -> Story:
        """A whole deploy that goes well."""
        return self.lease().stage(release, **sealed).switch(release).confirm().note("lease_released")

    def bad(self, release: str) -> Story:
        """A whole deploy that is taken back as bad."""
        self.lease().stage(release).switch(release)
        return self.back(self.state.good_releases()[0], "bad").settle().note("lease_released")
