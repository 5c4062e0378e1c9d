# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is to be told of a rollout's end, when again, and what may be said of it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout import notices
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput
from ansible_collections.backstep.workers.plugins.plugin_utils import notifying

A, B = "1.0-aaaaaaaa", "2.0-bbbbbbbb"
NOW = 10_000.0
OWNER = {"user": "ana", "controller": "ops1", "pid": 7}


def state(**changed: Any) -> dict[str, Any]:
    """What a host tells on which rollout 7 has confirmed B an hour ago."""
    rollout = {"token": 7, "kind": "deploy", "phase": "confirmed", "origin": A, "target": B, "reason": ""}
    told: dict[str, Any] = {
        "rollout": {**rollout, **changed.pop("rollout", {})}, "current": B, "lease": None, "notices": [],
        "last_lease": {"token": 7, "kind": "deploy"}, "last_owner": OWNER, "last_events": {"confirmed": NOW - 3600.0},
        "clock": NOW,
    }  # fmt: skip
    return {**told, **changed}


BACK = {"kind": "rollback", "phase": "rolled_back", "origin": B, "target": A, "reason": "guard: too late"}


def notice(rollout: int = 7, **changed: Any) -> dict[str, Any]:
    """One that was never sent to the chat, tried once."""
    event = {"id": f"mail-{rollout}", "what": "deployed", "at": 60.0}
    kept = {"id": f"mail-{rollout}", "rollout": rollout, "event": event, "left": ["chat"], "tries": 1, "first": NOW}
    return {**kept, "why": "chat: refused", **changed}


def derived(*states: dict[str, Any]) -> dict[str, Any] | None:
    return notices.event_from_journals("mail", {f"w{number}": each for number, each in enumerate(states, 1)})


def test_an_end_of_which_nobody_was_told_is_found_in_the_journals() -> None:
    event = derived(state(), state())
    assert event is not None
    assert {name: event[name] for name in ("id", "what", "from", "to", "now", "verdict", "hosts", "at", "by")} == {
        "id": "mail-7", "what": "deployed", "from": A, "to": B, "now": B, "verdict": "good", "hosts": ["w1", "w2"],
        "at": NOW - 3600.0, "by": "ana@ops1 (pid 7)",
    }  # fmt: skip


def test_a_way_back_is_told_from_a_rollback_that_a_person_asked_for() -> None:
    event = derived(state(rollout=BACK, current=A))
    assert event is not None
    assert [event[name] for name in ("what", "from", "to", "now", "verdict", "reason")] == [
        "went_back", A, B, A, "bad", "guard: too late"
    ]  # fmt: skip
    asked = derived(state(rollout={**BACK, "reason": ""}, current=A, last_lease={"token": 7, "kind": "rollback"}))
    assert asked is not None
    assert [asked[name] for name in ("what", "from", "to", "now", "verdict")] == ["rolled_back", B, A, A, "good"]


@pytest.mark.parametrize(
    "states",
    [
        pytest.param([state(rollout={"phase": "stuck"})], id="stuck"),
        pytest.param([state(), state(rollout=BACK, current=A)], id="mixed"),
    ],
)
def test_what_ended_badly_needs_a_person(states: list[dict[str, Any]]) -> None:
    event = derived(*states)
    assert event is not None
    assert (event["what"], event["verdict"]) == ("needs_a_person", "bad")


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"rollout": {"phase": "switched"}}, id="not over"),
        pytest.param({"lease": {"token": 7}}, id="a run is at work"),
        pytest.param({"last_events": {"confirmed": NOW - 60.0}}, id="just over"),
        pytest.param({"notices": [notice(left=[])]}, id="told"),
        pytest.param({"notices": [notice()]}, id="tried"),
    ],
)
def test_no_end_is_made_up(changed: dict[str, Any]) -> None:
    assert derived(state(), state(**changed)) is None
    assert notices.event_from_journals("mail", {}) is None
    assert derived(state(last_events={"confirmed": NOW - 2 * notices.SECONDS_AT_MOST})) is None, "long over"
    assert derived({**state(), "rollout": None}) is None


def test_a_host_with_an_older_rollout_has_no_part_in_the_end() -> None:
    older = {"token": 6, "phase": "confirmed", "origin": None, "target": A}
    event = derived(state(), state(rollout=older, current=A))
    assert event is not None
    assert (event["hosts"], event["now"]) == (["w1"], B)


