# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a host may take for an answer, and what becomes of waiting for one that gives none."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.backstep.workers.plugins.plugin_utils.answering import (
    NoAnswer,
    SilentHosts,
    known_seconds,
    time_limit,
    way_back_seconds,
)
from ansible_collections.backstep.workers.plugins.plugin_utils.host_action import HostAction

from tools.common import CHECKOUT

# pytest's own limit would be the nearer one that is left alone.
pytestmark = pytest.mark.timeout(60, method="thread")
SCHEDULER = {"command": ["rq", "cron"], "host": "w1", "period": 20}
HOOKS = {"after_stage": [["./a"], {"command": ["./b"], "timeout": 10}], "before_switch": [["./c"]]}


@pytest.mark.parametrize(
    ("module", "args", "seconds"),
    [
        ("release_info", {}, 0),
        ("release_info", {"seconds": "30"}, 30),
        ("release_switch", {"drain": {"timeout": 40}}, 0),
        ("release_switch", {"mode": "replace", "drain": {"timeout": 40}}, 40),
        ("release_switch", {"mode": "replace", "drain": {"on_timeout": "kill"}}, 300),
        ("worker_drain", {"drain": {"timeout": 40}}, 40),
        ("release", {"build": ["make"], "hooks": HOOKS}, 900 + 60 + 10),
        ("release", {"build": ["make", "make install"], "build_timeout": 5}, 10),
        ("release_hooks", {"step": "after_stage", "hooks": HOOKS}, 70),
        ("release_hooks", {"step": "after_confirm", "hooks": HOOKS}, 0),
        ("rollout_verdict", {"timeout": 10, "health": {"canary_timeout": 20}}, 30),
        ("rollout_verdict", {}, 30),
        ("queue_info", {"timeout": 10}, 10),
        ("task_move", {"operation": "recover"}, 3),
        ("task_move", {"operation": "replay"}, math.inf),
        ("rollout_lease", {"seconds": 300}, 0),
        ("release_info", {"seconds": "soon"}, 0),
        ("release_switch", {"scheduler": SCHEDULER}, 40),
        ("release_switch", {"mode": "replace", "drain": {"timeout": 5}, "scheduler": SCHEDULER}, 45),
        ("release_switch", {"scheduler": {"host": "w1"}}, 0),
        ("release_hooks", {"step": "after_stage", "hooks": {"after_stage": "./a"}}, 0),
    ],
)
def test_a_step_is_given_the_time_that_it_may_wait_itself(module: str, args: dict[str, Any], seconds: float) -> None:
    assert known_seconds(module, args) == seconds


def test_what_is_sent_along_takes_its_time() -> None:
    assert known_seconds("release", {}, size=100 * 2**20) == 100


def test_a_way_back_is_given_the_time_of_the_hooks_that_any_host_has() -> None:
    stored = {"before_rollback": [{"timeout": 20.0}], "after_rollback": [{"timeout": 5.0}]}
    states = [{"releases": [{"hooks": {}}, {"hooks": stored}]}, {}]
    assert way_back_seconds({}, states) == 25.0
    assert way_back_seconds({"after_rollback": [{"timeout": 90.0}]}, states) == 90.0
    assert way_back_seconds({}, []) == 0.0


def test_a_way_back_is_given_the_time_of_handing_any_scheduler_over() -> None:
    states = [{"releases": [{"scheduler": {}}, {"scheduler": {"host": "w1", "period": 30.0}}]}, {}]
    assert way_back_seconds({}, states) == 60.0
    assert way_back_seconds({"after_rollback": [{"timeout": 9.0}]}, [], SCHEDULER) == 49.0


@pytest.fixture(autouse=True)
def _no_alarm_is_left() -> Iterator[None]:
    before = signal.getsignal(signal.SIGALRM)
    yield
    assert signal.getsignal(signal.SIGALRM) is before


def test_a_wait_in_vain_ends_also_where_the_way_out_waits_again() -> None:
    waiting = threading.Event()

    def wait_in_vain() -> None:
        try:
            waiting.wait()
        finally:
            waiting.wait()

    with pytest.raises(NoAnswer), time_limit(0.2):
        wait_in_vain()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_answer_in_time_is_nothing_to_it() -> None:
    with time_limit(60.0):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("seconds", [0, math.inf])
def test_there_may_be_no_limit(seconds: float) -> None:
    with time_limit(seconds):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_limit_of_ansibles_own_is_kept() -> None:
    signal.setitimer(signal.ITIMER_REAL, 100.0)
    try:
        with time_limit(200.0):
            assert 50 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
        with time_limit(50.0):
            assert signal.getitimer(signal.ITIMER_REAL)[0] <= 50
        assert 50 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


