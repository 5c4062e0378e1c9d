# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which notifications of a rollout's end are due, and which are still to be sent again. Pure.

What was sent, and what wasn't, stands in the hosts' journals, as that outlives the controller. So does how a rollout
ended: one of which no journal says that somebody was told, as its run has died, is told of by the next run. A copy of
the journals' word may be lost with a host, never made up: a notification is sent twice rather than not at all, and
carries the same ``id`` each time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Optional

from .names import utc
from .pool_state import CONFIRMED, ROLLBACK, ROLLED_BACK, STUCK
from .rules import describe_owner

DEPLOYED = "deployed"
WENT_BACK = "went_back"
TAKEN_BACK = "rolled_back"
STOPPED = "stopped"
SUPERSEDED = "superseded"
NEEDS_A_PERSON = "needs_a_person"
DRILLED = "drilled"
KINDS = (DEPLOYED, WENT_BACK, TAKEN_BACK, STOPPED, SUPERSEDED, NEEDS_A_PERSON, DRILLED)

ARTIFACT_SCHEMA = 1
TRIES_AT_MOST = 10
SECONDS_AT_MOST = 24 * 3600.0
# So long after a rollout's end its own run may still be about to tell of it.
_GRACE_SECONDS = 120.0
# So many hosts keep a notice: one is enough, and the others are for when it is gone.
_KEEPERS = 3
_KEPT_AT_MOST = 20

Event = dict[str, Any]
Notice = dict[str, Any]
States = Mapping[str, Mapping[str, Any]]


def notice_id(pool: str, rollout: int) -> str:
    """The name by which a receiver can tell a second copy."""
    return f"{pool}-{rollout}"


def _one(releases: Collection[Optional[str]]) -> str:
    return " / ".join(sorted({release or "nothing" for release in releases}))


def is_drill(states: States, rollout: int) -> bool:
    """Whether a rollout was a drill, also one that was cut short."""
    for state in states.values():
        if (state.get("drill") or {}).get("token") == rollout:
            return True
        moved = state["rollout"] or {}
        made_to_fail = {release["id"] for release in state.get("releases") or () if release["drill"]}
        if moved.get("token") == rollout and made_to_fail & {moved["origin"], moved["target"]}:
            return True
    return False


def event_of_drill(event: Event, problems: Sequence[str]) -> Event:
    """What the end of a drill is told as, which by itself looks like that of a deploy that wasn't good.

    :param problems: why it has not passed.
    """
    reason = "; ".join(problems) or event["reason"]
    return {**event, "what": NEEDS_A_PERSON if problems else DRILLED, "reason": reason}


def event_of_end(
    pool: str, plan: Mapping[str, Any], record: Mapping[str, Any], outcome: Mapping[str, Any], at: float
) -> Event:
    """What a run's own end is told as.

    :param outcome: as ``record.outcome`` gives it.
    :param at: when (epoch seconds).
    :returns: ``id``, ``what`` (one of ``KINDS``), ``pool``, ``rollout``, ``from``, ``to`` and ``now`` (releases),
        ``verdict``, ``reason``, ``hosts``, ``by``, ``at``, and for the caller to fill in: ``next``, ``report``.
    """
    by_deploy = {"rolled_back": WENT_BACK, "mixed": NEEDS_A_PERSON}
    what = {**by_deploy, "rolled_back": WENT_BACK if plan["kind"] != ROLLBACK else TAKEN_BACK}
    hosts = [*plan["hosts"], *plan["unfinished"]]
    now = [outcome["hosts"].get(host) if host in outcome["hosts"] else plan["before"].get(host) for host in hosts]
    return {
        "id": notice_id(pool, plan["rollout"]),
        "what": what.get(outcome["ended"], outcome["ended"]),
        "pool": pool,
        "rollout": plan["rollout"],
        "from": _one([plan["before"].get(host) for host in hosts]),
        "to": plan["release"] or "nothing",
        "now": _one(now) if not outcome["exceptions"] else "not known of every host",
        "verdict": record["verdict"],
        "reason": outcome["reasons"],
        "hosts": hosts,
        "by": describe_owner(plan["owner"]),
        "at": at,
        "next": "",
        "report": "",
    }


def artifact(event: Event, ok: bool) -> dict[str, Any]:
    """What a run leaves for whatever comes after it, such as the next node of a workflow.

    It is a hint, and may be missing: a run that is killed leaves none. What is so is on the hosts. It has no text that
    a person or a program has written, so there is no secret in it.

    :param event: as :func:`event_of_end` gives it.
    :param ok: whether the pool is where it was asked to be.
    :returns: ``schema`` (1), ``pool``, ``rollout``, ``what`` (one of ``KINDS``), ``ended`` (epoch seconds), ``from``,
        ``to`` and ``now`` (releases), ``ok``, and ``report`` (its path on the controller, or empty).
    """
    kept = {name: event[name] for name in ("pool", "rollout", "what", "from", "to", "now", "report")}
    return {"schema": ARTIFACT_SCHEMA, **kept, "ended": event["at"], "ok": ok}


