# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report says what the journals say, in three notations, and nothing in it can do harm."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput
from ansible_collections.backstep.workers.plugins.plugin_utils.report import write
from ansible_collections.backstep.workers.plugins.plugin_utils.report_journal import data_from_journals
from ansible_collections.backstep.workers.plugins.plugin_utils.report_markdown import markdown
from ansible_collections.backstep.workers.plugins.plugin_utils.report_page import page

from tests.support.reports import CARE, CONFIG, NEW, OLD, course

HOSTILE = "<script>alert('x')</script> \" onload='y' | `z` ]] & **b**"
OWNER = {"user": "ana", "controller": "ops1", "pid": 1}
VOID = {"meta"}
BLANKS = ("Impact", "Cause", "What went well", "Actions")


def event(name: str, at: float, **data: Any) -> dict[str, Any]:
    return {"event": name, "time": at, "token": 2, "by": "controller", **data}


STAGED = [
    event("lease_granted", 1000, kind="deploy", owner=OWNER),
    event("stage_started", 1001, release=NEW, version="2.0"),
    event("staged", 1002, release=NEW, seal=""),
]
SWITCHED = [
    *STAGED,
    event("switch_started", 1003, origin=OLD, target=NEW, safe=OLD, mode="overlap"),
    event("switched", 1004, target=NEW, processes={}),
]
BACK = [
    *SWITCHED,
    event("rollback_started", 1009, origin=NEW, target=OLD, verdict="bad", reason="w1: it fails", mode="overlap"),
    event("restored", 1010, target=OLD, processes={}),
    event("rolled_back", 1012, origin=NEW, target=OLD, reason=""),
]
GOOD = [*SWITCHED, event("confirm_started", 1009, target=NEW), event("confirmed", 1010, target=NEW)]


def answer(events: list[dict[str, Any]], current: str) -> dict[str, Any]:
    return {"pool_state": {"clock": 1015.0, "current": current, "events": copy.deepcopy(events)}}


def report(**hosts: Any) -> dict[str, Any]:
    queue = {"waiting": 3, "scheduled": 0, "executing": None, "retrying": 0, "dead": 7, "parked": 0, "workers": 2}
    data = data_from_journals("mail", hosts, {"queues": {"mail": queue}}, None)
    data["skew"] = {}
    return data


def went_back() -> dict[str, Any]:
    return report(w1=answer(BACK, OLD), w2=answer(STAGED, OLD))


def test_a_deploy_that_went_back() -> None:
    data = went_back()
    assert (data["ended"], data["ok"], data["kind"], data["release"]) == ("rolled_back", False, "deploy", NEW)
    assert data["hosts"]["w1"]["verdict"] == "bad"
    assert (data["hosts"]["w1"]["touched"], data["hosts"]["w2"]["touched"]) == (True, False)
    assert data["before"] == {"w1": OLD, "w2": OLD}
    assert (data["times"]["detect_and_decide"], data["times"]["restore"]) == (5, 1)


def test_a_deploy_that_is_good() -> None:
    data = report(w1=answer(GOOD, NEW))
    assert (data["ended"], data["ok"], data["hosts"]["w1"]["verdict"]) == ("deployed", True, "good")


def test_what_drains_on_is_no_part_of_the_rollout_s_time() -> None:
    gone = {"release": OLD, "outcome": "clean", "running": []}
    later = {**event("reaped", 9000, **gone), "by": "reaper"}
    data = report(w1=answer([*GOOD, later], NEW))
    assert data["times"]["all"] == 10
    assert data["events"][-1]["event"] == "reaped"


def test_a_rollback_that_a_person_asked_for() -> None:
    events = [
        event("lease_granted", 1000, kind="rollback", owner=OWNER),
        event("rollback_started", 1001, origin=NEW, target=OLD, verdict="bad", reason="slow", mode="overlap"),
        event("restored", 1002, target=OLD, processes={}),
        event("rolled_back", 1003, origin=NEW, target=OLD, reason="slow"),
    ]
    data = report(w1=answer(events, OLD))
    assert (data["ended"], data["ok"], data["release"], data["before"]) == ("rolled_back", True, OLD, {"w1": NEW})


@pytest.mark.parametrize("silent", [None, {"unreachable": True, "msg": "no route"}, {"failed": True, "msg": "no"}])
def test_a_host_without_a_journal_is_an_exception_and_named(silent: Any) -> None:
    data = report(w1=answer(GOOD, NEW), w2=silent)
    assert (data["ended"], data["ok"], data["hosts"]["w2"]["now"]) == ("mixed", False, None)
    assert "No journal came from w2" in page(data)
    assert "No journal came from w2" in markdown(data)


