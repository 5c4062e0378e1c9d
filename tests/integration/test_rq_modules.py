# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The broker modules as Ansible runs them: check, real, repeat, repeat in check; bad input; no secret in the output."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import ENGINES
from rq import Queue
from rq.suspension import suspend

from tests.support.environment import ansible_environment
from tests.support.rq_bench import Workers
from tests.support.servers import free_port, wait_for

PASSWORD = "s3cr3t-w0rd"  # noqa: S105  # made up, to look for in the output
RELEASE = "2.0-bbbbbbbb"
Steps = list[tuple[str, bool, dict[str, Any]]]
Play = Callable[[Steps], list[dict[str, Any]]]


@pytest.fixture
def play(client: redis.Redis, redis_url: str, tmp_path: Path) -> Play:
    """Runs module calls ``(name, check, options)`` in one play; what each returned."""
    client.execute_command("ACL", "SETUSER", "backstep", "reset", "on", f">{PASSWORD}", "~*", "&*", "+@all")
    common = {"engine": "rq", "broker_url": redis_url.replace("redis://", f"redis://backstep:{PASSWORD}@")}

    def run(steps: Steps) -> list[dict[str, Any]]:
        tasks: list[dict[str, Any]] = [
            {
                f"backstep.workers.{name}": {**common, **options},
                "check_mode": check,
                "diff": True,
                "register": f"result_{number}",
                "ignore_errors": True,
            }
            for number, (name, check, options) in enumerate(steps)
        ]
        collected = "{{ [" + ", ".join(f"result_{number}" for number in range(len(steps))) + "] | to_json }}"
        copy = {"content": collected, "dest": str(tmp_path / "results"), "mode": "0600"}
        tasks.append({"ansible.builtin.copy": copy})
        play_file = tmp_path / "play.json"
        variables = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        play_file.write_text(
            json.dumps([{"hosts": "localhost", "gather_facts": False, "vars": variables, "tasks": tasks}])
        )
        done = subprocess.run(
            ["ansible-playbook", "-vvv", "-i", "localhost,", str(play_file)],
            env=ansible_environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert PASSWORD not in done.stdout + done.stderr
        results = (tmp_path / "results").read_text()
        assert PASSWORD not in results
        found: list[dict[str, Any]] = json.loads(results)
        return found

    return run


def outcome(result: dict[str, Any]) -> tuple[bool, bool, list[str]]:
    return result["failed"], result["changed"], [action["action"] for action in result.get("actions", [])]


def test_pausing_and_moving_in_four_steps(play: Play, client: redis.Redis, engine: Engine) -> None:
    for number in range(3):
        Queue("mail", connection=client).enqueue("app.tasks.unknown", job_id=f"task-{number}")
    pause = {"queues": ["mail"], "owner": "ana", "expires_in": 60}
    park = {"operation": "park", "queues": [["mail"]], "owner": "ana", "tasks": ["app.tasks.unknown"]}
    replay = {"operation": "replay", "queues": ["mail"]}
    results = play([
        ("queue_pause", True, pause),
        ("queue_info", False, {"queues": ["mail"], "prove_rights": True}),
        ("queue_pause", False, pause),
        ("queue_pause", False, pause),
        ("queue_pause", True, pause),
        ("queue_pause", False, {**pause, "owner": "bo"}),
        ("task_move", True, park),
        ("task_move", False, park),
        ("task_move", False, park),
        ("task_move", True, park),
        ("queue_info", True, {}),
        ("task_move", True, replay),
        ("task_move", False, replay),
        ("task_move", False, replay),
        ("queue_pause", True, {**pause, "state": "resumed"}),
        ("queue_pause", False, {**pause, "state": "resumed"}),
        ("queue_pause", False, {**pause, "state": "resumed"}),
    ])  # fmt: skip
    assert [outcome(result) for result in results] == [
        (False, True, ["pause"]),
        (False, False, []),
        (False, True, ["pause"]),
        (False, False, ["extend"]),
        (False, False, ["extend"]),
        (True, False, []),
        (False, True, ["park"]),
        (False, True, ["park"]),
        (False, False, []),
        (False, False, []),
        (False, False, []),
        (False, True, ["replay"]),
        (False, True, ["replay"]),
        (False, False, []),
        (False, True, ["resume"]),
        (False, True, ["resume"]),
        (False, False, []),
    ]
    assert not results[1]["paused"]["paused"]
    assert results[1]["queues"]["mail"]["waiting"] == 3
    assert results[1]["capabilities"]["kill_effect"] == "sticks"
    assert results[2]["pause"]["owner"] == "ana"
    assert results[2]["diff"] == {"before": {"owner": None}, "after": {"owner": "ana"}}
    assert results[5]["error"]["code"] == "pause_refused"
    assert results[6]["moved"] == results[7]["moved"]
    assert results[7]["diff"] == {"before": {"waiting": 3}, "after": {"parked": 3}}
    assert (results[10]["queues"]["mail"]["parked"], results[10]["paused"]["owner"]) == (3, "ana")
    assert engine.queue_states(["mail"])[0].waiting == 3
    assert not engine.pause_state().paused


def test_recovering_and_judging(play: Play, client: redis.Redis, engine: Engine, workers: Workers) -> None:
    killed = workers.start("mail/1.0-aaaaaaaa/w1/1", ["mail"])
    Queue("mail", connection=client).enqueue("ledger_tasks.work", 1, 0.1, job_id="task-1")
    Queue("mail", connection=client).enqueue("ledger_tasks.work", 2, 60, job_id="task-2", at_front=False)
    wait_for("it executes", lambda: [task.id for task in engine.executing(["mail"])] == ["task-2"])
    workers.kill(killed)
    name = workers.start(f"mail/{RELEASE}/w1/1", ["mail"])
    process = {"index": 1, "worker": name, "pid": int(name.split("/")[4]), "state": "running", "reports": RELEASE}
    evidence = {"host": "w1", "outcome": "ok", "bake": 1.0, "problems": [], "processes": [process]}
    subject = {"pool": "mail", "release": RELEASE, "host": "w1", "queues": ["mail"], "evidence": evidence}
    recover = {"operation": "recover", "queues": ["mail"], "workers_gone": ["mail/1.0-aaaaaaaa/w1/"], "to": "dead"}
    nobody = f"redis://:{PASSWORD}@127.0.0.1:{free_port()}/0"
    results = play([
        ("rollout_verdict", True, subject),
        ("rollout_verdict", False, {**subject, "baseline": {"finished": 10, "failed": 0}}),
        ("rollout_verdict", False, {**subject, "queues": ["mial"]}),
        ("rollout_verdict", False, {**subject, "evidence": {}}),
        ("rollout_verdict", False, {**subject, "evidence": {**evidence, "outcome": "failed", "problems": ["it died"]}}),
        ("rollout_verdict", False, {**subject, "broker_url": nobody, "timeout": 1, "health": {"canary_timeout": 1}}),
        ("task_move", True, recover),
        ("task_move", False, recover),
        ("task_move", False, recover),
        ("queue_info", False, {"broker_url": nobody, "timeout": 1}),
    ])  # fmt: skip
    judged = [result["verdict"] for result in results[:6]]
    assert judged == ["unchecked", "good", "bad", "unknown", "bad", "unknown"]
    assert results[1]["reason"]
    assert [probe["name"] for probe in results[1]["probes"]] == ["alive", "version", "queues", "canary", "failures"]
    assert outcome(results[1]) == (False, True, ["send_canary"])
    assert "listens to mail instead of mial" in results[2]["reason"]
    assert results[4]["reason"] == "alive: it died"
    assert [outcome(result) for result in results[6:9]] == [
        (False, True, ["recover"]),
        (False, True, ["recover"]),
        (False, False, []),
    ]
    assert results[7]["recovered"][0]["id"] == "task-2"
    assert results[7]["diff"] == {"before": {"task-2": f"held by {killed}"}, "after": {"task-2": "dead"}}
    assert results[9]["error"]["code"] == "broker_unreachable"


def test_input_that_cannot_be_used_is_refused(play: Play, client: redis.Redis, engine: Engine) -> None:
    suspend(client)
    subject = {"pool": "mail", "release": RELEASE, "host": "w1", "queues": ["mail"]}
    results = play([
        ("queue_info", False, {"engine": "sidekick"}),
        ("queue_info", False, {"broker_url": f"amqp://ana:{PASSWORD}@h"}),
        ("queue_info", False, {"timeout": 0}),
        ("task_move", False, {"operation": "park", "queues": ["mail"]}),
        ("task_move", False, {"operation": "replay", "queues": ["mail"], "enqueued_after": "yesterday"}),
        ("task_move", False, {"operation": "replay", "queues": ["mail"], "states": ["waiting"]}),
        ("queue_pause", False, {"queues": [], "owner": "ana"}),
        ("rollout_verdict", False, {**subject, "baseline": {"finished": 1}}),
    ])  # fmt: skip
    assert all(result["failed"] for result in results)
    codes = [result.get("error", {}).get("code") for result in results]
    assert codes == ["bad_input"] * 3 + [None] + ["bad_input"] * 4
    assert f"knows: {', '.join(sorted(ENGINES))}." in results[0]["msg"]
    assert engine.pause_state().by_person