def event_from_journals(pool: str, states: States) -> Optional[Event]:
    """The end of the last rollout, as the hosts' journals have it; None while it has none, or somebody was told.

    :param states: what each host that has answered tells of itself (``pool_state``).
    """
    rollout = max((state["rollout"]["token"] for state in states.values() if state["rollout"]), default=0)
    mine = {host: state for host, state in states.items() if (state["rollout"] or {}).get("token") == rollout}
    told = {notice["rollout"] for state in states.values() for notice in state.get("notices") or ()}
    phases = {state["rollout"]["phase"] for state in mine.values()}
    if not mine or max(told, default=0) >= rollout or not phases <= {CONFIRMED, ROLLED_BACK, STUCK}:
        return None
    at = max(max(state["last_events"].values(), default=0.0) for state in mine.values())
    clock = max(state["clock"] for state in mine.values())
    at_work = any(state["lease"] for state in states.values())
    if at_work or not _GRACE_SECONDS < clock - at < SECONDS_AT_MOST:
        return None
    first = next(iter(mine.values()))["rollout"]
    back = first["kind"] == ROLLBACK
    lease = [state.get("last_lease") or {} for state in mine.values()]
    by_person = any(each.get("token") == rollout and each["kind"] == ROLLBACK for each in lease)
    ends = {CONFIRMED: DEPLOYED, ROLLED_BACK: TAKEN_BACK if by_person else WENT_BACK}
    origins = _one([state["rollout"]["origin"] for state in mine.values()])
    targets = _one([state["rollout"]["target"] for state in mine.values()])
    swapped = back and not by_person  # the journal's last word is the way back of what was to be deployed
    return {
        "id": notice_id(pool, rollout),
        "what": ends.get(next(iter(phases)), NEEDS_A_PERSON) if len(phases) == 1 else NEEDS_A_PERSON,
        "pool": pool,
        "rollout": rollout,
        "from": targets if swapped else origins,
        "to": origins if swapped else targets,
        "now": _one([state["current"] for state in mine.values()]),
        "verdict": "good" if phases == {CONFIRMED} or by_person else "bad",
        "reason": "; ".join(dict.fromkeys(s["rollout"]["reason"] for s in mine.values() if s["rollout"]["reason"])),
        "hosts": sorted(mine),
        "by": next((describe_owner(s["last_owner"]) for s in mine.values() if s["last_owner"]), ""),
        "at": at,
        "next": "ansible-playbook backstep.workers.status",
        "report": "",
    }


def kept(states: States) -> dict[str, Notice]:
    """The notices that journals have, by id; of one on several hosts, the one that was tried last."""
    found: dict[str, Notice] = {}
    for state in states.values():
        for notice in state.get("notices") or ():
            other = found.get(notice["id"])
            if other is None or notice["tries"] > other["tries"]:
                found[notice["id"]] = notice
    return found


def is_pending(notice: Notice) -> bool:
    """Whether something of it was never sent."""
    return bool(notice["left"])


def is_given_up(notice: Notice, now: float) -> bool:
    """Whether it is not tried again, though something of it was never sent."""
    return is_pending(notice) and (notice["tries"] >= TRIES_AT_MOST or now - notice["first"] > SECONDS_AT_MOST)


def due(pool: str, looks: Sequence[States], ended: Optional[Event], now: float) -> list[Notice]:
    """What is to be sent now, the oldest first; ``left`` is None where nothing was tried yet.

    :param looks: what the hosts have told, the last time at the end.
    :param ended: how this very run ended, if it has moved anything.
    :param now: epoch seconds.
    """
    last = looks[-1] if looks else {}
    journals = kept(last)
    events = [event_from_journals(pool, states) for states in looks]
    new = {event["id"]: event for event in [*events, ended] if event and event["id"] not in journals}
    for event in new.values():
        drilled = event["what"] in (WENT_BACK, TAKEN_BACK) and is_drill(last, event["rollout"])
        event["what"] = DRILLED if drilled else event["what"]
    untried: Notice = {"left": None, "tries": 0, "first": now, "why": ""}
    found = [{"id": event["id"], "rollout": event["rollout"], "event": event, **untried} for event in new.values()]
    found += [notice for notice in journals.values() if is_pending(notice) and not is_given_up(notice, now)]
    return sorted(found, key=lambda notice: int(notice["rollout"]))


def after(notice: Notice, failed: Mapping[str, str]) -> Notice:
    """The notice once it was tried; of what was sent to all, only that it was.

    :param failed: why, by the name of each notification that couldn't be sent.
    """
    why = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
    event = notice["event"] if failed else {}
    return {**notice, "event": event, "left": sorted(failed), "tries": notice["tries"] + 1, "why": why}


def keepers(states: States, notices: Sequence[Notice]) -> list[str]:
    """The hosts that are to keep notices: those that keep any of them already, and then any that have answered."""
    ids = {notice["id"] for notice in notices}
    have = [host for host, state in states.items() if ids & {each["id"] for each in state.get("notices") or ()}]
    return list(dict.fromkeys([*have, *sorted(states)]))[: max(_KEEPERS, len(have))] if notices else []


def with_notice(notices: Mapping[str, Notice], notice: Notice) -> dict[str, Notice]:
    """The notices of a host and a new one.

    Those that were sent stay until one of a later rollout comes, those that were given up until a later one was sent.
    """
    found = {**notices, notice["id"]: notice}
    newest = max(each["rollout"] for each in found.values())
    told = not is_pending(notice)
    stay = {
        name: each
        for name, each in found.items()
        if each["rollout"] == newest or (is_pending(each) and not (told and is_given_up(each, notice["first"])))
    }
    return dict(sorted(stay.items(), key=lambda item: int(item[1]["rollout"]))[-_KEPT_AT_MOST:])


def lines(states: States, now: float) -> list[str]:
    """What ``status`` says of notices that could not be sent."""
    found = []
    for notice in sorted(kept(states).values(), key=lambda each: int(each["rollout"])):
        if not is_pending(notice):
            continue
        what = f"notification {notice['id']} ({notice['event']['what']}, {utc(notice['event']['at'])})"
        who = ", ".join(notice["left"])
        if is_given_up(notice, now):
            found.append(f"  ! {what} was never sent to {who}, in {notice['tries']} tries: {notice['why']}")
        else:
            found.append(f"  {what} is not sent yet to {who}, after {notice['tries']} of {TRIES_AT_MOST} tries")
    return found
