# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether an alert takes a pool back: only out of the release that it is about, while that is new, in nobody's way."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout import alerts
from ansible_collections.backstep.workers.plugins.module_utils._rollout.alerts import Alert, alert_of
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput, HostUnfit
from ansible_collections.backstep.workers.plugins.module_utils._rollout.rules import describe_owner
from ansible_collections.backstep.workers.plugins.plugin_utils.text import alert_lines

A, B, C = "1.0-aaaaaaaa", "2.0-bbbbbbbb", "3.0-cccccccc"
NOW = 1_795_230_000.0
WINDOW = 3600.0
# A minute by nobody's clock but the hosts'.
AHEAD = 500.0


def deployed(release: str = B, origin: str = A, ago: float = 600.0, **more: Any) -> dict[str, Any]:
    """A host that a deploy has brought to a release; its clock is ahead."""
    rollout = {"kind": "deploy", "origin": origin, "target": release, "open": False, "reason": ""}
    since = NOW + AHEAD - ago
    told = {"current": release, "since": since, "clock": NOW + AHEAD, "rollout": rollout, "lease": None, "releases": []}
    return {**told, **more}


def between(kind: str, release: str, origin: str, ago: float = 5.0, current: str = B) -> dict[str, Any]:
    """A host whose rollout was begun and is not over."""
    started = NOW + AHEAD - ago
    rollout = {"kind": kind, "origin": origin, "target": release, "open": True, "reason": "it broke"}
    return deployed(current, rollout={**rollout, "started": started})


def gone_back(reason: str = "rolled back by ana", release: str = A, origin: str = B) -> dict[str, Any]:
    rollout = {"kind": "rollback", "origin": origin, "target": release, "open": False, "reason": reason}
    return deployed(release, rollout=rollout)


def lease(kind: str = "deploy", run: str = "r1", **owner: Any) -> dict[str, Any]:
    told = {"run": run, "user": "ana", "controller": "ops1", "pid": 7, **owner}
    return {"kind": kind, "owner": told, "granted": NOW - 30.0}


def why(*hosts: dict[str, Any] | None, at: float = NOW - 60.0, release: str = B, dead: Any = ()) -> str:
    answers = {
        f"w{number}": {"pool_state": state} if state and "current" in state else state
        for number, state in enumerate(hosts, 1)
    }
    return alerts.why_not(Alert("a1", release, at, ""), answers, dead, WINDOW, NOW)


def test_the_new_release_is_left() -> None:
    assert why(deployed(), deployed()) == ""


@pytest.mark.parametrize("ago", [1.0, WINDOW - 1.0])
def test_at_any_time_in_the_window(ago: float) -> None:
    assert why(deployed(ago=ago), at=NOW - ago / 2) == ""


def test_not_after_the_window() -> None:
    assert "alerts take the pool back for 3600 s only" in why(deployed(ago=WINDOW + 1.0))


def test_a_host_that_was_added_later_makes_no_new_window() -> None:
    assert "pool_watch_window" in why(deployed(ago=90_000.0), deployed(ago=10.0))


def test_an_alert_from_before_the_release_is_about_something_else() -> None:
    assert "is there since" in why(deployed(), at=NOW - 3 * 86_400)
    assert "is there since" in why(deployed(ago=600.0), at=NOW - 600.0 - 61.0)
    assert why(deployed(ago=600.0), at=NOW - 600.0 - 59.0) == "", "clocks may differ by a minute"


def test_an_alert_from_the_future_is_refused_and_not_taken_for_a_new_one() -> None:
    with pytest.raises(BadInput, match="epoch seconds"):
        why(deployed(), at=NOW * 1000)


def test_another_release_is_not_left() -> None:
    assert why(deployed(C, B)) == f"it is on {C}"
    assert why(deployed(C), deployed(A)) == f"it is on {A}, {C}"


def test_what_has_gone_back_goes_no_further() -> None:
    assert why(gone_back()) == f"it went back from {B} already (rolled back by ana)"
    left = {"id": B, "state": "bad", "reason": "half fail"}
    assert why(deployed(C, A, releases=[left])) == f"it has left {B} already, which is marked as bad (half fail)"


def test_what_a_rollback_has_brought_stays() -> None:
    assert why(gone_back(), release=A) == f"a rollback has brought it to {A} (rolled back by ana)"


def test_what_is_on_its_way_back_is_its_guards() -> None:
    assert why(between("rollback", A, B)) == f"it is on its way back from {B} already (it broke)"


def test_an_interrupted_rollback_is_finished() -> None:
    assert why(gone_back("alert a1"), deployed()) == ""
    assert why(between("rollback", A, B), deployed()) == ""


