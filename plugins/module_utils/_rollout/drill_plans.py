# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a pool can be drilled, what a drill deploys, and whether it has passed. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

from .answers import Answer, failure_of, require_answers
from .drills import LATE
from .errors import DrillRefused
from .fleet import home
from .pool_state import DEPLOY, GOOD
from .verdict import BAD
from .verdict import GOOD as WELL

# A worker that fails later than half of the bake time could get past it, on a slow host.
_LATE_SHARE = 0.5
_LEAST_BAKE_SECONDS = 4.0
_LEFT = "Nothing was changed."
TIMES = ("detect", "decide", "restore")
# States in which a task is listed: it is not finished, and not lost either.
LISTED = ("waiting", "scheduled", "executing", "retrying", "dead", "parked")


def require_allowed(allowed: bool, production: bool, production_too: bool, kind: str, bake: float) -> None:
    """Refuse a drill that nobody has allowed, before anything is asked.

    :param bake: how many seconds a release has to stay up, as the pool's health settings say.
    :raises DrillRefused: says what to set.
    """
    if not allowed:
        raise DrillRefused(
            "This pool doesn't allow drills.",
            left=_LEFT,
            next_step="Set pool_drill: true for a pool whose last good release may be taken away from it for a minute.",
        )
    if production and not production_too:
        raise DrillRefused(
            "This is a production pool, and a drill takes workers away from it.",
            left=_LEFT,
            next_step="To drill it all the same: -e pool_drill_production=true",
        )
    if kind == LATE and bake < _LEAST_BAKE_SECONDS:
        raise DrillRefused(
            f"Workers that fail late need a bake time of {_LEAST_BAKE_SECONDS:.0f} s at least, and it is {bake:.0f} s.",
            left=_LEFT,
            next_step="Set pool_health.bake to more, or pool_drill_kind to crash or never_consumes.",
        )


def plan_drill(answers: Mapping[str, Optional[Answer]], kind: str, bake: float) -> dict[str, Any]:
    """What a drill deploys, from each host's answer to ``release_info``: the release that every host is on, to fail.

    :param bake: seconds, as for ``require_allowed``.
    :returns: ``kind``, ``of`` (the release that it is made from, and goes back to), ``version`` (of what is deployed),
        ``seconds`` (after which workers that fail late do), ``scheduler`` (``host`` and ``period``, or empty) and
        ``after_another`` (whether another drill was cut short, so that there is nothing to be proven beforehand).
    :raises HostUnfit: a host has not answered.
    :raises DrillRefused: the pool is not in order, so that nobody could tell what comes of the drill.
    """
    require_answers(answers, "pool_state")
    states = {host: answer["pool_state"] for host, answer in answers.items() if answer}
    found = {host: _in_the_way(state) for host, state in states.items()}
    if any(found.values()):
        told = "; ".join(f"{host}: {', '.join(problems)}" for host, problems in found.items() if problems)
        raise DrillRefused(
            f"The pool is not in order: {told}.",
            left=_LEFT,
            next_step="Have the pool on one good release first: ansible-playbook backstep.workers.status",
        )
    homes = {host: str(home(state)) for host, state in states.items()}
    if len(set(homes.values())) != 1:
        places = ", ".join(f"{release} on {host}" for release, host in {homes[host]: host for host in homes}.items())
        raise DrillRefused(
            f"The hosts are not on one release ({places}), so there is none to come back to.",
            left=_LEFT,
            next_step="Deploy, or roll back, the whole pool first.",
        )
    state = next(iter(states.values()))
    cut_short = any(one["rollout"] and one["rollout"]["open"] for one in states.values())
    of = homes[next(iter(homes))]
    scheduler: Mapping[str, Any] = next((one["scheduler"] for one in state["releases"] if one["id"] == of), {})
    number = max(int(one["last_token"]) for one in states.values()) + 1
    return {
        "kind": kind,
        "of": of,
        "version": f"drill-{number}",
        "seconds": round(bake * _LATE_SHARE, 1),
        "scheduler": dict(scheduler),
        "after_another": cut_short,
    }


