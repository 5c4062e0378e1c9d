# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a report says, as plain texts in rows: the page and the Markdown file only set them. Pure.

Nothing here is escaped: whoever sets a text in HTML or Markdown escapes all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Optional

from ansible_collections.backstep.workers.plugins.module_utils._rollout.names import utc

from .text import QUEUE_COLUMNS, count, end_sentence, hosts_text

Data = Mapping[str, Any]
Rows = list[list[str]]

# What of an event is worth a column of its own text, in this order.
_DETAILS = (
    "step",
    "command",
    "reason",
    "outcome",
    "code",
    "output",
    "waited",
    "seconds",
    "how",
    "kind",
    "mode",
    "bytes",
)
# Tasks on the page; the JSON file has all that are known.
_SHOWN_TASKS = 20
_CARE = {
    "lost": "done to the engine before anything was executed; whoever enqueued that can do so again.",
    "killed": "ended with the worker, in the middle; what was done by then is done.",
    "runs again": "taken back from a worker that is gone, and maybe run in part before.",
    "dead": "failed in this rollout, and not tried again by itself.",
    "parked": "out of the workers' reach until a replay.",
    "put back": "taken by a worker, and never begun.",
}
# What a report of facts leaves to people, with what each is about.
BLANKS = (
    ("Impact", "Who was affected, how, from when to when, and how do we know?"),
    ("Cause", "What made the release bad, and what let it get this far?"),
    ("What went well", ""),
    ("What went badly, or was luck", ""),
)
ACTIONS = ("action", "owner", "due")
_TILES = (
    ("detect", "to detect", "from the first switch to a verdict that isn't good"),
    ("decide", "to decide", "from the verdict to the first step back"),
    ("detect_and_decide", "to detect and decide", "from the first switch to the first step back"),
    (
        "restore",
        "to restore",
        "from the first step back until the last good release ran again on every host that went back",
    ),
    ("all", "in all", "from the first event to the last"),
)


def title(data: Data) -> str:
    """The report in a few words."""
    return f"Pool {data['pool']}, rollout {data['rollout']}: {data['kind']}"


def sentence(data: Data) -> str:
    """How it ended."""
    return end_sentence(data["pool"], data["ended"], data["release"], list(data["back_to"].values()))


def verdict(data: Data) -> str:
    """One word for the badge, and its class: ``good``, ``bad`` or ``unknown``."""
    return "good" if data["ok"] else "unknown" if data["ended"] in ("mixed", "superseded") else "bad"


def seconds(value: Optional[float]) -> str:
    """A duration in seconds."""
    return "not known" if value is None else f"{value:.1f} s"


def tiles(data: Data) -> list[tuple[str, str, str]]:
    """Durations that are known: value, name, what it is counted from and to."""
    known = {name: data["times"][name] for name, _label, _what in _TILES}
    if known["detect"] is not None and known["decide"] is not None:
        known["detect_and_decide"] = None
    return [(seconds(known[name]), label, what) for name, label, what in _TILES if known[name] is not None]


def head(data: Data) -> Rows:
    """Facts about the rollout as a whole: name and text."""
    before = sorted({release or "nothing" for release in data["before"].values()})
    owner = data["owner"]
    rows = [
        ["release", data["release"] or "nothing"],
        ["before", ", ".join(before)],
        ["began", utc(data["times"]["began"])],
        ["by", f"{owner['user']} on {owner['controller']}" if owner.get("user") else "not known"],
    ]
    if data["waves"]:
        rows.append(["waves", "; ".join(map(hosts_text, data["waves"]))])
    return rows


def hosts(data: Data) -> Rows:
    """A line for each host, the names of the columns first."""
    rows = [["host", "before", "now", "verdict", "why"]]
    for host, entry in data["hosts"].items():
        touched = entry["touched"]
        why = entry["exception"] or entry["reason"] or ("" if touched else "not touched")
        now = entry["now"] or ("not known" if entry["exception"] else "nothing")
        before = (data["before"][host] or "nothing") if host in data["before"] else "not known"
        rows.append([host, before, now, entry["verdict"] if touched else "-", why])
    return rows


def queues(data: Data) -> Rows:
    """A line for each queue as it is now; no line when the broker gave no answer."""
    lines = [[name, *(count(queue.get(state)) for state in QUEUE_COLUMNS)] for name, queue in data["queues"].items()]
    return [["queue", *QUEUE_COLUMNS], *lines] if lines else []


def care(data: Data) -> Rows:
    """A line for each task that needs care."""
    tasks = (data["care"] or {}).get("tasks") or []
    lines = [
        [
            task["id"] or "not known",
            task["what"],
            task["now"],
            task["task"] or "not known",
            task["queue"] or "not known",
            task["release"] or "not known",
            task["worker"] or "",
        ]
        for task in tasks[:_SHOWN_TASKS]
    ]
    return [["task", "what", "is now", "name", "queue", "release", "worker"], *lines] if lines else []