def test_a_rollout_that_is_open_on_a_host_is_an_exception() -> None:
    data = report(w1=answer(GOOD, NEW), w2=answer(SWITCHED, NEW))
    assert data["ended"] == "mixed"
    assert "has not ended here" in data["hosts"]["w2"]["exception"]


def test_a_pool_that_is_on_two_releases_is_mixed() -> None:
    assert report(w1=answer(GOOD, NEW), w2=answer(BACK, OLD))["ended"] == "mixed"


def test_nothing_to_report_is_an_error() -> None:
    with pytest.raises(BadInput, match="nothing to report"):
        report(w1=answer([], OLD))


def test_the_files_are_named_after_pool_and_rollout(tmp_path: Path) -> None:
    data = went_back()
    paths = write(data, str(tmp_path / "new"))
    assert [Path(path).name for path in paths] == ["mail-2.html", "mail-2.md", "mail-2.json"]
    assert json.loads(Path(paths[2]).read_text(encoding="utf-8")) == data


def test_the_page_tells_the_story() -> None:
    text = page(went_back())
    for said in (f"Pool mail went back to {OLD}.", "to detect and decide", "w1: it fails", "ana on ops1", "go back"):
        assert said in text
    assert '<td data-name="executing">?</td>' in text, "what the engine can't count is not 0"


def test_the_page_needs_nothing_else() -> None:
    text = page(went_back())
    assert "default-src 'none'" in text
    for reaching in ("http://", "https://", "url(", "@import", "<script", "<link", "<img"):
        assert reaching not in text


