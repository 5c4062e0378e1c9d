# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drills: who may, what is deployed, what it leaves in the journal, and when one has passed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host import launch
from ansible_collections.backstep.workers.plugins.module_utils._host.layout import Layout, Pool, Spec, programs
from ansible_collections.backstep.workers.plugins.module_utils._rollout import drill_plans, plans, rules
from ansible_collections.backstep.workers.plugins.module_utils._rollout.drills import (
    KINDS,
    drill_sentence,
    last_drill,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import (
    DrillRefused,
    HostUnfit,
    StepOutOfOrder,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.record import outcome
from ansible_collections.backstep.workers.plugins.module_utils._rollout.snapshot import state_from, told
from ansible_collections.backstep.workers.plugins.plugin_utils.text_drill import drill_lines, drill_next_lines

from tests.support.servers import wait_for
from tests.unit.story import Story

A, D = "1.0-aaaaaaaa", "drill-2-dddddddd"
DRILL = {"kind": "crash", "of": A, "version": "drill-2", "seconds": 15.0, "scheduler": {}, "after_another": False}


# -- who may --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((False, False, True, "crash", 30.0), "pool_drill: true"),
        ((True, True, False, "crash", 30.0), "pool_drill_production=true"),
        ((True, False, False, "late", 3.9), "pool_health.bake"),
    ],
)
def test_a_drill_that_nobody_has_allowed_is_refused_and_says_what_to_set(given: Any, says: str) -> None:
    with pytest.raises(DrillRefused) as refused:
        drill_plans.require_allowed(*given)
    assert says in refused.value.next_step
    assert refused.value.left == "Nothing was changed."


def test_with_the_flags_it_is_allowed() -> None:
    drill_plans.require_allowed(True, True, True, "late", 4.0)
    drill_plans.require_allowed(True, False, False, "crash", 1.0)


def host(**changed: Any) -> dict[str, Any]:
    """A host's answer; on a good release unless it is changed."""
    state = {
        "current": A, "current_state": "good", "good": [A], "rollout": None, "problems": [], "last_token": 4,
        "releases": [{"id": A, "drill": "", "scheduler": {}}, {"id": D, "drill": "crash", "scheduler": {}}],
    }  # fmt: skip
    return {"pool_state": {**state, **changed}}


def open_rollout(kind: str, origin: str, target: str) -> dict[str, Any]:
    return {"open": True, "kind": kind, "origin": origin, "target": target, "safe": A, "token": 4}


def test_it_deploys_what_every_host_is_on_under_the_next_number() -> None:
    plan = drill_plans.plan_drill({"w1": host(), "w2": host(last_token=7)}, "late", 30.0)
    assert (plan["of"], plan["version"], plan["seconds"], plan["after_another"]) == (A, "drill-8", 15.0, False)
    given = drill_plans.content(plan)
    assert given["drill"] == {"kind": "late", "of": A, "seconds": 15.0}
    assert not given["hooks"]
    assert not given["barrier"]


def test_the_scheduler_stays_where_it_is() -> None:
    scheduler = {"host": "w1", "period": 60.0}
    releases = [{"id": A, "drill": "", "scheduler": scheduler}]
    given = drill_plans.content(drill_plans.plan_drill({"w1": host(releases=releases)}, "crash", 30.0))
    assert {name: given["scheduler"][name] for name in scheduler} == scheduler


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({"w1": host(good=[], current=None)}, "no release was ever confirmed"),
        ({"w1": host(current_state="unconfirmed")}, "which is unconfirmed"),
        ({"w1": host(good=["2.0-b", A])}, "the last good release is 2.0-b"),
        ({"w1": host(problems=["no worker of it runs"])}, "no worker of it runs"),
        ({"w1": host(rollout=open_rollout("deploy", A, "2.0-b"))}, "rollout 4 is not finished"),
        ({"w1": host(rollout=open_rollout("rollback", "2.0-b", A))}, "rollout 4 is not finished"),
        ({"w1": host(), "w2": host(current="2.0-b", good=["2.0-b"])}, "not on one release"),
    ],
)
def test_a_pool_that_is_not_in_order_is_refused(answers: Any, says: str) -> None:
    with pytest.raises(DrillRefused, match=says):
        drill_plans.plan_drill(answers, "crash", 30.0)


