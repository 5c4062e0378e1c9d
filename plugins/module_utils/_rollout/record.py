# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of a rollout: what each step has come to on each host, and what that makes of the whole. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Optional

from .answers import Answer, failure_of
from .errors import RollbackBarrier
from .fleet import FleetPlan
from .hook_steps import DONE
from .hooks import NOT_RUN, sentence, verdict_of
from .names import worker_prefix
from .verdict import BAD, GOOD, UNKNOWN


def worst(verdicts: Collection[str]) -> str:
    """One verdict for many: bad beats unknown beats good; none at all is unknown."""
    for verdict in (BAD, UNKNOWN):
        if verdict in verdicts:
            return verdict
    return GOOD if verdicts else UNKNOWN


def begin_record(plan: FleetPlan, answers: Mapping[str, Optional[Answer]]) -> dict[str, Any]:
    """The record of a rollout before its first step: good, unless it has to finish an interrupted rollback."""
    record: dict[str, Any] = {"verdict": GOOD, "touched": [], "hosts": {}, "drained": [], "hooks": [], "held": {}}
    record["reasons"] = ""
    record["back_to"] = dict(plan.back_to)
    for host, answer in answers.items():
        record["drained"] += _reaped_before(plan, host, answer)
    for host in plan.unfinished:
        reason = "a rollback was interrupted here and has to be finished first"
        record["hosts"][host] = {"steps": {}, "verdict": BAD, "reason": reason}
        record["touched"].append(host)
    # An interrupted rollout has switched them: what becomes of the others becomes of them.
    record["touched"] += [host for host in plan.between if host not in record["touched"]]
    if plan.kind == "rollback":
        for host, answer in answers.items():
            why = failure_of(answer, "pool_state")
            if why:
                record["hosts"][host] = {"steps": {}, "verdict": UNKNOWN, "reason": why}
    record["verdict"] = worst([entry["verdict"] for entry in record["hosts"].values()] or [GOOD])
    record["reasons"] = reasons(record)
    return record


def _reaped_before(plan: FleetPlan, host: str, answer: Optional[Answer]) -> list[dict[str, Any]]:
    """What a host's reaper has let go since the last rollout: nobody has asked yet for the tasks of who was killed."""
    reaped = ((answer or {}).get("pool_state") or {}).get("reaped") or []
    goes_on = (plan.release, plan.back_to.get(host))
    return [{"host": host, **each, "again": each["again"] or each["release"] in goes_on} for each in reaped]


def copy_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record that can be changed without changing the one that was given."""
    hosts = {host: {**entry, "steps": dict(entry["steps"])} for host, entry in record["hosts"].items()}
    copied = {**{key: list(record[key]) for key in ("touched", "drained", "hooks")}, "held": dict(record["held"])}
    return {**record, **copied, "hosts": hosts}


def note_step(
    record: dict[str, Any],
    hosts: Sequence[str],
    step: str,
    answers: Mapping[str, Optional[Answer]],
    key: str,
    *,
    touches: bool,
    judges: bool = True,
) -> None:
    """Enter a step's answers into the record of a rollout: a step that failed is unknown for its host, never good.

    :param record: changed in place. ``verdict``, ``touched`` (hosts), ``drained`` and ``hooks`` (how each ended, with
        its host), ``held`` (why going back was barred, by host), ``hosts`` (with ``steps``, ``verdict``, ``reason``).
    :param judges: whether a host on which it fails is not good; else the failure is only named.
    :param touches: whether the step changes what runs; a host that gave no answer may have been changed as well.
    """
    for host in hosts:
        entry = record["hosts"].setdefault(host, {"steps": {}, "verdict": GOOD, "reason": ""})
        answer = answers.get(host)
        why = failure_of(answer, key)
        if touches and key == "release":
            went_to = answer["release"] if answer and not why else record.get("back_to", {}).get(host)
            _note_started(record, host, went_to)
        record["drained"] += [{"host": host, **drained} for drained in (answer or {}).get("drained") or []]
        error = (answer or {}).get("error") or {}
        if error.get("code") == RollbackBarrier.code:
            record["held"][host] = error
            why = error["message"]
        if why and not judges:
            record["hooks"].append({"host": host, "step": step, "outcome": NOT_RUN, "why": why})
        why = why or _note_hooks(record, host, (answer or {}).get("hooks") or [])
        entry["steps"][step] = why or "done"
        if step in (_CONFIRM, _CONFIRM_BACK) and answer and not why:
            entry["release"] = answer.get("release") or None
        by = ((answer or {}).get("error") or {}).get("details", {}).get("superseded_by")
        if by:
            entry["superseded_by"] = by
        if touches and host not in record["touched"]:
            record["touched"].append(host)
        if why and judges and entry["verdict"] == GOOD:
            entry["verdict"], entry["reason"] = UNKNOWN, f"{step}: {why}"
    record["verdict"] = worst([entry["verdict"] for entry in record["hosts"].values()])


def _note_started(record: dict[str, Any], host: str, release: Optional[str]) -> None:
    """From here on this release has, or (when there was no answer) may have, living workers on a host again."""
    record["drained"] = [
        {**drained, "again": True} if (drained["host"], drained["release"]) == (host, release) else drained
        for drained in record["drained"]
    ]


def _note_hooks(record: dict[str, Any], host: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Enter how hooks have ended; why that isn't good, or ""."""
    failed = ""
    for result in results:
        why = "" if result["outcome"] == DONE else sentence(result)
        record["hooks"].append({"host": host, **result, "why": why})
        found = verdict_of(result)
        if found != GOOD:
            entry = record["hosts"][host]
            failed = why
            if entry["verdict"] == GOOD:
                entry["verdict"], entry["reason"] = found, why
    return failed


