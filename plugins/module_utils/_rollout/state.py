# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the journal's events add up to: the state of one pool on one host."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Callable, Optional

from .errors import JournalDamaged
from .hook_steps import AFTER_CONFIRM, AFTER_STAGE, BEFORE_STAGE, BEFORE_SWITCH, DONE, hook_mark, marks_of
from .notices import with_notice
from .pool_state import (
    BAD,
    CONFIRMED,
    DEPLOY,
    GOING_BACK,
    GOOD,
    RESTORED,
    ROLLBACK,
    ROLLED_BACK,
    STAGED,
    STUCK,
    SWITCHED,
    SWITCHING,
    UNCONFIRMED,
    UNFINISHED,
    Barrier,
    Draining,
    Event,
    Lease,
    PoolState,
    Reaped,
    Release,
    Rollout,
)
from .snapshot import CUT, SO_FAR, state_from

JOURNAL_SCHEMA = 2


def _set_release(state: PoolState, release: str, status: str, event: Event, reason: str = "") -> None:
    known = state.releases.get(release)
    if known is None:
        known = state.releases[release] = Release(release, event.get("version", release), status, event["time"])
    known.state, known.since, known.reason = status, event["time"], reason


def _confirm(state: PoolState, release: str, event: Event, arrived_by: str) -> None:
    _set_release(state, release, GOOD, event)
    if release in state.confirmed:
        state.confirmed.remove(release)
    state.confirmed.append(release)
    state.current, state.arrived_by = release, arrived_by


def _want(state: PoolState, release: Optional[str]) -> None:
    """A release that is to run again is nothing that the reaper may touch."""
    state.draining.pop(release or "", None)
    if release in state.reaped:
        state.reaped[release].again = True


def _leave(state: PoolState, event: Event) -> None:
    """What runs besides the release that was confirmed is the reaper's; one that has been so keeps its deadline."""
    leaves = event.get("leaves") or {"releases": []}
    for release in leaves["releases"]:
        if release not in state.draining:
            state.draining[release] = Draining(
                release=release,
                token=event["token"],
                since=event["time"],
                boot=event["boot"],
                deadline=event["up"] + leaves["seconds"],
                policy=leaves["policy"],
                keep=leaves["keep"],
            )


def _drain_overran(state: PoolState, event: Event) -> None:
    if event["release"] in state.draining:
        state.draining[event["release"]].overran = event["running"]


def _reaped(state: PoolState, event: Event) -> None:
    release = event["release"]
    state.draining.pop(release, None)
    state.reaped[release] = Reaped(release, event["outcome"], event["time"], event["running"])


def _lease_granted(state: PoolState, event: Event) -> None:
    state.lease = Lease(
        token=event["token"],
        kind=event["kind"],
        owner=event["owner"],
        granted=event["time"],
        seconds=event["seconds"],
        boot=event["boot"],
        expires=event["up"] + event["seconds"],
    )


def _lease_released(state: PoolState, event: Event) -> None:
    if state.lease and state.lease.token == event["token"]:
        state.lease.released = True
        state.ran = marks_of(state.ran, (AFTER_CONFIRM,))


def _stage_started(state: PoolState, event: Event) -> None:
    _set_release(state, event["release"], UNFINISHED, event)
    state.releases[event["release"]].version = event["version"]
    state.releases[event["release"]].drill = event.get("drill", "")


def _staged(state: PoolState, event: Event) -> None:
    _set_release(state, event["release"], STAGED, event)
    state.releases[event["release"]].seal = event["seal"]
    state.releases[event["release"]].barrier = event.get("barrier", "")
    state.releases[event["release"]].hooks = event.get("hooks", {})
    state.releases[event["release"]].scheduler = event.get("scheduler", {})


def _hook_started(state: PoolState, event: Event) -> None:
    state.hooking = event


def _hook_ended(state: PoolState, event: Event) -> None:
    state.hooking = None
    if event["outcome"] == DONE:
        state.ran.setdefault(event["release"], []).append(hook_mark(event["step"], event["number"]))


def _switch_started(state: PoolState, event: Event) -> None:
    goes_on = state.is_heading_for(event["target"])
    if not goes_on:
        state.ran = marks_of(state.ran, (BEFORE_STAGE, AFTER_STAGE, BEFORE_SWITCH))
    once = event.get("once", False) or bool(goes_on and state.rollout and state.rollout.once)
    state.rollout = Rollout(
        token=event["token"],
        kind=DEPLOY,
        origin=event["origin"],
        target=event["target"],
        safe=event["safe"],
        phase=SWITCHING,
        mode=event["mode"],
        boot=event["boot"],
        started=event["time"],
        deadline=event.get("deadline"),
        once=once,
    )
    _want(state, event["target"])
    if state.state_of(event["target"]) != GOOD:
        _set_release(state, event["target"], UNCONFIRMED, event)


def _guard_armed(state: PoolState, event: Event) -> None:
    if state.rollout and state.rollout.open:
        state.rollout.deadline, state.rollout.boot = event["deadline"], event["boot"]


def _switched(state: PoolState, event: Event) -> None:
    if state.rollout:
        state.rollout.phase, state.rollout.processes = SWITCHED, event["processes"]
    state.current = event["target"]
    release = state.releases.get(event["target"])
    if release and release.barrier and release.id not in state.barriers:
        behind = [confirmed for confirmed in state.confirmed if confirmed != release.id]
        state.barriers[release.id] = Barrier(release.barrier, behind)


def _confirmed(state: PoolState, event: Event) -> None:
    if state.rollout:
        state.rollout.phase = CONFIRMED
    for barrier in state.barriers.values():
        # Deployed after it and proven: this release can live with what the barrier stands for.
        barrier.behind = [release for release in barrier.behind if release != event["target"]]
    _confirm(state, event["target"], event, DEPLOY)
    _leave(state, event)