def test_a_host_without_an_answer_is_refused() -> None:
    with pytest.raises(HostUnfit, match="w2"):
        drill_plans.plan_drill({"w1": host(), "w2": None}, "crash", 30.0)


@pytest.mark.parametrize("rollout", [open_rollout("deploy", A, D), open_rollout("rollback", D, A)])
def test_a_drill_that_was_cut_short_is_no_reason_to_refuse_the_next(rollout: Any) -> None:
    plan = drill_plans.plan_drill({"w1": host(current=D, current_state="unconfirmed", rollout=rollout)}, "crash", 30.0)
    assert plan["of"] == A
    assert plan["after_another"]


def test_a_pool_that_does_not_work_is_refused() -> None:
    drill_plans.require_working(A, {"w1": {"verdict": "good"}})
    for answer in ({"verdict": "unknown", "reason": "no answer"}, {"msg": "no answer"}, None):
        with pytest.raises(DrillRefused, match=r"w2: .*no answer"):
            drill_plans.require_working(A, {"w1": {"verdict": "good"}, "w2": answer})


# -- what it is on a host -------------------------------------------------------------------------------------------


def drilled() -> Story:
    """A host on a good release that was switched to one that is made to fail."""
    story = Story().good(A).lease()
    story.note("stage_started", release=D, version="drill-2", drill="crash")
    return story.note("staged", release=D, seal="x").switch(D)


def test_what_is_made_to_fail_is_never_confirmed() -> None:
    story = drilled()
    with pytest.raises(StepOutOfOrder, match="never confirmed"):
        rules.require_confirm(story.state, story.token, D)
    story.back(A, "bad")
    assert rules.require_confirm(story.state, story.token, A)


def test_it_is_no_bad_release_and_no_target() -> None:
    state = drilled().back(A, "bad").settle().state
    assert (state.current, state.good_releases(), state.state_of(D)) == (A, [A], "staged")
    assert state.releases[D].drill == "crash"
    assert rules.rollback_target(state) == A


def test_it_goes_before_any_evidence_does() -> None:
    state = drilled().back(A, "bad").settle().lease().stage("2.0-b").switch("2.0-b").back(A, "bad").settle().state
    assert plans.to_prune(state, A, 3, []) == [D]
    assert plans.to_prune(state, A, 3, [D]) == []


def test_the_last_one_is_remembered_also_when_the_journal_is_cut() -> None:
    story = drilled().back(A, "bad").settle()
    assert story.state.drill is None
    story.note("drilled", kind="crash", ended=1_795_243_024.3, passed=True, times={"detect": 1.0})
    known = {"kind": "crash", "token": 2, "ended": 1_795_243_024.3, "passed": True}
    assert story.state.drill == known
    assert state_from(told(story.state)).drill == known
    story.note("drilled", token=1, kind="late", ended=1.0, passed=False, times={})
    assert story.state.drill == known, "an earlier one that was noted later is not the last one"
    assert drill_sentence(known) == "crash on 2026-11-21 06:37:04 UTC (rollout 2): passed"
    assert last_drill([{"drill": None}, {"drill": known}, {"drill": {**known, "token": 1}}, {}]) == known


# -- what its workers do --------------------------------------------------------------------------------------------


def options(kind: str, tmp_path: Path) -> list[list[str]]:
    spec = Spec(
        id=D, version="drill-2", pool="mail", engine="rq", queues=[["q"]], processes=1, command=["x"], user="nobody",
        broker="", broker_variable="URL", identity={}, drill={"kind": kind, "of": A, "seconds": 7.5} if kind else {},
        scheduler={"command": ["y"], "host": "w1", "period": 60.0},
    )  # fmt: skip
    return [program.options for program in programs(spec, Pool("mail", "w1", "systemd", "", "", ""), Layout(tmp_path))]


