# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How what a rollout has done to the queues ends, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._rollout.effects import (
    KEPT,
    OPEN,
    PARK,
    UNDONE,
    Effect,
    Unit,
    fate,
    parse,
    stands,
    unit_of,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput, BrokerRefused
from ansible_collections.backstep.workers.plugins.plugin_utils.text_queues import effect_lines, gate_lines

DEPLOY = Unit("mail", 12, leaves=("1-a",), leads_to=("2-b",))
BACK = Unit("mail", 12, leaves=("2-b",), leads_to=("1-a",))


@pytest.mark.parametrize(
    ("unit", "where", "expected"),
    [
        (DEPLOY, ["2-b", "2-b"], KEPT),
        (DEPLOY, ["1-a", "1-a"], UNDONE),
        (BACK, ["1-a", "1-a"], KEPT),
        (BACK, ["2-b", "2-b"], UNDONE),
        (BACK, ["2-b", "1-a"], OPEN),
        (BACK, ["2-b", None], OPEN),
        (BACK, [], OPEN),
        # The pool has left both: nothing of it is to be undone any more.
        (BACK, ["3-c"], KEPT),
        (Unit("mail", 1, leaves=("",), leads_to=("1-a",)), [""], UNDONE),
        # Deployed anew where it was: it led where it began.
        (Unit("mail", 3, leaves=("1-a",), leads_to=("1-a",)), ["1-a"], KEPT),
    ],
)
def test_where_the_pool_stands_decides(unit: Unit, where: list[str | None], expected: str) -> None:
    assert fate(unit, {f"w{number}": place for number, place in enumerate(where)}) == expected


def test_a_host_in_the_midst_of_a_rollout_is_nowhere() -> None:
    def answer(current: str | None, is_open: bool | None) -> dict[str, Any]:
        rollout = None if is_open is None else {"open": is_open}
        return {"pool_state": {"current": current, "rollout": rollout}}

    assert stands(
        {
            "a": answer("1-a", None), "b": answer("1-a", False), "c": answer("2-b", True), "d": answer(None, None),
            "e": None, "f": {"unreachable": True, "msg": "gone"}, "g": {"failed": True, "msg": "no"},
        }
    ) == {"a": "1-a", "b": "1-a", "c": None, "d": "", "e": None, "f": None, "g": None}  # fmt: skip


def test_an_effect_is_read_as_it_was_written_and_nothing_else_is() -> None:
    some = [Effect(BACK, PARK, name, {"tasks": [name]}, at) for name, at in (("a", 1.0), ("b", 2.0))]
    assert parse({effect.key: effect.line for effect in some}) == some[::-1]
    assert len({effect.key for effect in [*some, Effect(DEPLOY, PARK, "a", {}, 1.0)]}) == 3
    for line in ("no json", "[]", "{}", some[0].line.replace('"leads_to"', '"later"')):
        with pytest.raises(BrokerRefused):
            parse({"x": line})
    assert unit_of({"pool": "mail", "rollout": "3", "leaves": [None], "leads_to": ["1-a"]}).leaves == ("",)
    for told in ({}, {"pool": "mail", "rollout": "x", "leaves": [], "leads_to": []}, {"pool": "mail", "rollout": 1}):
        with pytest.raises(BadInput):
            unit_of(told)


def test_what_was_undone_or_could_not_be_is_said() -> None:
    one = {"rollout": 12, "kind": "park", "what": "mail.send", "said": "5 task(s) put back"}
    lines = effect_lines({"ended": {"ended": [{**one, "fate": fate} for fate in (KEPT, UNDONE, OPEN)]}})
    assert lines == [
        "  rollout 12: tasks parked (mail.send); undone, as the pool is where that began: 5 task(s) put back",
        "  ! rollout 12: tasks parked (mail.send); the hosts differ, so it stays noted until they don't",
    ]
    gates = {"gates": {}, "actions": [{"action": "gate", "task": "a"}, {"action": "replay", "queue": "q"}]}
    assert effect_lines({"closed": gates}) == ["  gates were closed first: a; next: open them with task_gate"]
    failed = {"failed": True, "msg": "no broker"}
    assert [line.rpartition(":")[2] for line in effect_lines({"closed": failed, "ended": failed})] == [" no broker"] * 2
    assert effect_lines({"closed": {"skipped": True}, "ended": {}}) == []


def test_status_says_which_gates_there_are_and_what_was_not_ended() -> None:
    told = {"open": 12.5, "by": "ana", "at": 0.0, "reason": "new", "retired": False}
    effect = {"unit": {"pool": "mail", "rollout": 3}, "kind": "gate", "what": "a", "at": 0.0}
    assert gate_lines({"gates": {"a": told, "b": {**told, "retired": True, "reason": ""}}, "effects": [effect]}) == [
        "  gate: a lets 12.5 % pass, set by ana at - (new)",
        "  gate: b is retired, set by ana at -",
        "  ! rollout 3 of mail was not ended: gate of a set at -",
        "  next: a deploy or a rollback of that pool keeps or undoes it",
    ]
    assert gate_lines({}) == []
