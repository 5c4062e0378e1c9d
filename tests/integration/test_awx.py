# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""AWX's objects are applied to a server that speaks AWX's API, and refuses what AWX refuses (tests/support/awx.py)."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.backstep.workers.plugins.module_utils._awx.api import Api
from ansible_collections.backstep.workers.plugins.module_utils._awx.applying import Applier
from ansible_collections.backstep.workers.plugins.module_utils._awx.workflows import apply_all
from ansible_collections.backstep.workers.plugins.module_utils._awx_args import AWX_OPTIONS
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import (
    AwxRefused,
    AwxUnreachable,
    BadInput,
)

from tests.support.awx import TOKEN, Awx, an_awx
from tests.support.awx_objects import ALL, SECRET, objects
from tests.support.environment import ansible_environment
from tools.common import VENV

Wanted = list[dict[str, Any]]


@pytest.fixture
def awx() -> Iterator[Awx]:
    with an_awx() as found:
        yield found


@pytest.fixture(scope="module")
def wanted() -> Wanted:
    spec = {"objects": AWX_OPTIONS["objects"]}
    given = ArgumentSpecValidator(spec).validate({"objects": objects(**ALL)})
    found: Wanted = given.validated_parameters["objects"]
    return found


def api(awx: Awx, token: str = TOKEN) -> Api:
    return Api(awx.url, "/api/v2/", token, "", "", "", 10)


def apply(awx: Awx, wanted: Wanted, *, dry_run: bool = False, renew: bool = False) -> Applier:
    """As the module does it."""
    applier = Applier(api(awx), "Operations", dry_run, renew)
    apply_all(applier, wanted)
    return applier


def changed(wanted: Wanted, name: str, kind: str, **fields: Any) -> Wanted:
    """The same, with fields of one of them changed."""
    found = [dict(each) for each in wanted]
    (one,) = (each for each in found if (each["name"], each["kind"]) == (name, kind))
    one.update({key: {**one[key], **value} if isinstance(value, dict) else value for key, value in fields.items()})
    return found


def test_a_dry_run_changes_nothing_and_names_what_the_real_one_then_does_and_the_next_does_nothing(
    awx: Awx, wanted: Wanted
) -> None:
    dry = apply(awx, wanted, dry_run=True)
    assert awx.changes == []
    real = apply(awx, wanted)
    assert dry.actions == real.actions
    assert len(real.actions) > len(wanted)
    assert awx.named("job_templates", "mail rollback")["playbook"] == "rollback.yml"
    before = len(awx.changes)
    assert apply(awx, wanted).actions == []
    assert len(awx.changes) == before
    assert awx.named("credentials", "mail broker")["inputs"] == {"broker_url": ALL["awx_broker_url"]}
    assert not any(SECRET in json.dumps([run.actions, run.diffs]) for run in (dry, real))


def test_the_workflow_has_the_edges_that_are_wanted(awx: Awx, wanted: Wanted) -> None:
    apply(awx, wanted)
    nodes = {node["id"]: node for node in awx.kinds["workflow_job_template_nodes"].values()}
    edges = {
        (node["identifier"], edge, nodes[after]["identifier"])
        for node in nodes.values()
        for edge in ("success_nodes", "failure_nodes", "always_nodes")
        for after in node["_related"][edge]
    }
    assert edges == {
        ("preflight", "success_nodes", "approval"),
        ("approval", "success_nodes", "deploy"),
        ("deploy", "success_nodes", "verify"),
        ("deploy", "failure_nodes", "take-back"),
        ("verify", "failure_nodes", "take-back"),
        ("take-back", "always_nodes", "fail"),
    }


def test_what_a_person_has_changed_is_named_and_put_right_and_what_they_added_stays(awx: Awx, wanted: Wanted) -> None:
    apply(awx, wanted)
    rollback = awx.named("job_templates", "mail rollback")
    rollback.update(timeout=60, description="mine", limit="w1")
    rollback["_survey"] = {}
    own = awx.add("labels", name="own", organization=1)
    rollback["_related"]["labels"].append(own)
    deploy = next(n for n in awx.kinds["workflow_job_template_nodes"].values() if n["identifier"] == "deploy")
    verify = next(n for n in awx.kinds["workflow_job_template_nodes"].values() if n["identifier"] == "verify")
    deploy["_related"]["success_nodes"].clear()
    deploy["_related"]["always_nodes"].append(verify["id"])
    stray = awx.add(
        "workflow_job_template_nodes", identifier="stray", workflow_job_template=deploy["workflow_job_template"]
    )
    said = [
        {key: value for key, value in each.items() if key not in ("kind", "name", "questions")}
        for each in apply(awx, wanted).actions
    ]
    assert said == [
        {"action": "change", "fields": ["description", "timeout"]},
        {"action": "survey"},
        {"action": "remove_node", "node": "stray"},
        {"action": "part", "node": "deploy", "always_nodes": str(verify["id"])},
        {"action": "join", "node": "deploy", "success_nodes": "verify"},
    ]
    assert stray not in awx.kinds["workflow_job_template_nodes"]
    assert rollback["limit"] == "w1"  # nothing is said of it
    assert own in rollback["_related"]["labels"]
    assert apply(awx, wanted).actions == []