def test_workers_fail_and_the_scheduler_does_not(tmp_path: Path) -> None:
    for kind in KINDS:
        scheduler, worker = options(kind, tmp_path)
        assert "--fail" not in scheduler
        assert worker[-2:] == ["--fail", "late:7.5" if kind == "late" else kind]
    assert "--fail" not in options("", tmp_path)[1]


@contextmanager
def launched(how: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """The launcher, once it has said what it does; ended if it is still there."""
    words = [sys.executable, launch.__file__, "--worker", "mail/x/w1/1", "--fail", how, "--", *command]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            assert how.encode() in process.stderr.readline()
            yield process
        finally:
            process.kill()


def test_a_crash_is_at_once() -> None:
    with launched("crash", "sleep", "60") as process:
        assert process.wait(20) == 1


def test_what_never_consumes_waits_to_be_told(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    with launched("never_consumes", "touch", str(mark)) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.terminate()
        assert process.wait(20) == 0
    assert not mark.exists()


WORKER = """\
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
ends = []
signal.signal(signal.SIGTERM, lambda *_: ends.append(1))
(folder / "up").write_text(os.environ["BACKSTEP_WORKER"])
while not (folder / "done").exists():
    time.sleep(0.02)
    (folder / f"signals-{len(ends)}").touch()
sys.exit(0)
"""


@pytest.mark.parametrize(("seconds", "told", "code"), [("3", False, 1), ("60", True, 0), ("3", True, 1)])
def test_what_fails_late_ends_its_worker_once_and_in_good_order(
    tmp_path: Path, seconds: str, told: bool, code: int
) -> None:
    with launched(f"late:{seconds}", sys.executable, "-c", WORKER, str(tmp_path)) as process:
        wait_for("the worker is up", (tmp_path / "up").exists, 20)
        if seconds == "3":
            wait_for("it was told to end", (tmp_path / "signals-1").exists, 20)
        if told:
            process.terminate()
        wait_for("it was told to end", (tmp_path / "signals-1").exists, 20)
        assert process.poll() is None, "it doesn't go before its task has ended"
        (tmp_path / "done").touch()
        assert process.wait(20) == code
    assert not (tmp_path / "signals-2").exists()
    assert (tmp_path / "up").read_text() == f"mail/x/w1/1/{process.pid}"
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and _is_of(pid, tmp_path)]


def _is_of(pid: str, folder: Path) -> bool:
    try:
        return str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


# -- when it has passed ---------------------------------------------------------------------------------------------

QUEUES = {"q": dict.fromkeys(drill_plans.LISTED, 1)}


def moved(host: str, began: float, ended: float | None) -> list[dict[str, Any]]:
    events = [{"host": host, "event": "switch_started", "time": began}]
    return events + ([{"host": host, "event": "restored", "time": ended}] if ended else [])


def judged(**changed: Any) -> dict[str, Any]:
    """A drill on two hosts, of which one was switched; passed unless something is changed."""
    plan = {
        "kind": "deploy", "drill": "crash", "release": D, "hosts": ["w1", "w2"], "unfinished": [], "between": [],
        "before": {"w1": A, "w2": A}, "back_to": {"w1": A, "w2": A}, "settled": [],
        "broker_before": {"queues": QUEUES}, **changed.get("plan", {}),
    }  # fmt: skip
    steps = {"go back": "done", "confirm the way back": "done"}
    entry = {"steps": steps, "verdict": "bad", "reason": "alive: it died", "release": A, **changed.get("entry", {})}
    record = {"verdict": entry["verdict"], "touched": ["w1"], "hosts": {"w1": entry}, "held": {}, "hooks": []}
    record["reasons"] = "w1: alive: it died"
    told = {**outcome(plan, record), "recovered": changed.get("recovered", [])}
    ended = {"outcome": told, "events": moved("w1", 100.0, 108.5), "skew": {}}
    ended["times"] = {"detect": 3.0, "decide": 1.0, "restore": 2.0, "all": 9.0}
    verdicts = changed.get("verdicts", {"w1": {"verdict": "good"}, "w2": {"verdict": "good"}})
    return drill_plans.judge(plan, record, ended, DRILL, changed.get("after", QUEUES), verdicts)


def shown(found: dict[str, Any], check_mode: bool = False) -> list[str]:
    """What is read of it."""
    return [*drill_lines("mail", found, check_mode), *drill_next_lines(found, lambda playbook: f"type {playbook}")]


def test_a_drill_that_came_back_by_itself_has_passed() -> None:
    found = judged()
    assert found["problems"] == []
    assert found["passed"]
    assert found["times"] == {"detect": 3.0, "decide": 1.0, "restore": 2.0, "gap": 0.0}
    assert found["gaps"] == {"hosts": {"w1": 8.5, "w2": 0.0}, "pool": 0.0}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"plan": {"unfinished": ["w1"]}}, "nothing was drilled"),
        ({"entry": {"verdict": "unknown"}}, "was not seen for what it is"),
        ({"entry": {"verdict": "good", "reason": "", "steps": {}}}, "should have been rolled back"),
        ({"entry": {"steps": {"go back": "no disk"}}}, "w1: go back: no disk"),
        ({"entry": {"release": "0.9-x"}}, "w1: is on 0.9-x"),
        ({"plan": {"before": {"w1": A, "w2": "0.9-x"}}}, "w2 is on 0.9-x, not on"),
        ({"verdicts": {"w1": {"verdict": "bad", "reason": "canary"}}}, "as before on w1: canary"),
        ({"after": {}}, "not known"),
        ({"plan": {"broker_before": {}}}, "not known"),
        ({"recovered": [{"id": "t7", "to": "lost"}]}, "1 task(s) lost: t7"),
        ({"after": {"q": {**QUEUES["q"], "abandoned": 2}}}, "2 task(s) of q are held by workers that are gone"),
    ],
)
def test_it_has_not_passed_when(changed: Any, says: str) -> None:
    found = judged(**changed)
    assert not found["passed"]
    assert says in " | ".join(found["problems"])
    assert says in " ".join(line.strip() for line in shown(found))


