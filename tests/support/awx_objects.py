# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role ``awx`` has AWX be, for given variables: rendered as Ansible renders them."""

from __future__ import annotations

from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

from tools.common import CHECKOUT

ROLE = CHECKOUT / "roles" / "awx"
PROJECT = CHECKOUT / "extensions" / "awx" / "project"
SECRET = "hush-in-the-url"  # noqa: S105 - what must never be shown
# What has to be given, and what makes all there is to make.
GIVEN: dict[str, Any] = {
    "awx_url": "https://awx.example.org",
    "awx_organization": "Operations",
    "awx_pool": "mail",
    "awx_inventory": "production",
    "awx_project_url": "https://git.example.org/backstep-project.git",
}
ALL: dict[str, Any] = {
    **GIVEN,
    "awx_pool_hosts": "mail_workers",
    "awx_execution_environment": "backstep",
    "awx_execution_environment_image": "registry.example.org/backstep-ee:1",
    "awx_machine_credential": "ssh to the workers",
    "awx_broker_url": f"redis://:{SECRET}@redis.example.org:6379/0",
    "awx_on_call_teams": ["on call"],
    "awx_deploy_teams": ["platform"],
    "awx_approval_teams": ["leads"],
    "awx_notifications": ["chat"],
    "awx_report_dir": "/srv/backstep",
    "awx_drill": True,
    "awx_drill_rrule": "DTSTART;TZID=Europe/Berlin:20270104T100000 RRULE:FREQ=MONTHLY;INTERVAL=1;BYDAY=MO;BYSETPOS=1",
}


def objects(**given: Any) -> list[dict[str, Any]]:
    """The option ``objects`` of the module, as the role's task gives it."""
    loader = DataLoader()
    variables: dict[str, Any] = {}
    for path in [ROLE / "defaults" / "main.yml", *sorted((ROLE / "vars" / "main").glob("*.yml"))]:
        variables.update(loader.load_from_file(str(path), trusted_as_template=True))
    rendered = Templar(loader, variables={**variables, **given}).template(variables["awx__objects"])
    found: list[dict[str, Any]] = rendered
    return found


def specs(role: str) -> dict[str, Any]:
    """The argument specs of a role, by entry point."""
    text = (CHECKOUT / "roles" / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)["argument_specs"]
    return found