def test_another_credential_takes_the_place_of_the_old_one(awx: Awx, wanted: Wanted) -> None:
    apply(awx, wanted)
    machine = awx.named("credentials", "ssh to the workers")["credential_type"]
    other = awx.add("credentials", name="other", organization=1, credential_type=machine, inputs={})
    attached = {"credentials": ["other", "mail broker"]}
    now = changed(wanted, "mail rollback", "job_templates", attached=attached)
    assert [each["action"] for each in apply(awx, now).actions] == ["detach", "attach"]
    assert other in awx.named("job_templates", "mail rollback")["_related"]["credentials"]


def test_a_secret_is_stored_anew_only_when_asked(awx: Awx, wanted: Wanted) -> None:
    apply(awx, wanted)
    new = changed(wanted, "mail broker", "credentials", secrets={"broker_url": "redis://:hush-again@x/0"})
    assert apply(awx, new).actions == []
    renewed = apply(awx, new, renew=True)
    assert [(each["action"], each["name"]) for each in renewed.actions] == [("change", "mail broker")]
    assert "hush" not in json.dumps([renewed.actions, renewed.diffs])
    assert awx.named("credentials", "mail broker")["inputs"] == {"broker_url": "redis://:hush-again@x/0"}


def test_refusals_say_what_to_do_and_hold_no_secret(awx: Awx, wanted: Wanted) -> None:
    with pytest.raises(AwxRefused, match="no inventory 'elsewhere'"):
        apply(awx, changed(wanted, "mail rollback", "job_templates", refs={"inventory": "elsewhere"}))
    with pytest.raises(AwxRefused, match=r"Playbook not found"):
        apply(awx, changed(wanted, "mail rollback", "job_templates", fields={"playbook": "nothing.yml"}))
    nodes = [{"identifier": "a", "template": "mail deploy", "success": ["nowhere"]}]
    with pytest.raises(BadInput, match="leads to nowhere"):
        apply(awx, changed(wanted, "mail release", "workflow_job_templates", nodes=nodes))
    with pytest.raises(AwxRefused, match="401") as refused:  # this server says what it was sent
        Applier(api(awx, "hush-wrong-token"), "Operations", True, False)
    assert "hush-wrong-token" not in str(refused.value)
    with pytest.raises(BadInput, match="who asks"):
        Api(awx.url, "/api/v2/", "", "ana", "", "", 1)
    with pytest.raises(AwxUnreachable, match="gave no answer"):
        Applier(Api("http://127.0.0.1:9", "/api/v2/", "t", "", "", "", 1), "Operations", True, False)


def test_a_redirect_is_not_followed_and_silence_ends(awx: Awx) -> None:
    awx.moved_to = "https://elsewhere.invalid/"
    with pytest.raises(AwxUnreachable, match="Exceeded 0 redirects"):
        Applier(api(awx), "Operations", True, False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nobody = Api(f"http://127.0.0.1:{silent.getsockname()[1]}", "/api/v2/", TOKEN, "", "", "", 0.2)
        with pytest.raises(AwxUnreachable, match=r"Read timed out"):
            Applier(nobody, "Operations", True, False)


def test_a_project_that_can_not_be_fetched_stops_it_and_is_fetched_again(awx: Awx, wanted: Wanted) -> None:
    awx.fetch_fails = True
    with pytest.raises(AwxRefused, match="not fetched the project Backstep: failed"):
        apply(awx, wanted)
    assert not awx.kinds["job_templates"]
    awx.fetch_fails = False
    assert apply(awx, wanted).actions[0]["action"] == "fetch"


def play(awx: Awx, folder: Path, *options: str, **more: Any) -> str:
    """The playbook, as a person types it; what it has said."""
    given = folder / "awx.yml"
    given.write_text(json.dumps({**ALL, "awx_url": awx.url, "awx_token": TOKEN, **more}), encoding="utf-8")
    command = [VENV / "bin" / "ansible-playbook", "-v", *options, "-e", f"@{given}", "backstep.workers.awx"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
        env={**ansible_environment(), "ANSIBLE_LOCALHOST_WARNING": "false"}, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done.stdout


def test_the_playbook_with_a_dry_run_first_and_a_second_time(awx: Awx, tmp_path: Path) -> None:
    said = play(awx, tmp_path, "--check", "--diff")
    assert awx.changes == []
    assert "job template mail rollback" in said
    assert "VALUE_HIDDEN" in said
    assert "changed=1" in play(awx, tmp_path)
    assert awx.named("job_templates", "mail deploy")["playbook"] == "deploy.yml"
    before = len(awx.changes)
    assert "changed=0" in play(awx, tmp_path, "--diff")
    assert len(awx.changes) == before
