# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of tasks that have died, and what is said of them."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import DeadTask
from ansible_collections.backstep.workers.plugins.module_utils._queue.triage import (
    Wanted,
    expiring,
    groups,
    kind_of,
    select,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.dying import by_rule, require_dead
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput
from ansible_collections.backstep.workers.plugins.plugin_utils.text_dead import chosen_lines, dead_lines


def dead(known: str, **more: Any) -> DeadTask:
    facts: dict[str, Any] = {
        "task": "mail.send",
        "queue": "mail",
        "enqueued": 90.0,
        "died": 100.0,
        "mark": "1",
        "error": "KeyError: 'secret'",
        "worker": "mail/2.0-b/w1/1/77",
        "expires": None,
    }
    return DeadTask(id=known, **{**facts, **more})


def test_the_first_rule_that_fits_counts_and_the_unknown_is_held() -> None:
    rules = [{"tasks": ["mail.s*"], "then": "reschedule"}, {"tasks": ["mail.*"], "then": "hold"}]
    names = ["mail.send", "mail.sort", "mail.bill", "other", None]
    assert by_rule(names, rules, {"mail.sort", "other"}) == {
        "reschedule": ["mail.send"], "hold": ["mail.bill", "mail.sort"], "fail": ["other"]
    }  # fmt: skip
    assert by_rule(["a"], [{"then": "hold"}], ()) == {"reschedule": [], "hold": ["a"], "fail": []}
    assert by_rule(["a"], [], ()) == {"reschedule": [], "hold": [], "fail": ["a"]}


def test_rules_need_an_engine_that_keeps_dead_tasks() -> None:
    require_dead([], {"mail": {"dead": None}})
    require_dead([{"then": "hold"}], {"mail": {"dead": 0}, "later": {"dead": None}})
    with pytest.raises(BadInput, match="keeps no dead tasks"):
        require_dead([{"then": "hold"}], {"mail": {"dead": None}})


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        (Wanted(), ["b", "a"]),
        (Wanted(ids={"a"}), ["a"]),
        (Wanted(tasks={"mail.bill"}), ["b"]),
        (Wanted(releases={"2.0-b"}), ["a"]),
        (Wanted(error="Key"), ["a"]),
        (Wanted(died_after=60.0), ["a"]),
        (Wanted(died_before=60.0), ["b"]),
        (Wanted(enqueued_after=80.0), ["a"]),
    ],
)
def test_what_is_meant(wanted: Wanted, ids: list[str]) -> None:
    older = dead("b", task="mail.bill", worker=None, error="", died=50.0, enqueued=None)
    assert [task.id for task in select([dead("a"), older], wanted)] == ids
    assert [task.id for task in select([dead("a"), older], wanted, 1)] == ids[:1]


def test_of_an_error_only_its_kind_is_told() -> None:
    told = groups([dead("a", expires=500.0), dead("b", died=130.0, expires=400.0), dead("c", worker="somebody")])
    assert told == [
        {"queue": "mail", "task": "mail.send", "error": "KeyError", "release": "2.0-b", "count": 2, "first": 100.0,
         "last": 130.0, "expires": 400.0},
        {"queue": "mail", "task": "mail.send", "error": "KeyError", "release": None, "count": 1, "first": 100.0,
         "last": 100.0, "expires": None},
    ]  # fmt: skip
    assert [kind_of(line) for line in ("app.errors.Odd", "no colon here", "App::Odd: x", "")] == [
        "app.errors.Odd", "", "App::Odd", ""
    ]  # fmt: skip


def test_it_is_said_when_an_engine_drops_them() -> None:
    some = [dead("a", expires=1000.0), dead("b", expires=2000.0), dead("c")]
    assert expiring(some, 1500.0).startswith("1 dead task(s) are dropped by their engine soon, the first at 1970-01-01")
    assert expiring(some, 900.0) == ""


def test_the_end_of_a_rollout_tells_what_died_and_what_was_done() -> None:
    group = {"queue": "mail", "task": "mail.send", "error": "KeyError", "release": None, "count": 3, "expires": 5.0}
    died = {"dead": [group, {**group, "task": None, "error": "", "count": 1, "release": "2-b"}], "run": "r1"}
    put_back = {"moved": {"count": 2}}
    stopped = {"failed": True, "msg": "1 task(s) failed again."}
    since = "2026-11-21T03:00:00Z"
    lines = dead_lines({"died": died, "held": put_back, "rescheduled": stopped, "since": since})
    assert lines[0].startswith("  4 task(s) died in this rollout: mail.send (3 in mail, KeyError); without a name (1")
    assert lines[1] == "  2 of them were parked (rule 'hold')"
    assert lines[2].endswith("could not be put back, or not all: 1 task(s) failed again.")
    assert lines[3] == "  their engine drops dead tasks: the first of these on 1970-01-01 00:00:05 UTC"
    assert f'died_after: "{since}"' in lines[4]
    assert dead_lines({"died": {"dead": []}}) == dead_lines({"died": {"skipped": True}}) == dead_lines({}) == []
    assert "nobody has looked" in dead_lines({"died": {"failed": True, "msg": "no answer"}})[0]
    assert chosen_lines({"dead": [], "run": "r1"}) == ["No dead task is meant, or this run has put all of them back."]
    assert chosen_lines(died)[-1].endswith("the same with run: r1 goes on with it")