def care_words(data: Data) -> list[str]:
    """How many tasks need care for what, what that means, and how many more there are."""
    known = data["care"]
    if known is None:
        return ["The journals don't say which tasks need care: the run ended before it could write that."]
    tasks = known["tasks"]
    counts = Counter(task["what"] for task in tasks)
    said = [f"{counts[what]} {what}: {words}" for what, words in _CARE.items() if counts[what]]
    hidden = max(0, len(tasks) - _SHOWN_TASKS)
    if hidden:
        said.append(f"{hidden} of them are not shown here: the JSON file has them by their ids.")
    if known["more"]:
        said.append(f"And {known['more']} more, whose ids were not noted: the broker knows them.")
    return said or ["None that Backstep has seen."]


def config(data: Data) -> Rows:
    """A line for each file of the config that going back has changed. Nothing of what is in them."""
    lines = []
    for one in data["config"]:
        where = f"{hosts_text(one['hosts'])}: {one['left']} to {one['restored']}"
        for change in one["changes"]:
            counts = ["not counted" if change[key] is None else str(change[key]) for key in ("added", "removed")]
            lines.append([where, change["file"], change["how"], *counts, ", ".join(change["names"])])
    return [["where", "file", "how", "lines added", "lines removed", "variables that differ"], *lines] if lines else []


def config_words(data: Data) -> list[str]:
    """How to see the lines themselves, and what could not be compared."""
    said = []
    for one in data["config"]:
        where, way = hosts_text(one["hosts"]), f"{one['left']} to {one['restored']}"
        if one["problem"]:
            said.append(f"{where}, {way}: not known. {one['problem']}")
        elif not one["changes"]:
            said.append(f"{where}, {way}: the config is the same, byte for byte.")
        else:
            said.append(f"The lines, for root on such a host: bin/backstep diff {one['left']} {one['restored']}")
    return list(dict.fromkeys(said))


def depth_words(course: Data) -> list[str]:
    """How many tasks were in other states than waiting, at the first look and at the last."""
    said = []
    for state, values in course["states"].items():
        known = [value for value in values if value is not None]
        if not known:
            said.append(f"{state}: not counted by this engine")
        elif max(known):
            said.append(f"{state}: {known[0]} at first, {max(known)} at most, {known[-1]} at last")
    return ["; ".join(said) + "."] if said else []


def count_words(course: Data, what: str) -> list[str]:
    """How many tasks each release has finished, or failed, while somebody looked."""
    said = []
    for release, totals in course["totals"].items():
        total = totals[("finished", "failed").index(what)]
        least = "at least " if release in course["least"] else ""
        said.append(f"{release}: not counted by this engine" if total is None else f"{release}: {least}{total} {what}")
    return ["; ".join(said) + "."] if said else ["No worker was seen."]


def events(data: Data) -> Rows:
    """Every event, in the order of the hosts' clocks."""
    rows = [["time (UTC)", "host", "event", "by", "release", "details"]]
    for event in data["events"]:
        release = event.get("release") or event.get("target") or ""
        said = {**event, "command": " ".join(event.get("command", ()))}
        details = [f"{name}: {said[name]}" for name in _DETAILS if said.get(name) not in (None, "")]
        rows.append(
            [moment(event["time"]), event["host"], words(event["event"]), event["by"], release, "; ".join(details)]
        )
    return rows


def notes(data: Data) -> list[str]:
    """What a reader has to know about this report itself."""
    silent = [host for host in data["hosts"] if host not in data["clocks"]]
    found = [f"No journal came from {', '.join(silent)}: what happened there is not in here."] if silent else []
    for host, off in data["skew"].items():
        side = "ahead of" if off > 0 else "behind"
        found.append(
            f"The clock of {host} is at least {abs(off):.1f} s {side} the controller's. "
            "Drawings and durations allow for that."
        )
    if not data["queues"]:
        found.append("The broker gave no answer about the queues.")
    if data["course"] is None:
        found.append(
            "How the queues were in the rollout is not in the journals: the run ended before it could write it, or a "
            "version that doesn't note it has made it. So nothing is drawn."
        )
    elif not data["course"]:
        found.append("Nobody could see how the queues were in the rollout. So nothing is drawn.")
    found.append("Times are UTC, each by its own host's clock; what was seen of the queues, by the controller's.")
    return found


def moment(epoch: float) -> str:
    """A point in time with milliseconds, without its day."""
    return f"{utc(epoch)[11:19]}.{int(epoch * 1000) % 1000:03d}"


def words(event: str) -> str:
    """An event's name as it is read."""
    return event.replace("_", " ")