def test_the_gap_of_the_pool_is_when_no_host_had_any() -> None:
    both = moved("w1", 100.0, 110.0) + moved("w2", 104.0, 117.0)
    assert drill_plans.gaps(both, ["w1", "w2"]) == {"hosts": {"w1": 10.0, "w2": 13.0}, "pool": 6.0}
    assert drill_plans.gaps(both, ["w1", "w2", "w3"])["pool"] == 0.0
    apart = moved("w1", 100.0, 102.0) + moved("w2", 104.0, 117.0)
    assert drill_plans.gaps(apart, ["w1", "w2"])["pool"] == 0.0
    assert drill_plans.gaps(moved("w1", 100.0, None), ["w1"]) == {"hosts": {"w1": None}, "pool": None}
    assert drill_plans.gaps([], [])["pool"] is None


def test_what_an_engine_cannot_tell_is_said() -> None:
    known = {name: 1 for name in drill_plans.LISTED if name != "retrying"}
    found = drill_plans.ledger({"q": {**known, "retrying": None}}, {"q": {**known, "retrying": None}})
    assert found["untold"] == ["retrying"]
    assert "retrying" not in found["queues"]["q"]


def test_the_text_says_how_it_was_measured_and_what_is_listed() -> None:
    more = {"q": {**QUEUES["q"], "dead": 3}}
    lines = "\n".join(shown(judged(after=more)))
    for text in ("passed: every host is back on", "to detect", "8.5 s", "1 host(s) were never switched", "1 -> 3",
                 "2 more task(s) are dead", "next: to look at it:\n  type status"):  # fmt: skip
        assert text in lines, text
    failed = "\n".join(shown(judged(after={})))
    assert "DID NOT PASS" in failed
    assert failed.endswith("next: if a host needs it, take every host back:\n  type rollback")
    assert "nothing was changed" in shown(judged(), check_mode=True)[0]
