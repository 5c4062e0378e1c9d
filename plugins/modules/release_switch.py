#!/usr/bin/python
# SPDX-FileCopyrightText: Backstep contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_switch
short_description: Move a host to a staged release, or back to the last good one
version_added: 0.1.0
description:
  - Arms the host's guard, starts the new release beside the old one or after it, and points C(current) to it.
  - The release is not good before M(backstep.workers.release_confirm) has confirmed it. Until then the guard takes
    the host back by itself
    when the time is up, also when the controller or the network has died, and at the next boot.
  - With O(release=previous) the host goes back to where its journal says. The release that it leaves is quarantined
    if O(verdict=bad).
  - Under the lease of a deploy, O(release=previous) is where that deploy has found the host, unless O(to) is given.
  - A release that is brought back has to stay up before the other one is told to stop. If it can't, the module fails,
    what runs goes on, and the host is marked as needing a person.
author:
  - Backstep contributors (@backstep)
extends_documentation_fragment:
  - backstep.workers.pool
  - backstep.workers.pool.host
  - backstep.workers.pool.drain
  - backstep.workers.pool.progress
attributes:
  diff_mode:
    support: full
options:
  release:
    description:
      - The id of a release that is staged on this host, or V(previous).
    type: str
    required: true
  to:
    description: With O(release=previous), a good release other than the last one.
    type: str
    default: ''
  rollout:
    description: The number of the rollout that holds the lease of this host.
    type: int
    required: true
  owner:
    description:
      - With O(release=previous), take the lease in the same call, for this owner (see
        M(backstep.workers.rollout_lease)).
    type: dict
  adopt:
    description: The C(run) of an owner that is known to be dead, whose lease may be taken over.
    type: str
    default: ''
  seconds:
    description: How long a lease that is taken with O(owner) lasts after the last step.
    type: float
    default: 300.0
  mode:
    description: V(overlap) starts the new release before the old one is quieted; V(replace) drains the old one first.
    type: str
    default: overlap
    choices: [overlap, replace]
  confirm_timeout:
    description: After how many seconds without a confirmation the guard takes the host back.
    type: float
    default: 600.0
  verdict:
    description: With O(release=previous), what was found of the release that is left. V(bad) makes it never a target
      again.
    type: str
    default: unknown
    choices: [bad, unknown]
  reason:
    description: Why, for the journal.
    type: str
    default: ''
  cross_barrier:
    description:
      - With O(release=previous), whether the way may lead out of a release that declares that it can't be undone (see
        the option O(backstep.workers.release#module:rollback_barrier) of M(backstep.workers.release)).
      - Without it such a way back is refused, the host goes on consuming where it is, and its guard leaves it there.
    type: bool
    default: false
  rollback_barrier:
    description: The same as for M(backstep.workers.release). Only read in check mode, where the release may not be
      staged yet.
    type: str
    default: ''
  hooks:
    description: The same as for M(backstep.workers.release). Only read in check mode, where the release may not be
      staged yet.
    type: dict
    default: {}
  scheduler:
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
- name: Switch to a staged release
  backstep.workers.release_switch:
    pool: mail
    host: "{{ inventory_hostname }}"
    rollout: 12
    release: 2.4.0-3fa9c1d2

- name: Go back to the last good release
  backstep.workers.release_switch:
    pool: mail
    host: "{{ inventory_hostname }}"
    rollout: 13
    release: previous
    verdict: bad
    reason: half of the mails fail
    owner:
      run: 77aa12c9
      user: ana
      controller: ops1
      pid: 4712
"""

RETURN = r"""
actions:
  description: What was done, in this order, or would be done in check mode.
  type: list
  elements: dict
  returned: success
  sample: [{"action": "arm_guard", "release": "2.3.0-11d0a7b2"}, {"action": "start", "release": "2.4.0-3fa9c1d2"}]
release:
  description: The release that the host is on now, or would be; empty when nothing runs.
  type: str
  returned: success
  sample: 2.4.0-3fa9c1d2
before:
  description: The release that the host was on; empty when there was none.
  type: str
  returned: success
  sample: 2.3.0-11d0a7b2
drained:
  description: How draining ended, per release. C(release), C(outcome), C(waited) (seconds) and C(running).
  type: list
  elements: dict
  returned: success
  sample: []
hooks:
  description: How each hook of the way back has ended, as from M(backstep.workers.release_hooks). One that fails
    doesn't stop it.
  type: list
  elements: dict
  returned: success
  sample: []
scheduler:
  description: >-
    How the scheduler was handed over on this host. C(release) (whose scheduler should run,
    null for none any more), C(runs) (whether it does), C(waited) (seconds) and C(killed) (those that didn't end in
    time).
  type: dict
  returned: when there is one to hand over
  sample: {"release": "2.4.0-3fa9c1d2", "runs": true, "waited": 0.4, "killed": []}
left:
  description: With O(release=previous), the release that is left; empty when there is none.
  type: str
  returned: success
  sample: 2.4.0-3fa9c1d2
evidence:
  description: >-
    With O(release=previous), what was seen of the workers that were brought back, as
    M(backstep.workers.release_info) returns it.
  type: dict
  returned: success
  sample: {"outcome": "ok", "release": "2.3.0-11d0a7b2", "problems": [], "processes": []}
still:
  description: How far a drain is that is not over. C(release), C(waited) and C(left) (seconds since it began, and until
    its deadline), C(running) (the workers that have a task) and C(counts) (how many there were before).
  type: dict
  returned: with O(part_seconds), when the drain takes longer
  sample: {"release": "2.3.0-11d0a7b2", "waited": 10.0, "left": 290.0, "running": [], "counts": [[2.0, 3]]}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.backstep.workers.plugins.module_utils._hook_args import HOOK_OPTIONS, hooks_of
from ansible_collections.backstep.workers.plugins.module_utils._host.moving import switch_host
from ansible_collections.backstep.workers.plugins.module_utils._module import run
from ansible_collections.backstep.workers.plugins.module_utils._pool_args import (
    DRAIN_OPTIONS,
    POOL_OPTIONS,
    PROGRESS_OPTIONS,
    open_host,
    terms_of,
)
from ansible_collections.backstep.workers.plugins.module_utils._scheduler_args import SCHEDULER_OPTIONS, scheduler_of


def work(module: AnsibleModule) -> dict[str, Any]:
    """Switch, or go back."""
    params = module.params
    return switch_host(
        open_host(params),
        terms_of(params),
        release=params["release"],
        wish=params["to"],
        rollout=params["rollout"],
        owner=params["owner"],
        adopt=params["adopt"],
        lease_seconds=params["seconds"],
        verdict=params["verdict"],
        reason=params["reason"],
        check_mode=module.check_mode,
        cross_barrier=params["cross_barrier"],
        barrier=params["rollback_barrier"],
        given_hooks=hooks_of(params["hooks"]),
        scheduler=scheduler_of(params["scheduler"]),
    )


def main() -> None:
    """Wire options to work."""
    module = AnsibleModule(
        argument_spec={
            **POOL_OPTIONS,
            **DRAIN_OPTIONS,
            **PROGRESS_OPTIONS,
            "release": {"type": "str", "required": True},
            "to": {"type": "str", "default": ""},
            "rollout": {"type": "int", "required": True},
            "owner": {"type": "dict"},
            "adopt": {"type": "str", "default": ""},
            "seconds": {"type": "float", "default": 300.0},
            "mode": {"type": "str", "default": "overlap", "choices": ["overlap", "replace"]},
            "confirm_timeout": {"type": "float", "default": 600.0},
            "verdict": {"type": "str", "default": "unknown", "choices": ["bad", "unknown"]},
            "reason": {"type": "str", "default": ""},
            "cross_barrier": {"type": "bool", "default": False},
            "rollback_barrier": {"type": "str", "default": ""},
            **HOOK_OPTIONS,
            **SCHEDULER_OPTIONS,
        },
        supports_check_mode=True,
    )
    run(module, lambda: work(module))


if __name__ == "__main__":
    main()