def _rollback_started(state: PoolState, event: Event) -> None:
    state.rollout = Rollout(
        token=event["token"],
        kind=ROLLBACK,
        origin=event["origin"],
        target=event["target"],
        safe=event["target"],
        phase=GOING_BACK,
        mode=event["mode"],
        boot=event["boot"],
        started=event["time"],
        deadline=event.get("deadline"),
        reason=event["reason"],
        once=event.get("once", False),
    )
    _want(state, event["target"])
    left = event["origin"]
    # What a drill has made to fail is no bad release of anybody's, and can't become a good one either.
    bad = event["verdict"] == "bad" and not state.is_drill(left)
    if left and left != event["target"] and (bad or state.state_of(left) != BAD):
        # What is known to be bad stays bad, also when the way back is begun anew by who knows nothing of it.
        _set_release(state, left, BAD if bad else UNCONFIRMED, event, event["reason"])


def _restored(state: PoolState, event: Event) -> None:
    if state.rollout:
        state.rollout.phase, state.rollout.processes = RESTORED, event["processes"]
    state.current = event["target"]


def _rollback_failed(state: PoolState, event: Event) -> None:
    if state.rollout:
        state.rollout.phase, state.rollout.reason = STUCK, event["reason"]


def _rolled_back(state: PoolState, event: Event) -> None:
    if state.rollout:
        state.rollout.phase = ROLLED_BACK
    state.ran = {}
    origin = event["origin"]
    if origin and origin != event["target"] and state.state_of(origin) == UNCONFIRMED:
        _set_release(state, origin, STAGED, event, event["reason"])
    state.barriers = {name: found for name, found in state.barriers.items() if event["target"] not in found.behind}
    if event["target"]:
        _confirm(state, event["target"], event, ROLLBACK)
    else:
        state.current, state.arrived_by = None, ROLLBACK
    _leave(state, event)


def _barrier_held(state: PoolState, event: Event) -> None:
    if state.rollout:
        state.rollout.held = event["release"]


def _quarantined(state: PoolState, event: Event) -> None:
    _set_release(state, event["release"], BAD, event, event["reason"])


def _notified(state: PoolState, event: Event) -> None:
    state.notices = with_notice(state.notices, event["notice"])


def _drilled(state: PoolState, event: Event) -> None:
    if state.drill and state.drill["token"] > event["token"]:
        # It is noted without a lease, so that of a later drill may have come first.
        return
    state.drill = {
        "kind": event["kind"],
        "token": event["token"],
        "ended": event["ended"],
        "passed": event["passed"],
    }


def _pruned(state: PoolState, event: Event) -> None:
    state.releases.pop(event["release"], None)
    state.reaped.pop(event["release"], None)
    if event["release"] in state.confirmed:
        state.confirmed.remove(event["release"])


def _so_far(state: PoolState, event: Event) -> None:
    vars(state).update(vars(state_from(event["state"])))


def _noted(_state: PoolState, _event: Event) -> None:
    """An event that is evidence only: it changes nothing that a decision reads."""


# The journal's own event list. A step writes one event before it acts and one after.
EVENTS: dict[str, Callable[[PoolState, Event], None]] = {
    "lease_granted": _lease_granted,
    "lease_released": _lease_released,
    "stage_started": _stage_started,
    "staged": _staged,
    "switch_started": _switch_started,
    "guard_armed": _guard_armed,
    "switched": _switched,
    "hook_started": _hook_started,
    "hook_ended": _hook_ended,
    "drain_started": _noted,
    "drain_ended": _noted,
    "drain_overran": _drain_overran,
    "reaped": _reaped,
    "scheduler_handed_over": _noted,
    "confirm_started": _noted,
    "confirmed": _confirmed,
    "guard_disarmed": _noted,
    "guard_fired": _noted,
    "rollback_started": _rollback_started,
    "restored": _restored,
    "rollback_failed": _rollback_failed,
    "rolled_back": _rolled_back,
    "barrier_held": _barrier_held,
    "quarantined": _quarantined,
    "notified": _notified,
    "observed": _noted,
    "drilled": _drilled,
    "pruned": _pruned,
    "torn_line": _noted,
    SO_FAR: _so_far,
    CUT: _noted,
}


def last_of(events: Iterable[Event], kinds: Collection[str], release: str, token: int) -> Optional[Event]:
    """The last event of these kinds that rollout ``token`` has noted of a release; None when there is none."""
    found = [each for each in events if each["event"] in kinds and (each["release"], each["token"]) == (release, token)]
    return found[-1] if found else None


def fold(events: Iterable[Event]) -> PoolState:
    """Replay a journal.

    :raises JournalDamaged: an event that this version doesn't know (a newer Backstep wrote it).
    """
    state = PoolState()
    for event in events:
        fold_in(state, event)
    return state


def fold_in(state: PoolState, event: Event) -> None:
    """Have one more event count in a state, which is changed in place; see ``fold``."""
    apply = EVENTS.get(event["event"])
    if apply is None:
        raise JournalDamaged(
            f"The journal has an event '{event['event']}' that this version of Backstep doesn't know.",
            left="Nothing was changed.",
            next_step="Use the version of backstep.workers that wrote it, or a newer one.",
        )
    apply(state, event)
    _renew_lease(state, event)
    state.last_token = max(state.last_token, event.get("token") or 0)
    state.changed = event["time"]


def _renew_lease(state: PoolState, event: Event) -> None:
    """Each step taken under a lease renews it: a controller that is at work never loses its lease to the clock."""
    lease = state.lease
    if lease and event.get("token") == lease.token and event["boot"] == lease.boot and event.get("by") == "controller":
        lease.expires = event["up"] + lease.seconds
