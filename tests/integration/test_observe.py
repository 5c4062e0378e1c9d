# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The metrics as real tools read them: promtool checks them and the alerts, node exporter serves them."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.demo.playbooks import play
from tests.demo.stand import a_stand
from tests.integration.local_pool import LocalPool
from tests.integration.test_left_out import cut_off
from tests.support.servers import free_port, wait_for
from tools.common import CHECKOUT

ALERTS = CHECKOUT / "extensions" / "observe" / "alerts.yml"
_SECONDS = 30.0

HOST, QUEUE = 'pool="p",host="h"', 'pool="p",queue="q"'
UP = {f"backstep_queue_workers{{{QUEUE}}}": "2x3000"}
OPEN = {f"backstep_rollout_open{{{HOST}}}": "1x3000"}
PAUSED = {'backstep_paused{pool="p",by="person"}': "1x3000"}
Series = dict[str, str]


def tasks(state: str, values: str) -> Series:
    return {f'backstep_tasks{{{QUEUE},state="{state}"}}': values}


def host(name: str, values: str) -> Series:
    return {f"backstep_{name}{{{HOST}}}": values}


def pool(name: str, values: str) -> Series:
    return {f'backstep_{name}{{pool="p"}}': values}


TWO = {
    'backstep_release_info{pool="p",host="h",release="a"}': "1x3000",
    'backstep_release_info{pool="p",host="i",release="b"}': "1x3000",
}
ONE = {
    'backstep_release_info{pool="p",host="h",release="a"}': "1x3000",
    'backstep_release_info{pool="p",host="i",release="a"}': "1x3000",
}
STOOD = {**tasks("waiting", "5x3000"), **tasks("executing", "0x3000")}
WORKED = {**tasks("waiting", "5x3000"), **tasks("executing", "0 1 0 1x3000")}
# For each alert: when it fires, what of, and what is close to it and raises none. Times count from 1970.
CASES: list[tuple[str, str, Series, list[Series]]] = [
    ("BackstepStuck", "2m", host("stuck", "1x3000"), [host("stuck", "0x3000")]),
    ("BackstepNoWorkers", "3m", host("worker_processes", "0x3000"), [host("worker_processes", "1x3000")]),
    ("BackstepNobodyListens", "6m", {**tasks("waiting", "1x3000"), f"backstep_queue_workers{{{QUEUE}}}": "0x3000"},
     [{**tasks("waiting", "1x3000"), **UP}, tasks("waiting", "1x3000")]),
    ("BackstepQueueStuck", "40m", {**STOOD, **UP},
     [{**WORKED, **UP}, {**STOOD, **UP, **PAUSED}, {**tasks("waiting", "5x3000"), **UP}]),
    ("BackstepQueueOld", "6m", {f"backstep_oldest_task_age_seconds{{{QUEUE}}}": "901x3000", **UP},
     [{f"backstep_oldest_task_age_seconds{{{QUEUE}}}": "899x3000", **UP},
      {f"backstep_oldest_task_age_seconds{{{QUEUE}}}": "901x3000", **UP, **PAUSED}]),
    ("BackstepGuardAboutToFire", "10m",
     {**host("guard_due_timestamp_seconds", "700x3000"), **host("guard_armed", "1x3000")},
     [{**host("guard_due_timestamp_seconds", "800x3000"), **host("guard_armed", "1x3000")},
      {**host("guard_due_timestamp_seconds", "700x3000"), **host("guard_armed", "0x3000")}]),
    ("BackstepGuardFired", "10m", {f'backstep_last_event_timestamp_seconds{{{HOST},event="guard_fired"}}': "500x3000"},
     [{f'backstep_last_event_timestamp_seconds{{{HOST},event="confirmed"}}': "500x3000"},
      {f'backstep_last_event_timestamp_seconds{{{HOST},event="guard_fired"}}': "-3100x3000"}]),
    ("BackstepMixed", "16m", TWO, [ONE, {**TWO, **OPEN}]),
    ("BackstepNeedsAPerson", "31m", pool("needs_a_person", "1x3000"), [pool("needs_a_person", "0x3000")]),
    ("BackstepHostProblem", "31m", host("problems", "1x3000"), [host("problems", "0x3000")]),
    ("BackstepRolloutOpen", "3h", OPEN, [host("rollout_open", "1x100 0x100")]),
    ("BackstepDeadGrowing", "40m", tasks("dead", "5x30 16x3000"),
     [tasks("dead", "5x30 15x3000"), tasks("dead", "90x3000")]),
    ("BackstepPausedTooLong", "61m", PAUSED, [pool("paused", "0x3000")]),
    ("BackstepParkedLeft", "25h", tasks("parked", "1x3000"),
     [tasks("parked", "0x3000"), tasks("parked", "1x1000 0x3000")]),
    ("BackstepEffectsOpen", "61m", pool("effects_open", "1x3000"),
     [pool("effects_open", "0x3000"), {**pool("effects_open", "1x3000"), **OPEN}]),
    ("BackstepDrainsLong", "7h", {f'backstep_draining_since_timestamp_seconds{{{HOST},release="a"}}': "3000x3000"},
     [{f'backstep_draining_since_timestamp_seconds{{{HOST},release="a"}}': "4000x3000"}]),
    ("BackstepHostSilent", "6m", host("host_up", "0x3000"), [host("host_up", "1x3000")]),
    ("BackstepBrokerSilent", "6m", pool("broker_up", "0x3000"), [pool("broker_up", "1x3000")]),
    ("BackstepHostMetricsStale", "25m", host("host_updated_timestamp_seconds", "60x3000"),
     [host("host_updated_timestamp_seconds", "0+60x3000")]),
    ("BackstepPoolMetricsStale", "25m", pool("pool_updated_timestamp_seconds", "60x3000"),
     [pool("pool_updated_timestamp_seconds", "0+60x3000")]),
    ("BackstepNoMetrics", "20m", {}, [pool("pool_updated_timestamp_seconds", "60x3000")]),
    ("BackstepDrillFailed", "1m", pool("drill_passed", "0x3000"), [pool("drill_passed", "1x3000")]),
    ("BackstepDrillOld", "2h", pool("drill_timestamp_seconds", "-7770000x3000"),
     [pool("drill_timestamp_seconds", "-7700000x3000")]),
]  # fmt: skip