def _in_the_way(state: Mapping[str, Any]) -> list[str]:
    """Why a host can't be drilled; an empty list when it can, also after a drill that was cut short."""
    rollout = state.get("rollout")
    if home(state) is None:
        return ["no release was ever confirmed"]
    if rollout and rollout["open"]:
        left = rollout["target"] if rollout["kind"] == DEPLOY else rollout["origin"]
        of_a_drill = any(release["id"] == left and release["drill"] for release in state["releases"])
        return [] if of_a_drill else [f"rollout {rollout['token']} is not finished"]
    if state["current_state"] != GOOD:
        return [f"it is on {state['current']}, which is {state['current_state']}"]
    if state["current"] != home(state):
        return [f"it is on {state['current']}, and the last good release is {home(state)}"]
    return list(state["problems"])


def content(drill: Mapping[str, Any]) -> dict[str, Any]:
    """What takes the place of what a deploy is given. The hosts have all the rest in what they have sealed.

    :param drill: as ``plan_drill`` gives it.
    """
    # The command is sealed on its host; here only the host and the period are looked at.
    scheduler = {"command": ["sealed"], **drill["scheduler"]} if drill["scheduler"] else {}
    return {
        "version": drill["version"],
        "source": {"path": drill["of"]},
        "user": "",
        "config": [],
        "env": {},
        "build": [],
        "hooks": {},
        "scheduler": scheduler,
        "manifest": {},
        "barrier": "",
        "routes": False,
        "drill": {name: drill[name] for name in ("kind", "of", "seconds")},
    }


def require_working(release: str, verdicts: Mapping[str, Optional[Answer]]) -> None:
    """Refuse to drill a pool that doesn't work as it is.

    :param verdicts: each host's answer to ``rollout_verdict`` on the release that it is on.
    :raises DrillRefused: names the hosts and why.
    """
    why = not_working(verdicts)
    if why:
        raise DrillRefused(
            f"The pool doesn't work as it is, on {release}: {'; '.join(why)}.",
            left="Nothing was changed. Canary tasks were sent.",
            next_step="See what is wrong with: ansible-playbook backstep.workers.status",
        )


def not_working(verdicts: Mapping[str, Optional[Answer]]) -> list[str]:
    """The hosts that are not known to work, each with the reason."""
    found = []
    for host, answer in verdicts.items():
        why = failure_of(answer, "verdict")
        if why or (answer and answer["verdict"] != WELL):
            found.append(f"{host}: {why or (answer or {}).get('reason')}")
    return found


def gaps(events: Iterable[Mapping[str, Any]], hosts: Sequence[str]) -> dict[str, Any]:
    """How long workers of a good release were missing, at most: from the begin of the switch until they were back.

    Workers that had a task then went on with it, so it is the longest time in which no new one was begun.

    :param events: of this rollout, each with its ``host``, as the hosts' journals have them.
    :param hosts: all hosts of the pool that were looked at.
    :returns: ``hosts``, by host the seconds, 0 where it was not switched, or None where the way back has no end in the
        journal; and ``pool``, in which no host had any, or None where that is not known.
    """
    began: dict[str, float] = {}
    ended: dict[str, float] = {}
    for event in events:
        if event["event"] == "switch_started":
            began.setdefault(event["host"], event["time"])
        elif event["event"] == "restored":
            ended[event["host"]] = event["time"]
    spans = {host: (began[host], ended.get(host)) for host in hosts if host in began}
    found: dict[str, Optional[float]] = dict.fromkeys(hosts, 0.0)
    found.update({host: None if end is None else round(end - start, 1) for host, (start, end) in spans.items()})
    if not hosts or len(spans) < len(hosts):
        return {"hosts": found, "pool": 0.0 if hosts else None}
    ends = [end for _start, end in spans.values() if end is not None]
    if len(ends) < len(spans):
        return {"hosts": found, "pool": None}
    return {"hosts": found, "pool": round(max(0.0, min(ends) - max(start for start, _end in spans.values())), 1)}


