# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rulebooks ask for is what the role takes, and nothing that an alert says gets to be a template.

``tests/integration/test_eda.py`` runs them; this only reads them, and renders templates as ansible-rulebook does.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from ansible_collections.backstep.workers.plugins.module_utils._rollout.alerts import alert_of
from jinja2 import StrictUndefined
from jinja2.nativetypes import NativeEnvironment

from tools.common import CHECKOUT

EXTENSION = CHECKOUT / "extensions" / "eda"
RULEBOOKS = sorted((EXTENSION / "rulebooks").glob("*.yml"))
HOSTILE = "{{ lookup('pipe', 'x') }}{% x %}{# x #}"
EVENTS: dict[str, dict[str, Any]] = {
    "pool_health": {
        "id": "mail-bad-12",
        "release": "2.0-bbbbbbbb",
        "at": 1795230000.5,
        "reason": "w1: x",
        "health": "bad",
    },
    "alertmanager": {
        "fingerprint": "f1",
        "startsAt": "2026-11-21T03:00:00.25Z",
        "labels": {"release": "2.0-bbbbbbbb", "alertname": f"Fails {HOSTILE}"},
        "annotations": {"summary": HOSTILE},
    },
}


def rulebook(name: str) -> dict[str, Any]:
    (found,) = yaml.safe_load((EXTENSION / "rulebooks" / f"{name}.yml").read_text(encoding="utf-8"))
    return dict(found)


def rendered(given: Any, **variables: Any) -> Any:
    if isinstance(given, dict):
        return {key: rendered(value, **variables) for key, value in given.items()}
    environment = NativeEnvironment(undefined=StrictUndefined)
    environment.filters["regex_replace"] = lambda text, pattern, new: re.sub(pattern, new, str(text))
    return environment.from_string(given).render(variables) if isinstance(given, str) else given


def asked_for(name: str, **changed: Any) -> dict[str, Any]:
    (rule,) = rulebook(name)["rules"]
    event = {**EVENTS[name], **changed}
    return dict(rendered(rule["action"]["run_playbook"]["extra_vars"], event=event))


def test_every_rulebook_is_tried_here() -> None:
    assert {path.stem for path in RULEBOOKS} == set(EVENTS)


@pytest.mark.parametrize("name", EVENTS)
def test_what_is_asked_for_is_what_the_role_takes(name: str) -> None:
    found = rulebook(name)
    for source in found["sources"]:
        (plugin,) = (key for key in source if "." in key)
        collection, _dot, plugin = plugin.rpartition(".")
        assert collection == "eda.builtin" or (EXTENSION / "plugins" / "event_source" / f"{plugin}.py").exists()
    for rule in found["rules"]:
        playbook = rule["action"]["run_playbook"]["name"].rpartition(".")[2]
        assert (CHECKOUT / "playbooks" / f"{playbook}.yml").exists()
        specs = yaml.safe_load((CHECKOUT / "roles/pool/meta/argument_specs.yml").read_text(encoding="utf-8"))
        options = specs["argument_specs"][playbook]["options"]
        given = rule["action"]["run_playbook"]["extra_vars"]
        assert set(given) <= set(options)
        assert set(given["pool_alert"]) == set(options["pool_alert"]["options"])


@pytest.mark.parametrize(("name", "at"), [("pool_health", 1795230000.5), ("alertmanager", 1795230000.25)])
def test_an_event_becomes_an_alert(name: str, at: float) -> None:
    asked = asked_for(name)
    assert asked["pool_hosts"] == "workers"
    alert = alert_of(asked["pool_alert"])
    assert alert
    assert alert.at == pytest.approx(at, abs=1e-3)
    assert alert.release == "2.0-bbbbbbbb"
    assert alert.reason.startswith(f"{name}: ")


def test_nothing_in_an_alert_can_be_a_template() -> None:
    labels = {"release": HOSTILE, "alertname": HOSTILE}
    asked = asked_for("alertmanager", fingerprint=HOSTILE, startsAt=HOSTILE, labels=labels)
    assert not set("{}") & set("".join(map(str, asked["pool_alert"].values()))), json.dumps(asked)


def test_an_alert_without_annotations_and_name_is_one_too() -> None:
    event = {key: value for key, value in EVENTS["alertmanager"].items() if key != "annotations"}
    event["labels"] = {"release": "2.0-bbbbbbbb"}
    (rule,) = rulebook("alertmanager")["rules"]
    asked = rendered(rule["action"]["run_playbook"]["extra_vars"], event=event)
    assert asked["pool_alert"]["reason"].strip() == "alertmanager: no name:"
