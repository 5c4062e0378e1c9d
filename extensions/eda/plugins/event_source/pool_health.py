# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Event source: tells when the health of a pool changes, from the status that ``backstep.workers.status`` writes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

DOCUMENTATION = r"""
---
short_description: Tell when the health of a worker pool changes
description:
  - Reads the status of a pool that the playbook C(backstep.workers.status) writes with C(pool_status_file), and emits
    an event when the pool's health changes to C(good), C(bad) or C(unknown), or when another release turns out bad. It
    emits none as long as the health stays what it is, and none for a health that was told before it was started anew.
  - A pool is bad when a worker of its release doesn't run or keeps dying, or a queue that holds tasks has no worker. A
    status that can't be read or is too old, and a host or a broker that has given no answer, make it unknown, never
    good.
  - While anybody is at work on the pool nothing is told, as a rollout has a verdict of its own.
  - An event has C(pool), C(health), C(was), C(release), C(hosts) (a list), C(reason), C(at) (epoch seconds) and C(id),
    which is the same whenever the same change is told.
options:
  pool:
    description: The name of the pool.
    type: str
    required: true
  status_file:
    description: The file that C(pool_status_file) names.
    type: str
    required: true
  state_file:
    description: Where to keep the health that was told last. The default is the status file with C(.health) behind it.
    type: str
  delay:
    description: Seconds between two looks at the status.
    type: float
    default: 5
  stale_after:
    description: After how many seconds a status is too old to say anything.
    type: float
    default: 300
  readings:
    description: How many readings one after the other have to agree before a change to good or bad is told.
    type: int
    default: 2
  restart_limit:
    description: How often a worker may have died, if the last time was less than ten minutes ago. 0 means that it
      doesn't matter.
    type: int
    default: 3
  dead_limit:
    description: How many dead tasks of the pool's release make it bad. 0 means that none do.
    type: int
    default: 0
  waiting_limit:
    description: For how many seconds the oldest task of a queue may wait before the pool is bad. 0 means for ever.
    type: float
    default: 0
"""

EXAMPLES = r"""
- backstep.workers.pool_health:
    pool: mail
    status_file: /var/lib/backstep/mail.json
"""

GOOD, BAD, UNKNOWN = "good", "bad", "unknown"
# Of the status file.
_STATUS_SCHEMA = 1
# Of the state file.
_SCHEMA = 1
_REASONS = 5
_YOUNG_SECONDS = 600.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """The options. Times are in seconds."""

    pool: str
    status_file: Path
    state_file: Path
    delay: float
    stale_after: float
    readings: int
    restart_limit: int
    dead_limit: int
    waiting_limit: float


@dataclass(frozen=True)
class Reading:
    """What one status says. ``at``: epoch seconds, by the clock of who wrote it. ``release``: "" when it isn't one."""

    health: str
    at: float
    release: str = ""
    hosts: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Known:
    """What was told last, and what ``count`` readings from ``since`` to ``last`` (epoch seconds) say otherwise."""

    health: str = UNKNOWN
    release: str = ""
    event: str = ""
    differs: str = ""
    since: float = 0.0
    last: float = 0.0
    count: int = 0


# -- pure ---------------------------------------------------------------------------------------------------------


def terms_of(args: Mapping[str, Any]) -> Terms:
    """The options as they were given.

    :raises ValueError: one is missing or can't be used. It ends the rulebook, which is better than to watch nothing.
    """
    missing = [name for name in ("pool", "status_file") if not args.get(name)]
    if missing:
        raise ValueError(f"pool_health: {', '.join(missing)} has to be given.")
    status_file = Path(str(args["status_file"])).expanduser()
    terms = Terms(
        pool=str(args["pool"]),
        status_file=status_file,
        state_file=Path(str(args.get("state_file") or f"{status_file}.health")).expanduser(),
        delay=float(args.get("delay", 5)),
        stale_after=float(args.get("stale_after", 300)),
        readings=int(args.get("readings", 2)),
        restart_limit=int(args.get("restart_limit", 3)),
        dead_limit=int(args.get("dead_limit", 0)),
        waiting_limit=float(args.get("waiting_limit", 0)),
    )
    if terms.delay <= 0 or terms.stale_after <= 0 or terms.readings < 1:
        raise ValueError("pool_health: delay and stale_after have to be more than 0, readings at least 1.")
    return terms


def read(status: Any, terms: Terms, now: float) -> Reading | None:
    """What a status says; None while somebody is at work on the pool.

    :param status: as ``pool_status_file`` has it.
    :param now: epoch seconds.
    :raises ValueError, KeyError, TypeError, AttributeError: it is no such status.
    """
    if status["schema"] != _STATUS_SCHEMA:
        raise ValueError(status["schema"])
    at, hosts = float(status["at"]), status["hosts"]
    useless = f"the status is that of pool {status['pool']}" if status["pool"] != terms.pool else ""
    if now - at > terms.stale_after:
        useless = f"the status is older than {terms.stale_after:.0f} s"
    if useless:
        return Reading(UNKNOWN, at, reason=_sentence([useless]))
    silent = {host: str(state["error"]) for host, state in hosts.items() if "error" in state}
    told = {host: state for host, state in hosts.items() if host not in silent}
    if any(_is_busy(state) for state in told.values()):
        return None
    releases = sorted({str(state.get("current") or "") for state in told.values()})
    found = {host: said for host, state in told.items() if (said := _host_problems(state, terms))}
    broker = status["broker"]
    of_queues = [] if "error" in broker else _queue_problems(broker, releases, terms)
    if found or of_queues:
        # Trouble of a queue is everybody's.
        where = sorted(found) if found else sorted(told)
        bad = sorted({str(told[host].get("current") or "") for host in where})
        said = [f"{host}: {text}" for host in sorted(found) for text in found[host]]
        return Reading(BAD, at, bad[0] if len(bad) == 1 else "", tuple(where), _sentence([*said, *of_queues]))
    silence = [f"{host}: {why}" for host, why in silent.items()]
    silence += [f"the broker: {broker['error']}"] if "error" in broker else []
    release = releases[0] if len(releases) == 1 else ""
    if silence or not told:
        return Reading(UNKNOWN, at, release, tuple(sorted(silent)), _sentence(silence or ["no host is known"]))
    return Reading(GOOD, at, release)