def test_a_deploy_that_has_died_is_undone() -> None:
    assert why(between("deploy", B, A), deployed(A)) == ""
    assert why(between("deploy", C, B)) == f"it is on {B}", "it is on its way to another one"


def test_the_time_of_a_release_that_was_not_confirmed_counts_from_its_switch() -> None:
    assert "pool_watch_window" in why(between("deploy", B, A, ago=WINDOW + 1.0))


@pytest.mark.parametrize("state", [deployed(), between("deploy", B, A), gone_back()])
def test_who_is_at_work_is_left_alone(state: dict[str, Any]) -> None:
    said = why({**state, "lease": lease()}, deployed())
    assert said.startswith("ana@ops1 (pid 7) is at work on it with a deploy, since 2026-")


def test_a_rollback_that_is_under_way_is_not_begun_again() -> None:
    held = lease("rollback", alert="a1")
    assert why({**deployed(), "lease": held}) == "ana@ops1 (pid 7) for alert a1 is rolling it back already"


def test_a_lease_of_the_dead_keeps_nobody() -> None:
    assert why({**deployed(), "lease": lease("rollback")}, dead={"r1"}) == ""
    assert "at work" in why({**deployed(), "lease": lease()}, dead={"r2"})


def test_what_can_not_be_found_out_is_an_error_unless_the_others_say_enough() -> None:
    silent = {"unreachable": True, "msg": "no route"}
    assert why(deployed(), silent) == ""
    with pytest.raises(HostUnfit, match=r"it went back .* w2: unreachable: no route") as error:
        why(gone_back(), silent)
    assert error.value.details["hosts"] == ["w2"]
    with pytest.raises(HostUnfit, match="no route"):
        why(silent)
    with pytest.raises(HostUnfit, match="gave no answer"):
        why(None)


# -- what is given --------------------------------------------------------------------------------------------------


def test_no_alert() -> None:
    assert alert_of({}) is None


@pytest.mark.parametrize(
    ("at", "seconds"),
    [
        (NOW, NOW),
        ("1795230000.5", NOW + 0.5),
        (1795230000, NOW),
        ("2026-11-21T03:00:00Z", 1795230000.0),
        ("2026-11-21T03:00:00.250000001Z", 1795230000.25),
        ("2026-11-21T05:00:00+02:00", 1795230000.0),
    ],
)
def test_times_as_people_and_alertmanagers_write_them(at: Any, seconds: float) -> None:
    alert = alert_of({"id": "a1", "release": B, "at": at})
    assert alert
    assert alert.at == pytest.approx(seconds, abs=1e-3)


@pytest.mark.parametrize("at", ["yesterday", "nan", "inf", [], {}, "2026-11-21", "2026-11-21T03:00:00"])
def test_what_is_no_time_is_refused(at: Any) -> None:
    with pytest.raises(BadInput):
        alert_of({"id": "a1", "release": B, "at": at})


@pytest.mark.parametrize("without", ["id", "release", "at"])
def test_what_is_missing_is_named(without: str) -> None:
    given = {"id": "a1", "release": B, "at": NOW, without: ""}
    with pytest.raises(BadInput, match=f"lacks {without}"):
        alert_of(given)


def test_the_reason_is_one_line_without_passwords() -> None:
    given = {"id": 7, "release": B, "at": NOW, "reason": "half\nfail at redis://:hush@h/0"}
    alert = alert_of(given)
    assert alert
    assert alert.sentence == "alert 7: half fail at redis://:***@h/0"
    assert Alert("a1", B, NOW, "").sentence == "alert a1"


# -- what is told ---------------------------------------------------------------------------------------------------


def test_the_plan_names_the_alert_and_nothing_is_done_in_silence() -> None:
    alert = Alert("a1", B, NOW, "half fail")
    assert alert_lines("mail", alert, "", ["goes back", "  more"]) == [
        "goes back",
        "  asked for by alert a1: half fail",
        "  more",
    ]
    (line,) = alert_lines("mail", alert, f"it is on {A}", ["unused"])
    assert line == f"Pool mail stays where it is. Alert a1 about {B} changes nothing: it is on {A}."


def test_a_plan_that_stays_moves_no_host() -> None:
    plan = alerts.stay({"w1": {"pool_state": deployed()}, "w2": None})
    assert not plan.needed
    assert (plan.before, plan.settled) == ({"w1": B}, ["w1"])


def test_an_owner_says_for_which_alert_it_was_started() -> None:
    assert describe_owner(lease()["owner"]) == "ana@ops1 (pid 7)"
    assert describe_owner(lease(alert="a1")["owner"]) == "ana@ops1 (pid 7) for alert a1"
