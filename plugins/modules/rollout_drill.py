#!/usr/bin/python
# SPDX-FileCopyrightText: Backstep contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_drill
short_description: Note in a host's journal how a drill has ended
version_added: 0.1.0
description:
  - Status and metrics tell the last one. Nothing else on the host changes, and no lease is needed.
  - The role P(backstep.workers.pool#role) calls it at the end of a drill. It is no use on its own.
author:
  - Backstep contributors (@backstep)
extends_documentation_fragment:
  - backstep.workers.pool
  - backstep.workers.pool.host
attributes:
  diff_mode:
    support: none
options:
  rollout:
    description: The number of the rollout that was made to fail.
    type: int
    required: true
  kind:
    description: How it was made to fail.
    type: str
    required: true
    choices: [crash, never_consumes, late]
  ended:
    description: When it ended, in epoch seconds by the controller's clock.
    type: float
    required: true
  passed:
    description: Whether every host came back by itself with nothing lost.
    type: bool
    required: true
  times:
    description: How long it took, in seconds, by name. What is not known is null.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Note a drill that has passed
  backstep.workers.rollout_drill:
    pool: mail
    host: "{{ inventory_hostname }}"
    rollout: 12
    kind: crash
    ended: 1795243024.3
    passed: true
    times: {detect: 3.2, restore: 4.1}
"""

RETURN = r"""
drill:
  description: The last drill, as the journal has it. C(kind), C(token), C(ended) (epoch seconds) and C(passed).
  type: dict
  returned: success
  sample: {"kind": "crash", "token": 12, "ended": 1795243024.3, "passed": true}
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: dict
  returned: success
  sample: [{"action": "note_drill", "rollout": 12}]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.backstep.workers.plugins.module_utils._host.drilling import note_drill
from ansible_collections.backstep.workers.plugins.module_utils._module import run
from ansible_collections.backstep.workers.plugins.module_utils._pool_args import POOL_OPTIONS, open_host
from ansible_collections.backstep.workers.plugins.module_utils._rollout.drills import KINDS

OPTIONS = {
    "rollout": {"type": "int", "required": True},
    "kind": {"type": "str", "required": True, "choices": list(KINDS)},
    "ended": {"type": "float", "required": True},
    "passed": {"type": "bool", "required": True},
    "times": {"type": "dict", "default": {}},
}


def main() -> None:
    """Wire options to work."""
    module = AnsibleModule(argument_spec={**POOL_OPTIONS, **OPTIONS}, supports_check_mode=True)
    given = {name: module.params[name] for name in OPTIONS}
    run(module, lambda: note_drill(open_host(module.params), check_mode=module.check_mode, **given))


if __name__ == "__main__":
    main()
