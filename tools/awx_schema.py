# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes what AWX's REST API takes into tests/support/awx_schema.json, as a running AWX tells it.

``AWX_USER`` and ``AWX_PASSWORD`` are those of a superuser. AWX tells of a kind of object only what this user could
create at that moment: there has to be a job template, a workflow with a node, and so a project and an inventory.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import urllib.request
from typing import Any

from tools.common import CHECKOUT, main, say

SCHEMA = CHECKOUT / "tests" / "support" / "awx_schema.json"
KINDS = (
    "organizations", "credential_types", "credentials", "execution_environments", "inventories", "projects", "labels",
    "teams", "notification_templates", "job_templates", "workflow_job_templates", "workflow_job_template_nodes",
    "schedules",
)  # fmt: skip
KEPT = ("type", "required", "choices", "min_value", "max_value", "max_length")


def ask(server: str, path: str, method: str = "GET") -> Any:
    """What the server answers."""
    who = base64.b64encode(f"{os.environ['AWX_USER']}:{os.environ['AWX_PASSWORD']}".encode()).decode()
    request = urllib.request.Request(  # noqa: S310 - the person who calls this names the server
        f"{server.rstrip('/')}/api/v2/{path}", method=method, headers={"Authorization": f"Basic {who}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return json.load(answer)


def field(given: dict[str, Any]) -> dict[str, Any]:
    """Of what AWX tells of a field, what can be checked; choices without their names for people."""
    found = {key: given[key] for key in KEPT if key in given}
    if "choices" in found:
        found["choices"] = [value for value, _name in found["choices"]]
    return found


def schema(server: str) -> dict[str, Any]:
    """All kinds: their ``fields`` when created, what they are ``related`` to, and the ``roles`` that teams can have."""
    kinds = {}
    for kind in KINDS:
        fields = ask(server, f"{kind}/", "OPTIONS")["actions"]["POST"]
        one = (ask(server, f"{kind}/?order_by=id&page_size=1")["results"] or [{}])[0]
        kinds[kind] = {
            "fields": {name: field(fields[name]) for name in sorted(fields)},
            "related": sorted(one.get("related", {})),
            "roles": sorted(one.get("summary_fields", {}).get("object_roles", {})),
        }
    node = ask(server, "workflow_job_template_nodes/?unified_job_template__isnull=false")["results"][-1]["id"]
    path = f"workflow_job_template_nodes/{node}/create_approval_template/"
    fields = ask(server, path, "OPTIONS")["actions"]["POST"]
    kinds["workflow_approval_templates"] = {
        "fields": {name: field(fields[name]) for name in sorted(fields)},
        "related": [],
        "roles": [],
    }
    return kinds


def work() -> int:
    """Ask and write."""
    server = sys.argv[1]
    said = {
        "//": [
            "SPDX-FileCopyrightText: Backstep contributors",
            "SPDX-License-Identifier: GPL-3.0-or-later",
            "What AWX's REST API takes, as AWX itself has told it (OPTIONS). Made by: python -m tools.awx_schema URL",
        ],
        "source": "github.com/ansible/awx",
        "version": ask(server, "ping/")["version"],
        "kinds": schema(server),
    }
    SCHEMA.write_text(json.dumps(said, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    say(f"{SCHEMA.relative_to(CHECKOUT)}: AWX {said['version']}, {len(KINDS) + 1} kinds")
    return 0


if __name__ == "__main__":
    main(work)
