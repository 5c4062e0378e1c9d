#!/usr/bin/python
# SPDX-FileCopyrightText: Backstep contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_lease
short_description: Take or give back the right to change a host during one rollout
version_added: 0.1.0
description:
  - Each host grants one lease at a time and refuses every step that carries an older number. No lock service is needed.
  - A rollback takes the lease of a deploy over; nothing takes over the lease of a rollback.
author:
  - Backstep contributors (@backstep)
extends_documentation_fragment:
  - backstep.workers.pool
  - backstep.workers.pool.host
attributes:
  diff_mode:
    support: none
options:
  state:
    description: Whether to take the lease or to give it back.
    type: str
    default: held
    choices: [held, released]
  rollout:
    description: The number of the rollout. It must be larger than all that the host has seen.
    type: int
    required: true
  kind:
    description: What the rollout does.
    type: str
    default: deploy
    choices: [deploy, rollback]
  owner:
    description:
      - Who asks, with C(run) (a name of this run alone), C(user), C(controller) and C(pid), and in AWX C(job). It is
        shown to whoever is refused.
      - A lease is given back only by the run that has taken it.
    type: dict
    required: true
  seconds:
    description: How long the lease lasts after the last step that was taken under it.
    type: float
    default: 300.0
  adopt:
    description: The C(run) of an owner that is known to be dead, whose lease may be taken over.
    type: str
    default: ''
  quarantine:
    description: A release that was found bad on another host, to be marked so here before the lease is given back.
    type: str
    default: ''
  prune:
    description: What was stored for a drill that is over, to be removed before the lease is given back.
    type: str
    default: ''
  reason:
    description: Why, for the journal.
    type: str
    default: ''
  observed:
    description:
      - What the rollout has seen of the queues and which tasks need care, for the journal, as from
        M(backstep.workers.rollout) with C(operation=observe). The report is made from it.
    type: dict
    default: {}
  journal_days:
    description:
      - After how many days lines of the journal are replaced by one that says what they add up to, when the lease is
        given back. V(0) keeps all; the last 500 always stay.
    type: float
    default: 0
  events:
    description:
      - How many of the last events of the journal to return in RV(pool_state) when the lease is given back, which saves
        asking M(backstep.workers.release_info) for them. V(0) returns no RV(pool_state).
    type: int
    default: 0
"""

EXAMPLES = r"""
- name: Take the lease for rollout 12
  backstep.workers.rollout_lease:
    pool: mail
    host: "{{ inventory_hostname }}"
    rollout: 12
    owner:
      run: 5f1d6c3e
      user: ana
      controller: ops1
      pid: 4711

- name: Give it back
  backstep.workers.rollout_lease:
    pool: mail
    host: "{{ inventory_hostname }}"
    rollout: 12
    owner:
      run: 5f1d6c3e
      user: ana
      controller: ops1
      pid: 4711
    state: released
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: dict
  returned: success
  sample: [{"action": "grant", "rollout": 12, "how": "granted"}]
rollout:
  description: The number that each step has to carry.
  type: int
  returned: success
  sample: 12
how:
  description: How the lease came about. V(kept) when this run held it already.
  type: str
  returned: with O(state=held)
  sample: granted
pool_state:
  description: The pool on this host, as RV(backstep.workers.release_info#module:pool_state).
  type: dict
  returned: with O(state=released) and O(events)
  sample: {"current": "2.4.0-3fa9c1d2", "current_state": "good", "events": []}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.backstep.workers.plugins.module_utils._host.clock import moment
from ansible_collections.backstep.workers.plugins.module_utils._host.info import describe_host
from ansible_collections.backstep.workers.plugins.module_utils._host.leasing import cut_journal, give_back, take
from ansible_collections.backstep.workers.plugins.module_utils._module import run
from ansible_collections.backstep.workers.plugins.module_utils._pool_args import POOL_OPTIONS, open_host


def work(module: AnsibleModule) -> dict[str, Any]:
    """Take the lease or give it back."""
    params = module.params
    host = open_host(params)
    if params["state"] == "released":
        actions = give_back(
            host,
            params["rollout"],
            params["owner"],
            params["quarantine"],
            params["reason"],
            module.check_mode,
            params["observed"],
            params["prune"],
        )
        if actions and not module.check_mode:
            cut_journal(host, params["journal_days"])
        found = {"pool_state": describe_host(host, events=params["events"])} if params["events"] else {}
        return {"changed": bool(actions), "actions": actions, "rollout": params["rollout"], **found}
    grant = take(
        host,
        moment(),
        rollout=params["rollout"],
        kind=params["kind"],
        owner=params["owner"],
        seconds=params["seconds"],
        adopt=params["adopt"],
        check_mode=module.check_mode,
    )
    kept = grant.how == "kept"
    actions = [] if kept else [{"action": "grant", "rollout": grant.token, "how": grant.how}]
    return {"changed": not kept, "actions": actions, "rollout": grant.token, "how": grant.how}


def main() -> None:
    """Wire options to work."""
    module = AnsibleModule(
        argument_spec={
            **POOL_OPTIONS,
            "state": {"type": "str", "default": "held", "choices": ["held", "released"]},
            "rollout": {"type": "int", "required": True},
            "kind": {"type": "str", "default": "deploy", "choices": ["deploy", "rollback"]},
            "owner": {"type": "dict", "required": True},
            "seconds": {"type": "float", "default": 300.0},
            "adopt": {"type": "str", "default": ""},
            "quarantine": {"type": "str", "default": ""},
            "prune": {"type": "str", "default": ""},
            "reason": {"type": "str", "default": ""},
            "observed": {"type": "dict", "default": {}},
            "journal_days": {"type": "float", "default": 0.0},
            "events": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    run(module, lambda: work(module))


if __name__ == "__main__":
    main()
