# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is measured of a pool, and how it is written; that alerts and dashboard speak of nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from ansible_collections.backstep.workers.plugins.module_utils._rollout.metrics import Metric, render, sample
from ansible_collections.backstep.workers.plugins.module_utils._rollout.pool_metrics import (
    HOST_METRICS,
    POOL_METRICS,
    host_samples,
    pool_samples,
)

from tools.common import CHECKOUT

OBSERVE = CHECKOUT / "extensions" / "observe"
NAMES = {metric.name for metric in (*HOST_METRICS, *POOL_METRICS)}
WORDS = re.compile(r"\bbackstep_\w+")

NAMED = Metric("x_seconds", "What it\nmeans, \\ and all.")


def state(**changed: Any) -> dict[str, Any]:
    """What a host with a good release tells, everything about it known."""
    told: dict[str, Any] = {
        "pool": "mail", "host": "w1", "supervisor": "systemd", "current": "2.0-b", "current_state": "good",
        "since": 60.0, "running": {"2.0-b": 4}, "draining": [{"release": "1.0-a", "since": 50.5}], "problems": [],
        "releases": [{"id": "1.0-a", "version": "1.0", "state": "good"},
                     {"id": "2.0-b", "version": "2.0", "state": "good"}],
        "rollout": {"token": 7, "kind": "deploy", "phase": "confirmed", "open": False, "started": 40.0},
        "guard_armed": False, "guard_seconds_left": None, "lease": None, "last_token": 7, "clock": 100.0,
        "last_events": {"confirmed": 60.0}, "rollback": {"target": "1.0-a", "problem": ""}, "scheduler": None,
    }  # fmt: skip
    return {**told, **changed}


def lines_of(found: list[Any]) -> list[str]:
    return [line for line in render(found).splitlines() if not line.startswith("#")]


def host_lines(**changed: Any) -> list[str]:
    return lines_of(host_samples(state(**changed), 100.0))


BROKER: dict[str, Any] = {
    "queues": {"mail": {"waiting": 3, "scheduled": None, "executing": 0, "dead": 5, "parked": 2, "workers": 4,
                        "oldest_waiting_seconds": 1.25}},
    "dead": [{"queue": "mail", "release": "2.0-b", "count": 3}, {"queue": "mail", "release": "2.0-b", "count": 1},
             {"queue": "mail", "release": None, "count": 1}],
    "parked_by": ["gate x", "mail/2.0-b/w1/1/41", "mail/2.0-b/w1/2/42"],
    "paused": {"paused": True, "by_person": True},
    "gates": {"mail.send": {"open": 10.0, "retired": False}, "mail.old": {"open": 100.0, "retired": True}},
    "routes": {"mail": {"until": 90.0, "share": 50.0, "version": "2.0"},
               "news": {"until": 110.0, "share": 50.0, "version": "2.0"}},
    "effects": [{"unit": {"pool": "mail"}}, {"unit": {"pool": "other"}}],
    "server": {"time": 100.0},
}  # fmt: skip


def pool_lines(broker: dict[str, Any]) -> list[str]:
    silent = {"unreachable": True, "msg": "no route"}
    return lines_of(pool_samples("mail", {"w1": {"pool_state": state()}, "w2": silent}, broker, 2, 100.0))


def test_text_is_as_prometheus_reads_it() -> None:
    odd = sample(NAMED, 1.5, pool='a"b\\c\nd', empty="", none=None) + sample(NAMED, True, pool="b")
    assert render(odd) == (
        "# HELP x_seconds What it\\nmeans, \\\\ and all.\n# TYPE x_seconds gauge\n"
        'x_seconds{pool="a\\"b\\\\c\\nd"} 1.500\nx_seconds{pool="b"} 1\n'
    )
    assert render(sample(NAMED, None, pool="a")) == "", "what isn't known is no sample"


def test_a_metric_s_samples_stand_together_whatever_their_order() -> None:
    other = Metric("y", "Another.")
    text = render(sample(NAMED, 1, pool="a") + sample(other, 1, pool="a") + sample(NAMED, 2, pool="b"))
    assert [line.split("{")[0] for line in text.splitlines() if line[0] != "#"] == ["x_seconds", "x_seconds", "y"]
    assert text.count("# TYPE x_seconds") == 1


def test_a_host_tells_of_itself() -> None:
    found = host_lines()
    for line in (
        'backstep_host_updated_timestamp_seconds{host="w1",pool="mail"} 100',
        'backstep_release_info{host="w1",pool="mail",release="2.0-b",state="good",version="2.0"} 1',
        'backstep_worker_processes{host="w1",pool="mail",release="2.0-b"} 4',
        'backstep_releases{host="w1",pool="mail",state="good"} 2',
        'backstep_draining_since_timestamp_seconds{host="w1",pool="mail",release="1.0-a"} 50.500',
        'backstep_rollouts_total{host="w1",pool="mail"} 7',
        'backstep_rollout_info{host="w1",kind="deploy",phase="confirmed",pool="mail"} 1',
        'backstep_last_event_timestamp_seconds{event="confirmed",host="w1",pool="mail"} 60',
        'backstep_way_back{host="w1",pool="mail"} 1',
        'backstep_stuck{host="w1",pool="mail"} 0',
    ):
        assert line in found
    assert not [line for line in found if re.search("guard_due|_lease|scheduler|drill", line)], (
        "nothing of that is known"
    )


