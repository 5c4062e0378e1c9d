#!/usr/bin/python
# SPDX-FileCopyrightText: Backstep contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_notice
short_description: Note in a host's journal which notifications of a rollout's end were sent
version_added: 0.1.0
description:
  - What could not be sent stays noted, with what it says, so that any later run from any controller can send it.
  - It needs no lease, and changes nothing but the journal.
  - The role P(backstep.workers.pool#role) calls it. It is no use on its own.
author:
  - Backstep contributors (@backstep)
extends_documentation_fragment:
  - backstep.workers.pool
  - backstep.workers.pool.host
attributes:
  diff_mode:
    support: none
options:
  notices:
    description: As M(backstep.workers.rollout_notification) returns them.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Keep what was sent, and what wasn't
  backstep.workers.rollout_notice:
    pool: mail
    host: "{{ inventory_hostname }}"
    notices: "{{ notified.notices }}"
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: dict
  returned: success
  sample: [{"action": "note", "id": "mail-12", "left": []}]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.backstep.workers.plugins.module_utils._host.noticing import note_notices
from ansible_collections.backstep.workers.plugins.module_utils._module import run
from ansible_collections.backstep.workers.plugins.module_utils._pool_args import POOL_OPTIONS, open_host


def work(module: AnsibleModule) -> dict[str, Any]:
    """Note them."""
    actions = note_notices(open_host(module.params), module.params["notices"], module.check_mode)
    return {"changed": bool(actions), "actions": actions}


def main() -> None:
    """Wire options to work."""
    module = AnsibleModule(
        argument_spec={**POOL_OPTIONS, "notices": {"type": "list", "elements": "dict", "required": True}},
        supports_check_mode=True,
    )
    run(module, lambda: work(module))


if __name__ == "__main__":
    main()
