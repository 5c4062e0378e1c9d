# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""AWX's objects agree with AWX's schema, with the project's playbooks, and with what the role ``pool`` takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.backstep.workers.plugins.module_utils._awx.kinds import (
    ATTACHED,
    EDGES,
    KINDS,
    differences,
    fields_of,
    survey_of,
)
from ansible_collections.backstep.workers.plugins.module_utils._awx_args import AWX_OPTIONS
from ansible_collections.backstep.workers.plugins.module_utils._rollout.alerts import Alert, alert_of

from tests.support import awx
from tests.support.awx_objects import ALL, GIVEN, PROJECT, SECRET, objects, specs
from tools.common import CHECKOUT

# What a survey, or a template, may set for the project's own playbooks, which make of it what the role takes.
OF_PROJECT = {"replay": {"replay_state", "replay_tasks", "replay_error"}, "report": {"backstep_report_dir"}}


def plays_of(playbook: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((PROJECT / playbook).read_text(encoding="utf-8"))
    return found


def entry_point(playbook: str) -> tuple[str, dict[str, Any]]:
    """What a playbook of the project plays of the role, and with which variables of its own."""
    for play in plays_of(playbook):
        if "ansible.builtin.import_playbook" in play:
            return play["ansible.builtin.import_playbook"].rpartition(".")[2], play.get("vars", {})
    return "", {}


TEMPLATES = {each["name"]: each for each in objects(**ALL) if each["kind"] == "job_templates"}
WORKFLOW = next(each for each in objects(**ALL) if each["kind"] == "workflow_job_templates")


@pytest.mark.parametrize("given", [GIVEN, ALL], ids=["least", "all"])
def test_awx_takes_every_field_of_every_object(given: dict[str, Any]) -> None:
    for wanted in objects(**given):
        kind = KINDS[wanted["kind"]]
        refs = dict.fromkeys(wanted.get("refs") or {}, 1) | ({"organization": 1} if kind.organization else {})
        assert not awx.check(wanted["kind"], {**fields_of(wanted), **refs}, True), wanted["name"]
        known = awx.KINDS[wanted["kind"]]
        assert set(wanted.get("refs") or {}) <= set(kind.refs)
        assert set(wanted.get("attached") or {}) <= set(ATTACHED) & set(known["related"])
        assert set(wanted.get("roles") or {}) <= set(known["roles"])
        if wanted.get("survey"):
            assert "survey_spec" in known["related"]
            assert awx.check_survey(survey_of(wanted["survey"])) == ""


def test_the_kinds_are_awx_s() -> None:
    for name, kind in KINDS.items():
        fields = awx.KINDS[name]["fields"]
        assert {*kind.refs, *(["organization"] if kind.organization else [])} <= set(fields)
        assert set(kind.refs.values()) <= set(awx.KINDS)
    assert set(EDGES.values()) <= set(awx.KINDS["workflow_job_template_nodes"]["related"])


def test_awx_takes_the_nodes() -> None:
    nodes = {node["identifier"]: node for node in WORKFLOW["nodes"]}
    for name, node in nodes.items():
        assert not awx.check("workflow_job_template_nodes", {"identifier": name, "workflow_job_template": 1}, True)
        if "approval" in node:
            assert not awx.check("workflow_approval_templates", node["approval"], True)
        else:
            assert node["template"] in TEMPLATES
        assert {after for edge in EDGES for after in node.get(edge, [])} <= set(nodes)


def test_a_release_that_is_not_there_is_never_green() -> None:
    """Whatever node fails after something was switched, the last one that runs fails."""
    nodes = {node["identifier"]: node for node in WORKFLOW["nodes"]}
    for name in ("deploy", "verify"):
        assert nodes[name]["failure"] == ["take-back"]
    assert nodes["take-back"]["always"] == ["fail"]
    assert not any(nodes["fail"].get(edge) for edge in EDGES)
    (play,) = plays_of(TEMPLATES[nodes["fail"]["template"]]["fields"]["playbook"])
    assert "ansible.builtin.fail" in play["tasks"][-1]
    assert "when" not in play["tasks"][-1]
    # Before anything is switched nobody is called back: a node without a way on fails the workflow by itself.
    assert not any(nodes[name].get("failure") or nodes[name].get("always") for name in ("preflight", "approval"))
    for name in ("preflight", "approval", "deploy"):
        assert len(nodes[name]["success"]) == 1


def test_what_follows_a_deploy_takes_back_nothing_but_that_deploy() -> None:
    name, variables = entry_point("take_back.yml")
    assert name == "rollback"
    assert set(variables["pool_alert"]) == set(specs("pool")["rollback"]["options"]["pool_alert"]["options"])
    assert variables["pool_alert"]["release"] == "{{ backstep.to }}"


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_variable_is_one_that_the_role_takes(name: str) -> None:
    template = TEMPLATES[name]
    playbook = template["fields"]["playbook"]
    point, own = entry_point(playbook)
    asked = {question["variable"]: question for question in template.get("survey") or []}
    given = {*asked, *(template["variables"] or {})}
    if not point:
        assert not given
        return
    assert (CHECKOUT / "playbooks" / f"{point}.yml").is_file()
    options = specs("pool")[point]["options"]
    assert given | set(own) <= set(options) | OF_PROJECT.get(point, set()), name
    for variable in OF_PROJECT.get(point, set()):
        assert variable in (PROJECT / playbook).read_text(encoding="utf-8")
    for variable, question in asked.items():
        if variable in options:
            check_question(question, options[variable])


def check_question(question: dict[str, Any], option: dict[str, Any]) -> None:
    """What a survey gives is what the option takes, by default and whatever is chosen."""
    spec = {"x": {key: option[key] for key in ("type", "elements", "choices") if key in option}}
    for value in [*question.get("choices", []), *([question["default"]] if "default" in question else ["2.4.0"])]:
        assert not ArgumentSpecValidator(spec).validate({"x": value}).error_messages, question["variable"]
    # AWX drops a default that is shorter than the least that it takes, and asks for one where it is required.
    assert len(str(question.get("default", " " * 99))) >= question.get("min", 0)
    assert question["required"] is ("default" not in question)


def test_jobs_have_more_time_than_the_role_takes() -> None:
    pool = yaml.safe_load((CHECKOUT / "roles/pool/defaults/main.yml").read_text(encoding="utf-8"))
    mine = yaml.safe_load((CHECKOUT / "roles/awx/defaults/main.yml").read_text(encoding="utf-8"))
    assert mine["awx_confirm_timeout"] == pool["pool_confirm_timeout"]
    assert mine["awx_drain_timeout"] == pool["pool_drain"]["timeout"]
    assert mine["awx_build_timeout"] == pool["pool_build_timeout"]
    at_least = pool["pool_confirm_timeout"] + pool["pool_drain"]["timeout"] + pool["pool_build_timeout"]
    moving = [
        each for each in TEMPLATES.values() if entry_point(each["fields"]["playbook"])[0] in ("deploy", "rollback")
    ]
    assert len(moving) == 4
    assert all(each["fields"]["timeout"] > at_least for each in moving)
    slow = {each["name"]: each for each in objects(**ALL, awx_confirm_timeout=7200)}
    assert slow["mail deploy"]["fields"]["timeout"] > 7200


def test_no_template_can_be_given_more_than_its_survey_asks() -> None:
    for template in TEMPLATES.values():
        prompts = {name for name in awx.KINDS["job_templates"]["fields"] if name.startswith("ask_")}
        assert {name for name, value in template["fields"].items() if name in prompts and value is False} == prompts
        assert template["fields"]["job_slice_count"] == 1
        changes = entry_point(template["fields"]["playbook"])[0] not in ("status", "")
        assert template["fields"]["allow_simultaneous"] is not changes or not changes
        assert template["fields"].get("survey_enabled", False) is bool(template.get("survey"))
    assert WORKFLOW["fields"]["allow_simultaneous"] is False


def test_only_deploy_teams_deploy_and_on_call_rolls_back() -> None:
    may = {name: template.get("roles") for name, template in TEMPLATES.items()}
    assert may["mail rollback"] == {"execute_role": ["on call", "platform"]}
    for name in ("mail preflight", "mail deploy", "mail replay", "mail drill"):
        assert may[name] == {"execute_role": ["platform"]}
    assert WORKFLOW["roles"] == {"execute_role": ["platform"], "approval_role": ["leads"]}


def test_the_secret_is_in_the_credential_alone_and_goes_to_jobs_as_the_roles_variable() -> None:
    holders = [each["name"] for each in objects(**ALL) if SECRET in json.dumps(each)]
    assert holders == ["mail broker"]
    (kind,) = (each for each in objects(**ALL) if each["kind"] == "credential_types")
    (question,) = kind["fields"]["inputs"]["fields"]
    assert question["secret"] is True
    assert kind["fields"]["injectors"] == {"extra_vars": {"pool_broker_url": f"{{{{ {question['id']} }}}}"}}
    assert specs("pool")["rollback"]["options"]["pool_broker_url"]["no_log"] is True


def test_the_role_says_all_of_its_variables() -> None:
    options = specs("awx")["main"]["options"]
    defaults = yaml.safe_load((CHECKOUT / "roles/awx/defaults/main.yml").read_text(encoding="utf-8"))
    assert {name for name, option in options.items() if not option.get("required")} == set(defaults)
    assert {name: option["default"] for name, option in options.items() if "default" in option} == defaults
    assert {name for name, option in options.items() if option.get("required")} == set(GIVEN)


def test_the_module_takes_the_objects() -> None:
    given = {"url": "https://awx.example.org", "organization": "x", "objects": objects(**ALL)}
    assert not ArgumentSpecValidator(AWX_OPTIONS).validate(given).error_messages


@pytest.mark.parametrize(
    ("wanted", "there", "renew", "different"),
    [
        ({"extra_vars": '{"a": 1}'}, {"extra_vars": '{\n "a": 1}'}, (), False),
        ({"extra_vars": '{"a": 1}'}, {"extra_vars": '{"a": 2}'}, (), True),
        ({"extra_vars": "{}"}, {"extra_vars": ""}, (), False),
        ({"extra_vars": '{"a": 1}'}, {"extra_vars": "a: 1"}, (), True),
        ({"inputs": {"u": "x"}}, {"inputs": {"u": "$encrypted$"}}, (), False),
        ({"inputs": {"u": "x"}}, {"inputs": {"u": "$encrypted$"}}, ("u",), True),
        ({"inputs": {"u": "x", "v": 1}}, {"inputs": {"u": "$encrypted$", "v": 2}}, (), True),
        ({"inputs": {"v": 1}}, {"inputs": {"u": "$encrypted$", "v": 1}}, (), True),
        ({"inputs": {"u": "x"}}, {"inputs": {}}, (), True),
        ({"scm_branch": ""}, {"scm_branch": None}, (), False),
        ({"timeout": 60}, {"timeout": 0}, (), True),
    ],
)
def test_differences(wanted: dict[str, Any], there: dict[str, Any], renew: tuple[str, ...], different: bool) -> None:
    assert bool(differences(wanted, there, renew)) is different


def rendered(playbook: str, what: str, **variables: Any) -> Any:
    """A variable of a playbook's first play that has it, as Ansible renders it."""
    loader = DataLoader()
    plays = loader.load_from_file(str(PROJECT / playbook), trusted_as_template=True)
    (own,) = (play["vars"] for play in plays if what in play.get("vars", {}))
    return Templar(loader, variables={**own, **variables}).template(own[what])


def test_what_is_typed_into_the_survey_of_a_replay_is_what_the_role_takes() -> None:
    assert rendered("replay.yml", "pool_replay", replay_state="dead", replay_tasks="mail.send, mail.x ,") == {
        "states": ["dead"],
        "tasks": ["mail.send", "mail.x"],
        "error": "",
    }
    assert rendered("replay.yml", "pool_replay") == {"states": ["parked"], "tasks": [], "error": ""}


@pytest.mark.parametrize(
    ("hosts", "needs", "asked", "good"),
    [
        ({"w1": "2.4.0-aa", "w2": "2.4.0-aa"}, [], "2.4.0", True),
        ({"w1": "2.4.0-aa", "w2": "2.4.0-aa"}, [], "", True),
        ({"w1": "2.4.0_x-aa"}, [], "2.4.0+x", True),
        ({"w1": "2.4.0-aa", "w2": "2.3.0-bb"}, [], "2.4.0", False),
        ({"w1": "2.3.0-bb", "w2": "2.3.0-bb"}, [], "2.4.0", False),
        ({"w1": "2.4.0-aa", "w2": None}, [], "2.4.0", False),
        ({"w1": None}, [], "2.4.0", False),
        ({"w1": "2.4.0-aa"}, ["w1 needs a person"], "2.4.0", False),
        ({}, [], "", False),
    ],
)
def test_verification_is_good_only_for_one_release_of_the_version_everywhere(
    hosts: dict[str, Any], needs: list[str], asked: str, good: bool
) -> None:
    seen = {"hosts": {h: {"current": r} if h != "w2" or r else {"error": "x"} for h, r in hosts.items()}}
    seen["needs_a_person"] = needs
    loader = DataLoader()
    plays = loader.load_from_file(str(PROJECT / "verify.yml"), trusted_as_template=True)
    given = {**plays[1]["vars"], "seen": seen, **({"pool_version": asked} if asked else {})}
    templar = Templar(loader, variables=given)
    (task,) = plays[1]["tasks"]
    checks = task["ansible.builtin.assert"]["that"]
    assert all(templar.evaluate_conditional(check) for check in checks) is good


@pytest.mark.parametrize(
    ("left", "goes_on"),
    [
        ({"backstep": {"schema": 1, "to": "2.4.0-aa"}}, True),
        ({"backstep": {"schema": 2, "to": "2.4.0-aa"}}, False),
        ({"backstep": {"schema": 1, "to": ""}}, False),
        ({}, False),
    ],
)
def test_a_deploy_that_has_left_no_word_is_not_taken_back(left: dict[str, Any], goes_on: bool) -> None:
    loader = DataLoader()
    plays = loader.load_from_file(str(PROJECT / "take_back.yml"), trusted_as_template=True)
    (task,) = plays[0]["tasks"]
    assert Templar(loader, variables=left).evaluate_conditional(task["ansible.builtin.assert"]["that"]) is goes_on


def test_what_is_taken_back_is_an_alert_as_the_role_takes_it() -> None:
    word = {"schema": 1, "pool": "mail", "rollout": 12, "to": "2.4.0-aa", "ended": 1795230000.5}
    alert = rendered("take_back.yml", "pool_alert", backstep=word)
    assert alert_of(alert) == Alert(
        "mail-12-verify", "2.4.0-aa", 1795230000.5, "the verification after rollout 12 failed"
    )
