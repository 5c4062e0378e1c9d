# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tasks a gate lets pass, and what may become of a gate."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._gate_args import wished
from ansible_collections.backstep.workers.plugins.module_utils._queue.books import digest
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import (
    BadInput,
    BrokerRefused,
    GateRefused,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.gates import (
    CLOSED,
    KEEP,
    Gate,
    closed_by_rollback,
    parse,
    passes,
    require_unretired,
)
from hypothesis import given
from hypothesis import strategies as st

from tools.common import CHECKOUT

REPORTER = CHECKOUT / "roles" / "pool" / "files" / "reporters" / "backstep_gates.py"
SHARES = st.floats(0, 100).map(lambda share: round(share, 2))


def in_workers() -> Any:
    """The file that workers load."""
    spec = importlib.util.spec_from_file_location("backstep_gates", REPORTER)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WORKERS = in_workers()


def gate(share: float, **more: Any) -> Gate:
    return Gate("mail.send", share, "ana", 1000.0, **more)


@given(SHARES, SHARES, st.text())
def test_what_passes_at_a_share_passes_at_any_greater_one(one: float, other: float, known: str) -> None:
    less, more = sorted([one, other])
    assert passes(gate(more), known) or not passes(gate(less), known)
    assert passes(gate(100.0), known)
    assert not passes(gate(CLOSED), known)


@given(SHARES, st.text())
def test_workers_decide_as_the_tool_does(share: float, known: str) -> None:
    assert WORKERS.holds(gate(share).line, known) != passes(gate(share), known)
    assert WORKERS.holds(gate(share).line.encode(), known) != passes(gate(share), known)


def test_about_the_share_passes() -> None:
    assert 2300 < sum(passes(gate(25.0), f"task-{number}") for number in range(10_000)) < 2700


def test_workers_know_the_state_of_a_book_by_the_same_digest() -> None:
    book = WORKERS.Book()
    assert book.digest == digest({})
    book.read([b'{"a": "1", "b": "ye\\u00e4s"}', b'{"b": null, "c": "2"}', b'{"a": "3"}'])
    assert book.digest == digest({"c": "2", "a": "3"})
    assert (book.line("a"), book.line("b")) == ("3", None)


def test_a_gate_is_read_as_it_was_written_and_nothing_else_is() -> None:
    some = gate(12.5, reason="new", on_rollback=KEEP, retired=True)
    assert parse({"mail.send": some.line}) == {"mail.send": some}
    for line in ("no json", "[]", '{"open": 1}', json.dumps({**json.loads(some.line), "later": 1})):
        with pytest.raises(BrokerRefused):
            parse({"mail.send": line})


def test_a_rollback_closes_what_is_open_and_not_to_be_kept() -> None:
    gates = {
        "a": gate(100.0), "b": gate(5.0, on_rollback=KEEP), "c": gate(CLOSED), "d": gate(CLOSED, retired=True)
    }  # fmt: skip
    (closed,) = closed_by_rollback(gates, "rollout 12", 2000.0, "why")
    assert (closed.open, closed.by, closed.at, closed.reason, closed.on_rollback) == (
        0.0, "rollout 12", 2000.0, "why", "close"
    )  # fmt: skip


def ask(operation: str, gates: dict[str, Gate], **more: Any) -> dict[str, Gate | None]:
    params = {"task": "mail.send", "open": None, "owner": "ben", "reason": "", "on_rollback": "close", **more}
    return wished({**params, "operation": operation}, gates, 2000.0)


def test_what_is_asked_for_becomes_a_gate() -> None:
    assert ask("set", {}, open=10.0)["mail.send"] == Gate("mail.send", 10.0, "ben", 2000.0)
    # The same again is no other gate, whoever asks.
    same = {"mail.send": gate(10.0)}
    assert ask("set", same, open=10.0) == same
    assert ask("remove", same) == {"mail.send": None}
    assert ask("close", {"x": Gate("x", 3.0, "ana", 0.0)})["x"] == Gate("x", 0.0, "ben", 2000.0)
    for share in (-0.1, 100.1, float("nan")):
        with pytest.raises(BadInput):
            ask("set", {}, open=share)


def test_a_retired_name_is_not_used_again_until_that_was_a_mistake() -> None:
    retired = ask("retire", {"mail.send": gate(100.0)})
    assert retired["mail.send"] is not None
    assert (retired["mail.send"].open, retired["mail.send"].retired) == (0.0, True)
    known = {task: found for task, found in retired.items() if found}
    for operation in ("set", "remove"):
        with pytest.raises(GateRefused, match="was retired by ben"):
            ask(operation, known, open=1.0)
    assert ask("retire", known) == known
    back = ask("reinstate", known)["mail.send"]
    assert back
    assert (back.open, back.retired) == (0.0, False)
    with pytest.raises(BadInput):
        ask("reinstate", {})
    with pytest.raises(GateRefused, match="reinstate"):
        require_unretired("2-aa", {"mail.send"})
    require_unretired("2-aa", ())