def end(kind: str, ended: str, **outcome: Any) -> dict[str, Any]:
    plan = {
        "kind": kind,
        "rollout": 8,
        "release": B,
        "hosts": ["w1"],
        "unfinished": [],
        "before": {"w1": A},
        "owner": OWNER,
    }
    found = {"ended": ended, "hosts": {"w1": B}, "exceptions": {}, "reasons": "why", **outcome}
    return notices.event_of_end("mail", plan, {"verdict": "good"}, found, NOW)


@pytest.mark.parametrize(
    ("kind", "ended", "what"),
    [
        ("deploy", "deployed", "deployed"),
        ("deploy", "rolled_back", "went_back"),
        ("deploy", "mixed", "needs_a_person"),
        ("deploy", "stopped", "stopped"),
        ("deploy", "superseded", "superseded"),
        ("rollback", "rolled_back", "rolled_back"),
        ("rollback", "mixed", "needs_a_person"),
    ],
)
def test_a_run_s_own_end_has_a_word(kind: str, ended: str, what: str) -> None:
    event = end(kind, ended)
    assert (event["what"], event["id"], event["from"], event["now"]) == (what, "mail-8", A, B)
    assert what in notices.KINDS
    assert end(kind, ended, exceptions={"w1": "no route"}, hosts={"w1": None})["now"] == "not known of every host"


def test_the_word_that_is_left_has_releases_and_no_text_of_anybody_s() -> None:
    event = {**end("deploy", "rolled_back", hosts={"w1": A}), "report": "/r/mail-8.html", "next": "a command"}
    assert notices.artifact(event, False) == {
        "schema": 1,
        "pool": "mail",
        "rollout": 8,
        "what": "went_back",
        "ended": NOW,
        "from": A,
        "to": B,
        "now": A,
        "ok": False,
        "report": "/r/mail-8.html",
    }


def due(*looks: dict[str, Any], ended: dict[str, Any] | None = None, now: float = NOW) -> list[tuple[str, Any]]:
    found = notices.due("mail", [{"w1": look} for look in looks], ended, now)
    return [(each["id"], each["left"]) for each in found]


def test_what_is_due_is_the_own_end_an_earlier_one_and_what_was_not_sent() -> None:
    own = end("deploy", "deployed")
    later = state(rollout={"token": 8}, last_events={"confirmed": NOW})
    assert due(state(), later, ended=own) == [("mail-7", None), ("mail-8", None)]
    assert due(state(notices=[notice(5)]), ended=own) == [("mail-5", ["chat"]), ("mail-7", None), ("mail-8", None)]
    assert due(state(notices=[notice(8, left=[])]), ended=own) == [], "nobody is told twice"
    assert due(state(notices=[notice(8, left=["x"])]), ended=own) == [("mail-8", ["x"])]
    assert notices.due("mail", [], None, NOW) == []


def test_it_is_tried_ten_times_and_for_a_day_at_most() -> None:
    assert due(state(notices=[notice(tries=9)])) == [("mail-7", ["chat"])]
    assert due(state(notices=[notice(tries=10)])) == []
    assert due(state(notices=[notice()]), now=NOW + notices.SECONDS_AT_MOST + 1) == []


def test_a_drill_is_told_as_one() -> None:
    def told(**changed: Any) -> list[str]:
        asked = {"w1": state(rollout=BACK, **changed)}
        return [each["event"]["what"] for each in notices.due("mail", [asked], None, NOW)]

    assert told(drill={"token": 7, "kind": "crash", "ended": 1.0, "passed": True}) == ["drilled"]
    assert told(drill={"token": 6, "kind": "crash", "ended": 1.0, "passed": True}) == ["went_back"]
    assert told(releases=[{"id": B, "drill": "crash"}]) == ["drilled"], "also when its run has died"
    assert told(releases=[{"id": A, "drill": "crash"}, {"id": B, "drill": ""}]) == ["drilled"]
    assert told(releases=[{"id": B, "drill": ""}]) == ["went_back"]


def test_a_drill_that_has_not_passed_needs_a_person() -> None:
    event = {"what": "went_back", "reason": "w1: it died"}
    assert notices.event_of_drill(event, []) == {"what": "drilled", "reason": "w1: it died"}
    assert notices.event_of_drill(event, ["a", "b"]) == {"what": "needs_a_person", "reason": "a; b"}