def promtool(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = ["promtool", *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=_SECONDS, check=False)


def require_good(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


def test_the_alerts_are_rules_and_each_has_a_case() -> None:
    require_good(promtool("check", "rules", str(ALERTS)))
    rules = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"][0]["rules"]
    assert {rule["alert"] for rule in rules} - {case[0] for case in CASES} == set()
    assert all({"summary", "next"} == set(rule["annotations"]) for rule in rules)


def _trial(alert: str, at: str, series: Series, fires: bool) -> dict[str, Any]:
    expression = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    expected = [{"labels": "{}", "value": 1}] if fires else []
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": expression, "eval_time": at, "exp_samples": expected}],
    }


def test_each_alert_fires_when_it_should_and_not_when_it_should_not(tmp_path: Path) -> None:
    # What takes hours is looked at less often, as promtool does look.
    for pause, unit in (("1m", "m"), ("20m", "h")):
        trials = [
            _trial(alert, at, series, fires)
            for alert, at, firing, quiet in CASES
            for series, fires in [(firing, True), *((each, False) for each in quiet)]
            if at.endswith(unit)
        ]
        path = tmp_path / "trials.yml"
        path.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": pause, "tests": trials}))
        done = promtool("test", "rules", str(path))
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def node_exporter(folder: Path) -> Iterator[str]:
    """A real one that reads this folder; where it serves what it has read."""
    address = f"127.0.0.1:{free_port()}"
    options = ["--collector.disable-defaults", "--collector.textfile", f"--collector.textfile.directory={folder}"]
    command = ["prometheus-node-exporter", f"--web.listen-address={address}", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield f"http://{address}/metrics"
        finally:
            process.kill()


def served(url: str) -> str:
    def ask() -> str:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 -- a server of this test's own
                return str(answer.read().decode("utf-8"))
        except OSError:
            return ""

    return wait_for("node exporter to answer", ask)


def test_a_host_s_own_metrics_reach_node_exporter(pool: LocalPool, tmp_path: Path) -> None:
    release = pool.deploy("1.0")
    shown = pool.program("metrics")
    assert shown.returncode == 0, shown.stderr
    require_good(promtool("check", "metrics", given=shown.stdout))
    assert (
        f'backstep_worker_processes{{host="{pool.at.name}",pool="{pool.name}",release="{release}"}} 1' in shown.stdout
    )
    path = tmp_path / "backstep.prom"
    written = pool.program("metrics", "--write", str(path))
    assert (written.returncode, written.stdout) == (0, ""), "a cron job has nothing to mail"
    assert [other.name for other in tmp_path.iterdir()] == [path.name]
    with node_exporter(tmp_path) as url:
        found = served(url)
    assert f'release="{release}",state="good",version="1.0"' in found
    assert "node_textfile_scrape_error 0" in found


def test_a_write_that_fails_leaves_what_was_there(pool: LocalPool, tmp_path: Path) -> None:
    pool.deploy("1.0")
    path = tmp_path / "backstep.prom"
    path.mkdir()
    (path / "kept").write_text("as it was", encoding="ascii")
    refused = pool.program("metrics", "--write", str(path))
    assert refused.returncode == 1
    assert "'metrics' could not be done" in refused.stderr
    assert [other.name for other in tmp_path.iterdir()] == [path.name], "nothing half-written is left"
    assert (path / "kept").read_text(encoding="ascii") == "as it was"
    nowhere = pool.program("metrics", "--write", str(tmp_path / "no" / "folder.prom"))
    assert nowhere.returncode == 1
    assert "Traceback" not in nowhere.stderr


def test_the_playbook_writes_the_pool_s_metrics_and_says_who_is_silent(tmp_path: Path) -> None:
    with a_stand() as stand:
        path = tmp_path / "letters.prom"
        done = play(stand, tmp_path, "metrics", "metrics", pool_metrics_file=str(path))
        assert done.status == 0, done.output
        text = path.read_text(encoding="utf-8")
        require_good(promtool("check", "metrics", given=text))
        assert 'backstep_tasks{pool="letters",queue="letters",state="waiting"} 0' in text
        assert text.count("backstep_host_up{") == 3
        cut_off(stand, "w3")
        inventory = json.loads(stand.inventory.read_text(encoding="utf-8"))
        inventory["all"]["children"]["workers"]["vars"]["pool_broker_url"] = f"redis://127.0.0.1:{free_port()}/0"
        stand.inventory.write_text(json.dumps(inventory), encoding="utf-8")
        done = play(stand, tmp_path, "silent", "metrics", pool_metrics_file=str(path))
        assert done.status != 0
        assert "No answer from w3, the broker" in done.output
        text = path.read_text(encoding="utf-8")
        assert 'backstep_host_up{host="w3",pool="letters"} 0' in text
        assert 'backstep_broker_up{pool="letters"} 0' in text
        assert "backstep_tasks" not in text
        assert 'backstep_host_updated_timestamp_seconds{host="w3"' not in text