def test_no_worker_that_runs_is_seen_as_none_and_an_empty_host_has_no_release() -> None:
    assert 'backstep_worker_processes{host="w1",pool="mail",release="2.0-b"} 0' in host_lines(running={})
    nothing: dict[str, Any] = {"running": {}, "last_events": {}, "releases": [], "draining": []}
    empty = host_lines(current=None, current_state=None, since=None, rollout=None, **nothing)
    assert not [line for line in empty if re.search("release|processes|rollout_info|started|last_event", line)]
    assert 'backstep_rollout_open{host="w1",pool="mail"} 0' in empty
    problem = {"target": None, "problem": "There is no good release to go back to."}
    assert 'backstep_way_back{host="w1",pool="mail"} 0' in host_lines(rollback=problem)


def test_an_open_rollout_tells_when_its_guard_is_due_and_who_holds_the_lease() -> None:
    rollout = {"token": 8, "kind": "rollback", "phase": "stuck", "open": True, "started": 90.0}
    lease = {"kind": "deploy", "released": False, "expires_in": 30.0}
    found = host_lines(rollout=rollout, guard_armed=True, guard_seconds_left=-20.0, lease=lease)
    for line in (
        'backstep_guard_due_timestamp_seconds{host="w1",pool="mail"} 80',
        'backstep_guard_armed{host="w1",pool="mail"} 1',
        'backstep_stuck{host="w1",pool="mail"} 1',
        'backstep_rollout_open{host="w1",pool="mail"} 1',
        'backstep_lease_expires_timestamp_seconds{host="w1",kind="deploy",pool="mail"} 130',
    ):
        assert line in found
    assert not [line for line in host_lines(lease={**lease, "released": True}) if "_lease" in line]


def test_a_scheduler_and_a_drill_are_told_where_there_are_any() -> None:
    found = host_lines(scheduler={"release": None}, drill={"kind": "crash", "token": 6, "ended": 30.0, "passed": False})
    assert 'backstep_scheduler_running{host="w1",pool="mail"} 0' in found
    assert 'backstep_drill_timestamp_seconds{host="w1",kind="crash",pool="mail"} 30' in found
    assert 'backstep_drill_passed{host="w1",kind="crash",pool="mail"} 0' in found


def test_the_pool_tells_of_queues_and_what_is_not_known_is_no_sample() -> None:
    found = pool_lines(BROKER)
    for line in (
        'backstep_pool_updated_timestamp_seconds{pool="mail"} 100',
        'backstep_needs_a_person{pool="mail"} 2',
        'backstep_host_up{host="w1",pool="mail"} 1',
        'backstep_host_up{host="w2",pool="mail"} 0',
        'backstep_tasks{pool="mail",queue="mail",state="waiting"} 3',
        'backstep_tasks{pool="mail",queue="mail",state="executing"} 0',
        'backstep_oldest_task_age_seconds{pool="mail",queue="mail"} 1.250',
        'backstep_dead_tasks{pool="mail",queue="mail",release="2.0-b"} 4',
        'backstep_dead_tasks{pool="mail",queue="mail"} 1',
        'backstep_parked_by_info{by="gate x",pool="mail"} 1',
        'backstep_paused{by="person",pool="mail"} 1',
        'backstep_gate_open_ratio{pool="mail",task="mail.send"} 0.100',
        'backstep_gate_open_ratio{pool="mail",retired="true",task="mail.old"} 0',
        'backstep_route_share_ratio{pool="mail",queue="news",version="2.0"} 0.500',
        'backstep_effects_open{pool="mail"} 1',
    ):
        assert line in found
    unknown = r'state="(scheduled|retrying)"|host="w2".*info|queue="mail",version'
    assert not [line for line in found if re.search(unknown, line)]
    workers = [line for line in found if 'by="worker"' in line]
    assert workers == ['backstep_parked_by_info{by="worker",pool="mail",release="2.0-b"} 1'], "no label for each start"


def test_a_broker_that_is_silent_has_no_queues_rather_than_empty_ones() -> None:
    found = pool_lines({"failed": True, "msg": "refused"})
    assert 'backstep_broker_up{pool="mail"} 0' in found
    assert not [line for line in found if re.search("tasks|queue|paused|gate|effects", line)]
    assert 'backstep_host_up{host="w1",pool="mail"} 1' in found


def every_sample() -> list[Any]:
    rollout = {"token": 8, "kind": "deploy", "phase": "switched", "open": True, "started": 90.0}
    lease = {"kind": "deploy", "released": False, "expires_in": 30.0}
    drill = {"kind": "crash", "token": 6, "ended": 30.0, "passed": True}
    full = state(rollout=rollout, guard_seconds_left=5.0, lease=lease, drill=drill, scheduler={"release": None})
    return pool_samples("mail", {"w1": {"pool_state": full}}, BROKER, 0, 100.0)


def test_every_metric_that_is_listed_is_written_and_the_other_way_round() -> None:
    assert {each.metric.name for each in every_sample()} == NAMES
    assert len(NAMES) == len(HOST_METRICS) + len(POOL_METRICS)


def test_alerts_and_dashboard_use_every_metric_and_no_other() -> None:
    alerts = yaml.safe_load((OBSERVE / "alerts.yml").read_text(encoding="utf-8"))
    used = {name for group in alerts["groups"] for rule in group["rules"] for name in WORDS.findall(rule["expr"])}
    dashboard = json.loads((OBSERVE / "dashboard.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [each["expr"] for each in dashboard["annotations"]["list"]]
    asked += [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    shown = {name for expression in asked for name in WORDS.findall(expression)}
    assert used | shown == NAMES
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@pytest.mark.parametrize("metric", [*HOST_METRICS, *POOL_METRICS], ids=lambda metric: metric.name)
def test_names_are_as_prometheus_wants_them(metric: Metric) -> None:
    assert re.fullmatch(r"backstep_[a-z_]+", metric.name)
    assert (metric.kind == "counter") == metric.name.endswith("_total")
    assert metric.name.endswith(("_info", "_seconds", "_ratio")) or not re.search("time|age|share", metric.name)