def test_after_a_try_only_what_was_not_sent_is_kept() -> None:
    (new,) = notices.due("mail", [{"w1": state()}], None, NOW)
    failed = notices.after(new, {"mail": "refused", "chat": "503"})
    assert (failed["left"], failed["tries"], failed["why"]) == (["chat", "mail"], 1, "mail: refused; chat: 503")
    assert failed["event"]["what"] == "deployed"
    done = notices.after(failed, {})
    assert (done["left"], done["tries"], done["event"], done["why"]) == ([], 2, {}, "")


def test_those_who_have_it_keep_it_and_no_more_than_three_others() -> None:
    states = {f"w{number}": state() for number in range(1, 101)}
    assert notices.keepers(states, [notice()]) == ["w1", "w10", "w100"]
    states["w50"] = state(notices=[notice()])
    assert notices.keepers(states, [notice()]) == ["w50", "w1", "w10"]
    assert notices.keepers(states, []) == []


def test_of_copies_that_differ_the_one_that_was_tried_last_counts() -> None:
    states = {"w1": state(notices=[notice(tries=3, left=[])]), "w2": state(notices=[notice(tries=2)])}
    assert [each["tries"] for each in notices.kept(states).values()] == [3]


def test_a_host_keeps_what_is_open_and_the_last_that_was_sent() -> None:
    sent, waits, given_up = notice(5, left=[]), notice(6), notice(4, tries=10)
    held = {each["id"]: each for each in (sent, waits, given_up)}
    assert set(notices.with_notice(held, notice(7))) == {"mail-4", "mail-6", "mail-7"}
    assert set(notices.with_notice(held, notice(7, left=[]))) == {"mail-6", "mail-7"}
    many = {f"mail-{number}": notice(number) for number in range(1, 40)}
    kept = notices.with_notice(many, notice(40))
    assert len(kept) == 20
    assert "mail-40" in kept


def test_status_names_what_waits_and_what_was_given_up() -> None:
    states = {"w1": state(notices=[notice(), notice(6, tries=10), notice(5, left=[])])}
    when = "(deployed, 1970-01-01 00:01:00 UTC)"
    assert notices.lines(states, NOW) == [
        f"  ! notification mail-6 {when} was never sent to chat, in 10 tries: chat: refused",
        f"  notification mail-7 {when} is not sent yet to chat, after 1 of 10 tries",
    ]


def test_a_notification_is_wanted_for_what_it_is_about_and_again_by_its_name() -> None:
    entry = {"module": "ansible.builtin.uri", "about": ["went_back"]}
    assert notifying.name_of(entry, 2) == "ansible.builtin.uri (2)"
    new = {"left": None, "event": {"what": "deployed"}}
    assert not notifying.is_wanted(entry, "chat", new)
    assert notifying.is_wanted(entry, "chat", {**new, "event": {"what": "went_back"}})
    assert notifying.is_wanted({}, "chat", new)
    assert notifying.is_wanted(entry, "chat", {**new, "left": ["chat"]})
    assert not notifying.is_wanted({}, "mail", {**new, "left": ["chat"]})


def test_only_a_full_name_is_a_module() -> None:
    assert notifying.require_module("community.general.mail") == "community.general.mail"
    with pytest.raises(BadInput, match="full name"):
        notifying.require_module("mail")


def test_why_it_failed_is_said_without_any_value_that_it_was_called_with() -> None:
    args = {"url": "https://hooks.example.org/T0/secret-part", "headers": {"a": ["Bearer xyz"]}, "retries": 3}
    why = "POST https://hooks.example.org/T0/secret-part (/T0/secret-part): Bearer xyz was refused"
    said = notifying.without_values(why, args)
    assert "secret-part" not in said
    assert "xyz" not in said
    assert said.endswith("was refused")
    assert notifying.one_line("a\n  b") == "a b"
    assert len(notifying.one_line("x" * 500)) == 203


def test_a_line_says_what_went_and_what_will_be_tried_again() -> None:
    tried = notice(why="chat: refused")
    assert notifying.lines(tried, ["mail"]) == [
        "notification mail-7: sent to mail",
        "notification mail-7: NOT sent, and any later run sends it again (9 more tries). chat: refused",
    ]
    assert notifying.lines(notice(tries=10), [])[0].startswith(
        "notification mail-7: NOT sent, and it is not tried again."
    )
    assert notifying.lines(notice(left=[]), []) == []