_STOPPED = """\
import sys
from ansible_collections.backstep.workers.plugins.plugin_utils.answering import time_limit
with time_limit(2.0):
    print("waits", flush=True)
    sys.stdin.read()
print("has its answer")
"""


def test_a_controller_that_stood_still_itself_takes_the_answer_that_is_there() -> None:
    """It is stopped for longer than the limit, and has its answer when it goes on."""
    waits = subprocess.Popen(
        [sys.executable, "-c", _STOPPED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert waits.stdout
    assert waits.stdout.readline() == "waits\n"
    waits.send_signal(signal.SIGSTOP)
    time.sleep(3.0)  # the time that passes is what is tested
    assert waits.stdin
    waits.stdin.close()
    waits.send_signal(signal.SIGCONT)
    assert waits.stdout.read() == "has its answer\n"
    assert waits.wait(60) == 0


def test_a_host_is_given_up_once_for_all_processes_of_a_run(tmp_path: Path) -> None:
    assert SilentHosts(tmp_path).seconds("w1/x") == 0.0
    SilentHosts(tmp_path).add("w1/x", 150.0)
    assert SilentHosts(tmp_path).seconds("w1/x") == 150.0
    assert SilentHosts(tmp_path).seconds("w2") == 0.0


_LETS_GO = """\
import subprocess
from ansible_collections.backstep.workers.plugins.plugin_utils.answering import let_go_of_clients
client = subprocess.Popen(["sleep", "600"])
let_go_of_clients()
print(client.wait(60))
"""


def test_no_client_that_waits_for_a_host_outlives_its_step() -> None:
    """As Ansible does, each step is the first process of a group of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _LETS_GO], capture_output=True, text=True, check=False, timeout=60,
        start_new_session=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{-signal.SIGTERM}\n"), done.stderr


class Cut(HostAction):
    """A step on a host that keeps whatever is sent to it waiting, as after a cut of its network."""

    def __init__(self) -> None:
        shell = SimpleNamespace(tmpdir="/root/.ansible/tmp/ansible-tmp-1", remove=lambda path, recurse: path)
        self._connection: Any = SimpleNamespace(_shell=shell, _remote_is_local=True)
        self._task = SimpleNamespace(action="release_info", args={"step_timeout": 0.2}, async_val=0, delegate_to=None)
        self._cleanup_remote_tmp = True
        self.asked: list[str] = []

    def _low_level_execute_command(self, cmd: str, **_more: Any) -> dict[str, Any]:
        self.asked.append(cmd)
        threading.Event().wait(50)
        raise AssertionError("nothing has ended it")

    def run(self, *_given: Any, **_more: Any) -> dict[str, Any]:
        """Unused: each test says what it does."""
        raise AssertionError("not asked for")

    def reach(self) -> dict[str, Any]:
        """As a connection does that can't."""
        raise AnsibleConnectionFailure("no route")


def test_a_host_that_can_not_be_reached_is_not_asked_to_clean_up(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(C, "DEFAULT_LOCAL_TMP", str(tmp_path))
    step = Cut()
    with pytest.raises(AnsibleConnectionFailure):
        step.ask({"inventory_hostname": "w1"}, step.reach, 0.0)
    step.cleanup()
    assert step.asked == []


_CLEANS = """\
from tests.unit.test_answering import Cut
step = Cut()
step.cleanup()
print(step.asked)
"""


def test_a_host_that_can_not_be_reached_any_more_does_not_hold_up_the_cleaning() -> None:
    # In a process of its own, which is ended with whatever it has started.
    done = subprocess.run(
        [sys.executable, "-c", _CLEANS],
        capture_output=True, text=True, check=False, timeout=40, start_new_session=True, cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *sys.path])},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "['/root/.ansible/tmp/ansible-tmp-1']\n"), done.stderr


def test_every_step_that_speaks_to_a_host_ends_in_time() -> None:
    runtime = yaml.safe_load((CHECKOUT / "meta" / "runtime.yml").read_text(encoding="utf-8"))
    asked = [*runtime["action_groups"]["host"], *runtime["action_groups"]["broker"]]
    routed = runtime["plugin_routing"]["modules"]
    for name in (module.rpartition(".")[2] for module in asked):
        action = routed.get(name, {}).get("action_plugin", name).rpartition(".")[2]
        source = (CHECKOUT / "plugins" / "action" / f"{action}.py").read_text(encoding="utf-8")
        assert "class ActionModule(HostAction)" in source, name
        assert "self.ask(" in source, name
