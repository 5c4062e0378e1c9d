#!/usr/bin/python
# SPDX-FileCopyrightText: Backstep contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: awx_objects
short_description: Make AWX have the job templates, workflows and what belongs to them that are wanted
version_added: 0.1.0
description:
  - Makes what is missing and changes what is different, by AWX's REST API. Nothing has to be installed for it.
  - It removes no object. Of a template's credentials, a survey's questions and a workflow's nodes those go that are not
    wanted; labels, notifications and roles that somebody has added stay.
  - Secrets are sent when an object is made. AWX never tells them, so they are not compared; see O(renew_secrets).
  - The role P(backstep.workers.awx#role) calls it with the objects of a worker pool.
author:
  - Backstep contributors (@backstep)
requirements:
  - The Python package C(awxkit), where the module runs.
attributes:
  check_mode:
    description: Says what would be done, and does nothing.
    support: full
  diff_mode:
    description: Shows what differs, with secrets hidden.
    support: full
options:
  url:
    description: Where AWX is.
    type: str
    required: true
  prefix:
    description: Where its API begins.
    type: str
    default: /api/v2/
  token:
    description: An OAuth token with the scope C(write). Either this, or O(user) and O(password).
    type: str
    default: ''
  user:
    description: Who asks.
    type: str
    default: ''
  password:
    description: The password of O(user).
    type: str
    default: ''
  ca_file:
    description: The file with the certificates to trust. Empty means those of the system.
    type: str
    default: ''
  timeout:
    description: How many seconds AWX may take for one answer.
    type: float
    default: 30.0
  organization:
    description: The name of the organization that all of it belongs to. It has to be there.
    type: str
    required: true
  renew_secrets:
    description: Whether to store secrets anew that AWX has already.
    type: bool
    default: false
  objects:
    description: The objects; what another one names comes before it, or is there already.
    type: list
    elements: dict
    required: true
    suboptions:
      kind:
        description: What it is, as AWX's API calls it.
        type: str
        required: true
        choices:
          - credential_types
          - credentials
          - execution_environments
          - projects
          - labels
          - job_templates
          - workflow_job_templates
          - schedules
      name:
        description: Its name.
        type: str
        required: true
      fields:
        description: Its fields, as AWX's API has them. Others that it has stay as they are.
        type: dict
        default: {}
      variables:
        description: Its field C(extra_vars).
        type: dict
      secrets:
        description: Inputs of a credential that are secret.
        type: dict
        default: {}
      refs:
        description: By field, the name of the object that it names, such as C(project) or C(inventory).
        type: dict
        default: {}
      survey:
        description: The questions of its survey, as AWX's API has them.
        type: list
        elements: dict
      attached:
        description: By relation (C(credentials), C(labels), C(notification_templates_error), ...), the names of others.
        type: dict
        default: {}
      roles:
        description: By role (C(execute_role), ...), the names of the teams that have it.
        type: dict
        default: {}
      nodes:
        description: >-
          The nodes of a workflow, each with C(identifier); either C(template), the name of a job template, or
          C(approval) (C(name), C(description), C(timeout) in seconds); and C(success), C(failure) and C(always), the
          nodes after it.
        type: list
        elements: dict
      wait:
        description: How many seconds to wait for a project to be fetched.
        type: float
        default: 300.0
"""

EXAMPLES = r"""
- name: Have a template
  backstep.workers.awx_objects:
    url: https://awx.example.org
    token: "{{ vault_awx_token }}"
    organization: Operations
    objects:
      - kind: job_templates
        name: mail rollback
        fields: {playbook: rollback.yml, allow_simultaneous: false}
        refs: {project: Backstep, inventory: production}
        roles: {execute_role: [on call]}
  delegate_to: localhost
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: dict
  returned: success
  sample: [{"action": "change", "kind": "job template", "name": "mail rollback", "fields": ["timeout"]}]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.backstep.workers.plugins.module_utils._awx.api import Api
from ansible_collections.backstep.workers.plugins.module_utils._awx.applying import Applier
from ansible_collections.backstep.workers.plugins.module_utils._awx.workflows import apply_all
from ansible_collections.backstep.workers.plugins.module_utils._awx_args import AWX_OPTIONS
from ansible_collections.backstep.workers.plugins.module_utils._module import run


def work(module: AnsibleModule) -> dict[str, Any]:
    """Apply them, in their order."""
    params = module.params
    who = {key: params[key] for key in ("url", "prefix", "token", "user", "password", "ca_file", "timeout")}
    api = Api(**who)
    api.hide(*(str(value) for wanted in params["objects"] for value in wanted["secrets"].values()))
    applier = Applier(api, params["organization"], module.check_mode, params["renew_secrets"])
    apply_all(applier, params["objects"])
    return {"changed": bool(applier.actions), "actions": applier.actions, "diff": applier.diffs}


def main() -> None:
    """Wire options to work."""
    module = AnsibleModule(argument_spec=AWX_OPTIONS, supports_check_mode=True)
    run(module, lambda: work(module))


if __name__ == "__main__":
    main()