def ledger(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What the broker can tell of each queue, before and after.

    :param before: the queues of ``queue_info``; empty when the broker gave no answer.
    :returns: ``queues`` (by queue and state ``[before, after]``) and ``untold`` (states that the engine can't tell).
    """
    queues: dict[str, dict[str, list[Any]]] = {}
    untold = set()
    for name in sorted({*before, *after}):
        states = {state: [(side.get(name) or {}).get(state) for side in (before, after)] for state in LISTED}
        untold |= {state for state, counts in states.items() if None in counts}
        queues[name] = {state: counts for state, counts in states.items() if None not in counts}
    return {"queues": queues, "untold": sorted(untold)}


def judge(
    plan: Mapping[str, Any],
    record: Mapping[str, Any],
    ended: Mapping[str, Any],
    drill: Mapping[str, Any],
    after: Mapping[str, Any],
    verdicts: Mapping[str, Optional[Answer]],
) -> dict[str, Any]:
    """How a drill has gone.

    :param ended: ``outcome`` (as ``record.outcome`` gives it, with ``recovered``), ``events``, ``times`` and ``skew``.
    :param drill: as ``plan_drill`` gives it.
    :param after: the broker's queues in the end; empty when it gave no answer.
    :param verdicts: of each host on the release that it has to be on, in the end.
    :returns: ``kind``, ``of``, ``passed``, ``problems`` (why it hasn't), ``times`` (seconds), ``gaps``, ``ledger``,
        ``skew`` (seconds by host) and ``proven`` (whether each host works).
    """
    before = plan["broker_before"].get("queues") or {}
    found = _complaints(plan, record, ended["outcome"], drill["of"])
    found += [f"it doesn't work as before on {why}" for why in not_working(verdicts)]
    found += _unbalanced(ended["outcome"]["recovered"], before, after)
    missing = gaps(ended["events"], list(plan["before"]))
    return {
        "kind": drill["kind"],
        "of": drill["of"],
        "passed": not found,
        "problems": found,
        "times": {**{name: ended["times"].get(name) for name in TIMES}, "gap": missing["pool"]},
        "gaps": missing,
        "ledger": ledger(before, after),
        "skew": ended["skew"],
        "proven": not not_working(verdicts),
    }


def _complaints(plan: Mapping[str, Any], record: Mapping[str, Any], outcome: Mapping[str, Any], of: str) -> list[str]:
    """What of the way back has not gone as it should."""
    found = []
    if plan["unfinished"]:
        found.append("an interrupted way back was finished, and nothing was drilled: run it again")
    elif outcome["ended"] != "rolled_back":
        found.append(f"it ended as '{outcome['ended'].replace('_', ' ')}', and should have been rolled back")
    elif record["verdict"] != BAD:
        found.append(f"the failure was not seen for what it is: {outcome['reasons'] or 'no reason is known'}")
    found += [f"{host}: {why}" for host, why in outcome["exceptions"].items()]
    elsewhere = {**plan["before"], **outcome["hosts"]}
    found += [
        f"{host} is on {where or 'no release'}, not on {of}"
        for host, where in elsewhere.items()
        if where != of and host not in outcome["exceptions"] and host not in plan["between"]
    ]
    return found


def _unbalanced(
    recovered: Sequence[Mapping[str, Any]], before: Mapping[str, Any], after: Mapping[str, Any]
) -> list[str]:
    found = []
    for name, queues in (("before", before), ("after", after)):
        if not queues:
            found.append(f"the broker could not be asked for its queues {name} it, so the ledger is not known")
    lost = [task["id"] for task in recovered if task["to"] == "lost"]
    if lost:
        found.append(f"{len(lost)} task(s) lost: {', '.join(lost)}")
    for name, queue in after.items():
        more = (queue.get("abandoned") or 0) - ((before.get(name) or {}).get("abandoned") or 0)
        if more > 0:
            found.append(f"{more} task(s) of {name} are held by workers that are gone")
    return found