def _is_busy(state: Mapping[str, Any]) -> bool:
    lease = state.get("lease")
    return bool((state.get("rollout") or {}).get("open") or (lease and not lease.get("released")))


def _host_problems(state: Mapping[str, Any], terms: Terms) -> list[str]:
    current = state["current"]
    if not current:
        return []
    workers = state["processes"]
    found = [f"worker {worker['index']} doesn't run" for worker in workers if not worker["pid"]]
    found += [
        f"worker {worker['index']} has died {worker['restarts']} times"
        for worker in workers
        if 0 < terms.restart_limit <= worker["restarts"] and worker["pid"] and worker["uptime"] < _YOUNG_SECONDS
    ]
    return found if workers else [f"no worker of {current} is there"]


def _queue_problems(broker: Mapping[str, Any], releases: list[str], terms: Terms) -> list[str]:
    found = []
    for name, queue in sorted(broker["queues"].items()):
        if queue.get("waiting") and queue.get("workers") == 0:
            found.append(f"queue {name} has no worker and {queue['waiting']} tasks that wait")
        waits = queue.get("oldest_waiting_seconds") or 0
        if 0 < terms.waiting_limit < waits:
            found.append(f"queue {name} has a task that waits since {waits:.0f} s")
    dead = sum(group["count"] for group in broker.get("dead") or [] if group.get("release") in releases)
    if 0 < terms.dead_limit <= dead:
        found.append(f"{dead} tasks of {', '.join(releases)} are dead")
    return found


def _sentence(said: list[str]) -> str:
    more = len(said) - _REASONS
    text = "; ".join(said[:_REASONS]) + (f"; and {more} more" if more > 0 else "")
    # It becomes a variable of a playbook, where braces could be a template.
    return text.replace("{", "(").replace("}", ")")


def _told(known: Known) -> str:
    """What has to differ for a change; the release of a pool that isn't bad makes none."""
    return f"{known.health} {known.release}" if known.health == BAD else known.health


def take(known: Known, reading: Reading, terms: Terms) -> tuple[Known, dict[str, Any] | None]:
    """What is known after one more reading, and the event if it makes a change.

    Not to know is told at once; good and bad only once so many readings agree. One status counts once, however often it
    is read.
    """
    new = Known(reading.health, reading.release)
    if _told(new) == _told(known):
        return replace(known, differs="", count=0, release=reading.release or known.release), None
    differs = _told(new)
    if known.differs != differs:
        known = replace(known, differs=differs, since=reading.at, last=reading.at, count=1)
    elif reading.at > known.last:
        known = replace(known, last=reading.at, count=known.count + 1)
    if reading.health != UNKNOWN and known.count < terms.readings:
        return known, None
    release = reading.release or (known.release if reading.health == UNKNOWN else "")
    event = {
        "pool": terms.pool, "health": reading.health, "was": known.health, "release": release,
        "hosts": list(reading.hosts), "reason": reading.reason, "at": known.since,
    }  # fmt: skip
    event["id"] = _name(event)
    return Known(reading.health, release, str(event["id"]), last=reading.at), event


def _name(event: Mapping[str, Any]) -> str:
    """Not a number, whatever it looks like: templates would make one of it."""
    what = json.dumps([event["pool"], event["release"], event["health"], event["at"]])
    return f"{event['pool']}-{event['health']}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"


# -- files --------------------------------------------------------------------------------------------------------


def look(terms: Terms, now: float) -> Reading | None:
    """Read the status; whatever keeps it from being read makes it unknown."""
    try:
        return read(json.loads(terms.status_file.read_text(encoding="utf-8")), terms, now)
    except OSError as error:
        return Reading(UNKNOWN, now, reason=f"the status can't be read: {error.strerror}")
    except (ValueError, KeyError, TypeError, AttributeError):
        return Reading(UNKNOWN, now, reason="the status is none that this version can read")


def recall(path: Path) -> Known:
    """What was told last; nothing, where that can't be read: it is then told anew."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.pop("schema") == _SCHEMA:
            return Known(**kept)
    except FileNotFoundError:
        return Known()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    _log.warning("pool_health: %s can't be read; the health of the pool is told anew", path)
    return Known()


def keep(known: Known, path: Path) -> None:
    """Remember what was told, whole or not at all.

    :raises OSError: it can't be written. That ends the rulebook: it could tell the same again at each start.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        json.dump({"schema": _SCHEMA, **asdict(known)}, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


async def main(queue: asyncio.Queue[Any], args: dict[str, Any], clock: Callable[[], float] = time.time) -> None:
    """Look until somebody ends it: a source that returns would end the rulebook."""
    terms = terms_of(args)
    known = await asyncio.to_thread(recall, terms.state_file)
    while True:
        reading = await asyncio.to_thread(look, terms, clock())
        if reading:
            before = known
            known, event = take(known, reading, terms)
            if event:
                # Told first: whoever dies in between tells the same again, with the same id, and not nothing.
                await queue.put(event)
            if known != before:
                await asyncio.to_thread(keep, known, terms.state_file)
        await asyncio.sleep(terms.delay)
