#!/usr/bin/python
# SPDX-FileCopyrightText: Backstep contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_hooks
short_description: Run the hooks that a staged release has for a step of a rollout
version_added: 0.1.0
description:
  - Runs the commands that were sealed with a release by M(backstep.workers.release) for one step, in their order, up to
    the first that doesn't go well. That one has failed is a result, and the module does not fail by it.
  - A hook that has gone well for this release is not run again by a run that is repeated. Hooks for the switch and the
    confirmation don't run on a host that is on the release already.
  - M(backstep.workers.release_switch) refuses to switch to a release whose hooks V(before_switch) have not gone well,
    M(backstep.workers.release_confirm) to confirm one whose hooks V(after_switch) and V(before_confirm) have not.
  - The hooks of the steps that are missing here are run by M(backstep.workers.release), and by the way back itself, as
    the host's guard has to run these too.
author:
  - Backstep contributors (@backstep)
extends_documentation_fragment:
  - backstep.workers.pool
  - backstep.workers.pool.host
options:
  release:
    description: The id of the release.
    type: str
    required: true
  step:
    description: The step.
    type: str
    required: true
    choices: [before_switch, after_switch, before_confirm, after_confirm]
  rollout:
    description: The number of the rollout that holds the lease of this host.
    type: int
    required: true
  hooks:
    description: The same as for M(backstep.workers.release). Only read in check mode, where the release may not be
      staged yet.
    type: dict
    default: {}
  once:
    description: Whether hooks that are meant for one host run on this one.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Run what has to run before the switch
  backstep.workers.release_hooks:
    pool: mail
    host: "{{ inventory_hostname }}"
    rollout: 12
    release: 2.4.0-3fa9c1d2
    step: before_switch
    once: "{{ inventory_hostname == ansible_play_hosts_all[0] }}"
"""

RETURN = r"""
actions:
  description: What was done, in this order, or would be done in check mode.
  type: list
  elements: dict
  returned: success
  sample: [{"action": "hook", "release": "2.4.0-3fa9c1d2", "step": "before_switch", "number": 1}]
release:
  description: The release.
  type: str
  returned: success
  sample: 2.4.0-3fa9c1d2
hooks:
  description:
    - How each hook has ended. C(outcome) is V(done), V(failed) (with C(code)), V(timeout) (killed with all that it had
      started) or V(not_run). C(output) is the end of what it said, with secrets hidden.
  type: list
  elements: dict
  returned: success
  sample: [{"step": "before_switch", "number": 1, "command": ["./check"], "outcome": "done", "code": 0, "output": ""}]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.backstep.workers.plugins.module_utils._hook_args import HOOK_OPTIONS, hooks_of
from ansible_collections.backstep.workers.plugins.module_utils._host.hooks import hook_host
from ansible_collections.backstep.workers.plugins.module_utils._module import run
from ansible_collections.backstep.workers.plugins.module_utils._pool_args import POOL_OPTIONS, open_host


def work(module: AnsibleModule) -> dict[str, Any]:
    """Run them."""
    params = module.params
    return hook_host(
        open_host(params),
        release=params["release"],
        step=params["step"],
        rollout=params["rollout"],
        once=params["once"],
        given=hooks_of(params["hooks"]),
        check_mode=module.check_mode,
    )


def main() -> None:
    """Wire options to work."""
    module = AnsibleModule(
        argument_spec={
            **POOL_OPTIONS,
            **HOOK_OPTIONS,
            "release": {"type": "str", "required": True},
            "step": {
                "type": "str",
                "required": True,
                "choices": ["before_switch", "after_switch", "before_confirm", "after_confirm"],
            },
            "rollout": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    run(module, lambda: work(module))


if __name__ == "__main__":
    main()
