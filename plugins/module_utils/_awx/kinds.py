# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kinds of objects in AWX, and how one that is wanted differs from what is there. Pure.

That AWX's API has these kinds, fields and relations is checked against what it tells of itself, by
``tests/unit/test_awx_objects.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

HIDDEN = "VALUE_HIDDEN"
# What AWX tells instead of a secret that it has.
STORED = "$encrypted$"
EDGES = {"success": "success_nodes", "failure": "failure_nodes", "always": "always_nodes"}


@dataclass(frozen=True)
class Kind:
    """A kind of objects.

    :param said: one of them, for people.
    :param organization: whether the field of that name is given when one is made.
    :param refs: the kind that each field names an object of.
    :param inside: fields that an object is looked for with, besides its name.
    """

    said: str
    organization: bool = False
    refs: Mapping[str, str] = field(default_factory=dict)
    inside: Sequence[str] = ()


KINDS = {
    "organizations": Kind("organization"),
    "credential_types": Kind("credential type"),
    "credentials": Kind("credential", True, {"credential_type": "credential_types"}, ("organization",)),
    "execution_environments": Kind("execution environment", True),
    "inventories": Kind("inventory", True, {}, ("organization",)),
    "projects": Kind("project", True, {"credential": "credentials"}, ("organization",)),
    "labels": Kind("label", True, {}, ("organization",)),
    "teams": Kind("team", True, {}, ("organization",)),
    "notification_templates": Kind("notification template", True, {}, ("organization",)),
    "job_templates": Kind(
        "job template",
        refs={
            "inventory": "inventories",
            "project": "projects",
            "execution_environment": "execution_environments",
        },
        inside=("organization",),
    ),
    "workflow_job_templates": Kind("workflow", True, {}, ("organization",)),
    "schedules": Kind("schedule", False, {"unified_job_template": "job_templates"}, ("unified_job_template",)),
}
# What a template is attached to, and of which kind that is. Of these only credentials are taken off again: two of the
# same type can't be on one template, and one that is left behind is one that somebody meant to take away.
ATTACHED = {
    "credentials": "credentials",
    "labels": "labels",
    "notification_templates_started": "notification_templates",
    "notification_templates_success": "notification_templates",
    "notification_templates_error": "notification_templates",
    "notification_templates_approvals": "notification_templates",
}
EXACT = ("credentials",)


def fields_of(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an object as AWX takes them, but for those that name others."""
    fields = {"name": wanted["name"], **(wanted.get("fields") or {})}
    if wanted.get("variables") is not None:
        fields["extra_vars"] = json.dumps(wanted["variables"], sort_keys=True)
    if wanted.get("secrets"):
        fields["inputs"] = {**(fields.get("inputs") or {}), **wanted["secrets"]}
    return fields


def differences(fields: Mapping[str, Any], there: Mapping[str, Any], renew: Sequence[str] = ()) -> dict[str, Any]:
    """Of the fields that are wanted, those that are not so in AWX.

    :param there: the object as AWX tells it.
    :param renew: names of inputs that count as different although AWX has some, as it doesn't tell which.
    """
    return {name: value for name, value in fields.items() if not _same(name, value, there.get(name), renew)}


def _same(name: str, wanted: Any, there: Any, renew: Sequence[str]) -> bool:
    if name == "extra_vars":
        return bool(_variables(wanted) == _variables(there))
    if name == "inputs" and STORED in (there or {}).values():
        kept = {key for key, value in there.items() if value == STORED and key not in renew}
        same = {key: value for key, value in wanted.items() if key not in kept}
        return kept <= set(wanted) and same == {key: value for key, value in there.items() if key not in kept}
    return bool(wanted == there) or (wanted == "" and there is None)


def _variables(given: Any) -> Any:
    """Variables, which AWX has as text: JSON, or YAML that a person has typed and that is never the same."""
    if not given:
        return {}
    try:
        return json.loads(given)
    except (TypeError, ValueError):
        return given


def shown(fields: Mapping[str, Any], secrets: Sequence[str]) -> dict[str, Any]:
    """Fields as they may be shown.

    :param secrets: names of inputs that may not be.
    """
    found = dict(fields)
    if isinstance(found.get("inputs"), Mapping):
        found["inputs"] = {key: HIDDEN if key in secrets else value for key, value in found["inputs"].items()}
    return found


def survey_of(questions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A survey as AWX takes it; empty, as AWX tells it, when there are no questions."""
    return {"name": "", "description": "", "spec": [dict(each) for each in questions]} if questions else {}