def failed_hooks(record: Mapping[str, Any]) -> list[str]:
    """Each hook that has not gone well, with its host, in a sentence."""
    return [f"{hook['host']}: {hook['why']}" for hook in record["hooks"] if hook["why"]]


def workers_gone(pool: str, record: Mapping[str, Any]) -> list[str]:
    """Workers that the hosts have proven gone: their names, or how they begin where none at all is left."""
    gone: set[str] = set()
    for drained in record["drained"]:
        if drained["outcome"] == "killed":
            gone.update(str(worker["worker"]) for worker in drained.get("running") or [])
        if drained["outcome"] in ("clean", "killed") and not drained.get("again"):
            gone.add(f"{worker_prefix(pool, drained['release'], drained['host'])}/")
    return sorted(gone)


def note_verdicts(record: dict[str, Any], answers: Mapping[str, Optional[Answer]]) -> None:
    """Enter the health verdict of each host."""
    for host, answer in answers.items():
        entry = record["hosts"][host]
        if answer and answer.get("verdict") in (BAD, UNKNOWN):
            entry["verdict"], entry["reason"] = answer["verdict"], str(answer.get("reason", ""))
    record["verdict"] = worst([entry["verdict"] for entry in record["hosts"].values()])


def reasons(record: Mapping[str, Any]) -> str:
    """Why a rollout isn't good, in a sentence."""
    found = [f"{host}: {entry['reason']}" for host, entry in record["hosts"].items() if entry["reason"]]
    return "; ".join(found[:5]) + (f"; and {len(found) - 5} more hosts" if len(found) > 5 else "")


# Steps that leave a host settled: on the release asked for, or on the one that it went back to.
_CONFIRM, _CONFIRM_BACK = "confirm", "confirm the way back"


def outcome(plan: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """How a rollout ended.

    :returns: ``ok`` (the pool is where it was asked to be), ``ended`` (``deployed``, ``rolled_back``, ``stopped``
        before anything was touched, ``superseded`` by a rollout that decides from then on, ``mixed``), and per host
        ``where`` it is now (None: not known) and why, if it is an exception.
    """
    went_back = record["verdict"] != GOOD and plan["kind"] == "deploy"
    # A host that was confirmed and then had to go back is settled by its way back alone.
    settling = _CONFIRM if plan["kind"] == "deploy" and not went_back else _CONFIRM_BACK
    hosts, exceptions = {}, {}
    for host in [*plan["hosts"], *plan["unfinished"]]:
        entry = record["hosts"].get(host, {"steps": {}, "reason": ""})
        steps = entry["steps"]
        if host not in record["touched"]:
            hosts[host] = plan["before"][host]
            continue
        failed = [f"{step}: {why}" for step, why in steps.items() if step in BACK_STEPS and why != "done"]
        done = steps.get(settling) == "done"
        wanted = plan["back_to"][host] if went_back else plan["release"]
        hosts[host] = entry["release"] if done else plan["release"] if host in record["held"] else None
        if not done:
            exceptions[host] = "; ".join(failed) or entry["reason"] or "did not finish"
        elif hosts[host] != wanted:
            exceptions[host] = f"is on {hosts[host] or 'no release'}, not on {wanted or 'no release'}"
    for host, where in _apart(plan, record["touched"]).items() if went_back else ():
        hosts.setdefault(host, where)
        exceptions.setdefault(host, f"is on {where or 'no release'}, and not every host is")
    for host, entry in record["hosts"].items():
        if host not in hosts and entry["verdict"] != GOOD:
            hosts[host], exceptions[host] = None, entry["reason"]
    by = [record["hosts"].get(host, {}).get("superseded_by") for host in exceptions]
    ended = ("superseded" if all(by) else "mixed") if exceptions else "deployed"
    if not exceptions and went_back:
        ended = "rolled_back" if record["touched"] else "stopped"
    elif not exceptions and plan["kind"] == "rollback":
        ended = "rolled_back"
    # A drill is where it was asked to be once it has gone back.
    well = record["verdict"] == GOOD if not plan.get("drill") else ended == "rolled_back"
    good = not exceptions and well and not failed_hooks(record)
    why = _all_reasons(record, by if ended == "superseded" else ())
    return {"ok": good, "ended": ended, "hosts": hosts, "exceptions": exceptions, "reasons": why}


def _apart(plan: Mapping[str, Any], touched: Collection[str]) -> dict[str, Optional[str]]:
    """The hosts that a way back of the touched ones leaves on different releases, and on which."""
    if not touched:
        return {}
    if not plan["unfinished"]:
        return dict.fromkeys(plan["settled"], plan["release"])
    # An interrupted way back is finished, and nothing is deployed: hosts that had no part in it are where they were.
    places = {host: plan["before"].get(host) for host in plan["settled"]}
    places.update({host: plan["back_to"].get(host) for host in touched})
    return places if len(set(places.values())) > 1 else {}


def _all_reasons(record: Mapping[str, Any], superseded_by: Collection[str]) -> str:
    """First who took the pool over, as what else was seen may be their doing; also the hooks that say nothing of it."""
    first = [f"{by} has superseded it" for by in sorted(set(superseded_by))]
    more = [why for why in failed_hooks(record) if why not in record["reasons"]]
    return "; ".join(filter(None, [*first, record["reasons"], *more]))


# Steps of the way back: one that fails makes its host an exception.
BACK_STEPS = ("go back", _CONFIRM_BACK)