class Tags(HTMLParser):
    """Every tag and attribute, and whether each tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {attribute[0] for attribute in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def hostile() -> dict[str, Any]:
    """A report in which every text that comes from outside is hostile."""
    data = went_back()
    data["hosts"] = {f"{host}{HOSTILE}": {**entry, "reason": HOSTILE} for host, entry in data["hosts"].items()}
    data["hosts"][f"w1{HOSTILE}"]["now"] = HOSTILE
    data["hosts"][f"w2{HOSTILE}"]["exception"] = HOSTILE
    for name in ("phases", "before", "back_to", "clocks"):
        data[name] = {f"{host}{HOSTILE}": value for host, value in data[name].items()}
    data["before"] = dict.fromkeys(data["before"], HOSTILE)
    data["back_to"] = dict.fromkeys(data["back_to"], HOSTILE)
    data["queues"] = {HOSTILE: {"waiting": HOSTILE}}
    data["owner"] = {"user": HOSTILE, "controller": HOSTILE}
    data["care"] = {"tasks": [dict.fromkeys(CARE["tasks"][0], HOSTILE), *CARE["tasks"]], "more": 1}
    data["config"] = [
        {"hosts": [HOSTILE], "left": HOSTILE, "restored": HOSTILE, "problem": "",
         "changes": [{"file": HOSTILE, "how": HOSTILE, "added": 1, "removed": None, "names": [HOSTILE]}]},
        {"hosts": [HOSTILE], "left": HOSTILE, "restored": HOSTILE, "problem": HOSTILE, "changes": []},
    ]  # fmt: skip
    data["course"] = {**course(), **{key: {HOSTILE: [1] * 60} for key in ("waiting", "finished", "failed")}}
    data["course"]["at"] = [1000 + second for second in range(60)]
    data["skew"] = {f"w1{HOSTILE}": 3.0}
    data.update(pool=HOSTILE, release=HOSTILE, reasons=HOSTILE, waves=[[HOSTILE]])
    for entry in data["events"]:
        entry.update(host=f"{entry['host']}{HOSTILE}", by=HOSTILE, event=HOSTILE, reason=HOSTILE, release=HOSTILE)
    return data


def test_hostile_texts_stay_texts_on_the_page() -> None:
    plain, attacked = Tags(), Tags()
    full = went_back()
    full["care"], full["course"] = CARE, course()
    full["config"] = [{"hosts": ["w1"], "left": NEW, "restored": OLD, "problem": "", "changes": CONFIG}]
    plain.feed(page(full))
    attacked.feed(page(hostile()))
    assert not attacked.open
    assert attacked.seen <= plain.seen
    assert attacked.attributes <= plain.attributes


def test_hostile_texts_stay_texts_in_markdown() -> None:
    text = markdown(hostile())
    assert "<" not in text
    assert "\\`z\\`" in text
    columns = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")}
    assert columns == {4, 6, 7, 8, 9}, "no cell makes a column"


def test_what_was_noted_in_the_journals_is_in_the_report_and_told_once() -> None:
    noted = event("observed", 1013, course=course(), care=CARE, noticed=1008.0)
    back = [*BACK[:-1], {**BACK[-1], "config": CONFIG}, noted]
    data = report(w1=answer(back, OLD), w2=answer([*STAGED, noted], OLD), w3=answer(back, OLD))
    assert (data["course"], data["care"], data["times"]["detect"]) == (course(), CARE, 4)
    assert data["config"] == [{"hosts": ["w1", "w3"], "left": NEW, "restored": OLD, "problem": "", "changes": CONFIG}]
    assert json.dumps(data["events"]).count("SMTP_PASSWORD") == json.dumps(data["events"]).count("5f1d6c3e") == 0
    for text in (page(data), markdown(data).replace("\\", "")):
        told = ("5f1d6c3e-10", "1 killed: ", "And 3 more", "SMTP_PASSWORD", f"bin/backstep diff {NEW} {OLD}", *BLANKS)
        assert [said for said in told if said not in text] == []


def test_a_journal_without_observations_says_so_and_draws_nothing() -> None:
    for text in (page(went_back()), markdown(went_back())):
        assert "is not in the journals" in text
        assert "say which tasks need care" in text
        assert "Tasks that wait" not in text


def test_a_broker_that_could_never_be_asked_is_no_empty_queue() -> None:
    noted = event("observed", 1013, course={}, care={"tasks": [], "more": 0}, noticed=None)
    text = page(report(w1=answer([*GOOD, noted], NEW)))
    assert "Nobody could see how the queues were" in text
    assert "None that Backstep has seen." in text


def test_a_way_back_by_the_guard_is_told_from_the_journal_alone() -> None:
    guarded = [{**entry, "by": "guard"} for entry in BACK[-3:]]
    guarded[0].update(verdict="unknown", reason="guard: it was not confirmed in time")
    data = report(w1=answer([*SWITCHED, event("guard_fired", 1008, reason="it was not confirmed"), *guarded], OLD))
    assert (data["ended"], data["ok"], data["hosts"]["w1"]["verdict"]) == ("rolled_back", False, "unknown")
    assert "it was not confirmed in time" in page(data)
    assert data["times"]["restore"] == 1


def test_a_clock_that_is_off_bends_no_duration_and_no_drawing() -> None:
    off = 7200.0
    shifted = [{**entry, "time": entry["time"] + off} for entry in BACK]
    hosts = {"w1": answer(BACK, OLD), "w2": answer(shifted, OLD)}
    hosts["w1"]["pool_state"]["clock"], hosts["w2"]["pool_state"]["clock"] = 4e9, 4e9 + off
    data = data_from_journals("mail", hosts, {}, 4e9)
    assert data["skew"]["w2"] - data["skew"]["w1"] == pytest.approx(off)
    assert (data["times"]["restore"], data["times"]["all"]) == (pytest.approx(1, abs=0.1), pytest.approx(12, abs=0.1))
    assert "as its clock is off" in page(data)
    assert page(data).count('class="tick') < 12


def test_the_config_that_could_not_be_compared_is_not_the_same() -> None:
    back = [*BACK[:-1], {**BACK[-1], "config_problem": "Its config can't be read."}]
    text = page(report(w1=answer(back, OLD)))
    assert "not known. Its config can&#x27;t be read." in text
    assert "byte for byte" not in text


def test_a_hundred_hosts_are_a_page_that_can_be_read() -> None:
    hosts = {f"w{number:02d}": answer(BACK if number < 60 else STAGED, OLD) for number in range(100)}
    data = report(**hosts)
    text = page(data)
    assert text.count('class="host"') == 40
    assert "60 more hosts are in the table below." in text
    assert "<details><summary>600 events of 100 hosts" in text
    assert len(text) < 1_500_000


def test_the_hosts_that_are_drawn_of_many_are_those_to_look_at() -> None:
    hosts = {f"w{number:02d}": answer(STAGED, OLD) for number in range(99)}
    data = report(**hosts, w99=answer(SWITCHED, NEW))
    assert ">w99: not known</text>" in page(data)
