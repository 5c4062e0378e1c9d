#!/usr/bin/python
# SPDX-FileCopyrightText: Backstep contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_confirm
short_description: Make the release that a host was switched to its good one
version_added: 0.1.0
description:
  - Has the release start at boot, writes into the journal that it is good, takes the guard back, and lets go what ran
    before.
  - It waits for no task. What still has one when the release is confirmed drains in peace, and a reaper on the host
    lets it go afterwards. C(timeout) of O(drain) counts from the confirmation, and only V(kill) and V(requeue) of
    C(on_timeout) end anything then.
  - After a rollback it confirms the release that the host went back to.
  - Refused when the guard has already taken the host back.
author:
  - Backstep contributors (@backstep)
extends_documentation_fragment:
  - backstep.workers.pool
  - backstep.workers.pool.host
  - backstep.workers.pool.drain
attributes:
  diff_mode:
    support: full
options:
  release:
    description: The id of the release to confirm. Empty after a rollback of a first deployment, which leaves nothing
      running.
    type: str
    required: true
  rollout:
    description: The number of the rollout that has switched this host.
    type: int
    required: true
  keep:
    description: How many good releases to keep besides the current one, at least 1.
    type: int
    default: 3
  left:
    description: The release that a way back has left. Only read in check mode, where the journal doesn't have it.
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: Confirm a release
  backstep.workers.release_confirm:
    pool: mail
    host: "{{ inventory_hostname }}"
    rollout: 12
    release: 2.4.0-3fa9c1d2
"""

RETURN = r"""
actions:
  description: What was done, in this order, or would be done in check mode.
  type: list
  elements: dict
  returned: success
  sample: [{"action": "enable", "release": "2.4.0-3fa9c1d2"}, {"action": "commit", "release": "2.4.0-3fa9c1d2"}]
release:
  description: The release that is good now.
  type: str
  returned: success
  sample: 2.4.0-3fa9c1d2
before:
  description: The release that the host was on.
  type: str
  returned: success
  sample: 2.4.0-3fa9c1d2
hooks:
  description: How each hook after a rollback has ended, as from M(backstep.workers.release_hooks). One that fails
    doesn't stop it.
  type: list
  elements: dict
  returned: success
  sample: []
drained:
  description: How the releases that ran before are drained. C(release), C(outcome) (C(clean), or C(draining) while the
    reaper waits for it), C(waited) (seconds) and C(running).
  type: list
  elements: dict
  returned: success
  sample: [{"release": "2.3.0-11d0a7b2", "outcome": "clean", "waited": 1.2, "running": []}]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.backstep.workers.plugins.module_utils._host.moving import confirm_host
from ansible_collections.backstep.workers.plugins.module_utils._module import run
from ansible_collections.backstep.workers.plugins.module_utils._pool_args import (
    DRAIN_OPTIONS,
    POOL_OPTIONS,
    open_host,
    terms_of,
)


def work(module: AnsibleModule) -> dict[str, Any]:
    """Confirm."""
    params = module.params
    return confirm_host(
        open_host(params),
        terms_of(params),
        release=params["release"],
        rollout=params["rollout"],
        check_mode=module.check_mode,
        left=params["left"],
    )


def main() -> None:
    """Wire options to work."""
    module = AnsibleModule(
        argument_spec={
            **POOL_OPTIONS,
            **DRAIN_OPTIONS,
            "release": {"type": "str", "required": True},
            "rollout": {"type": "int", "required": True},
            "keep": {"type": "int", "default": 3},
            "left": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    run(module, lambda: work(module))


if __name__ == "__main__":
    main()
