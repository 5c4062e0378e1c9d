# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a report says, as plain texts in rows: the page and the Markdown file only set them. Pure.

Nothing here is escaped: whoever sets a text in HTML or Markdown escapes all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from ansible_collections.backstep.workers.plugins.module_utils._rollout.names import utc

from .text import QUEUE_COLUMNS, count, end_sentence

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
        rows.append(["waves", "; ".join(", ".join(wave) for wave in data["waves"])])
    return rows


def hosts(data: Data) -> Rows:
    """A line for each host, the names of the columns first."""
    rows = [["host", "before", "now", "verdict", "why"]]
    for host, entry in data["hosts"].items():
        touched = entry["touched"]
        why = entry["exception"] or entry["reason"] or ("" if touched else "not touched")
        now = entry["now"] or ("not known" if entry["exception"] else "nothing")
        rows.append([host, data["before"].get(host) or "nothing", now, entry["verdict"] if touched else "-", why])
    return rows


def queues(data: Data) -> Rows:
    """A line for each queue after the rollout; no line when the broker gave no answer."""
    lines = [[name, *(count(queue.get(state)) for state in QUEUE_COLUMNS)] for name, queue in data["queues"].items()]
    return [["queue", *QUEUE_COLUMNS], *lines] if lines else []


def recovered(data: Data) -> Rows:
    """A line for each task that was taken back from a worker that is gone: these need care."""
    lines = [
        [task["id"], task.get("queue") or "", task["to"], task.get("worker") or "not known"]
        for task in data["recovered"]
    ]
    return [["task", "queue", "is now", "was held by"], *lines] if lines else []


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
        found.append(f"The clock of {host} is at least {abs(off):.1f} s {side} the controller's.")
    if not data["queues"]:
        found.append("The broker gave no answer about the queues.")
    found.append("Times are UTC, each by its own host's clock.")
    return found


def moment(epoch: float) -> str:
    """A point in time with milliseconds, without its day."""
    return f"{utc(epoch)[11:19]}.{int(epoch * 1000) % 1000:03d}"


def words(event: str) -> str:
    """An event's name as it is read."""
    return event.replace("_", " ")
