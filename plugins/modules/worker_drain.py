#!/usr/bin/python
# SPDX-FileCopyrightText: Backstep contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: worker_drain
short_description: Have the workers of a release finish their tasks and stop
version_added: 0.1.0
description:
  - Quiets the workers of a release, then waits until no process of it is left, by one deadline.
  - The proof is the process table of the host, not an exit status. Each worker that still has a task at the deadline
    is named, and with
    O(broker_url) each task.
author:
  - Backstep contributors (@backstep)
extends_documentation_fragment:
  - backstep.workers.pool
  - backstep.workers.pool.host
  - backstep.workers.pool.drain
  - backstep.workers.pool.progress
attributes:
  diff_mode:
    support: none
options:
  state:
    description: V(drained) brings the workers to rest; V(running) has them take tasks again.
    type: str
    default: drained
    choices: [drained, running]
  release:
    description: The id of the release. The default is the current one.
    type: str
    default: ''
  rollout:
    description: The number of the rollout that holds the lease of this host; V(0) outside of a rollout, which is
      refused during one.
    type: int
    default: 0
  broker_url:
    description:
      - The URL of the broker. With it the controller tells how many tasks are left while it waits, names those that
        still execute at the deadline, and with O(drain.on_timeout=requeue) puts the tasks of killed workers back.
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: Bring the workers of a host to rest before it is rebooted
  backstep.workers.worker_drain:
    pool: mail
    host: "{{ inventory_hostname }}"
    drain:
      timeout: 600

- name: Have them take tasks again
  backstep.workers.worker_drain:
    pool: mail
    host: "{{ inventory_hostname }}"
    state: running
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: dict
  returned: success
  sample: [{"action": "drain", "release": "2.4.0-3fa9c1d2", "seconds": 300.0, "policy": "abort"}]
release:
  description: The release.
  type: str
  returned: success
  sample: 2.4.0-3fa9c1d2
outcome:
  description: V(clean), V(left), V(killed), or V(unchecked) in check mode.
  type: str
  returned: with O(state=drained)
  sample: clean
waited:
  description: How many seconds the drain took.
  type: float
  returned: with O(state=drained)
  sample: 3.2
running:
  description: The workers that still had a task at the deadline. C(worker), C(pids), C(seconds) (how long the process
    has run).
  type: list
  elements: dict
  returned: with O(state=drained)
  sample: []
tasks:
  description: The tasks that those workers were executing. C(id), C(name), C(queue), C(worker) and C(started) (epoch
    seconds).
  type: list
  elements: dict
  returned: with O(broker_url), when the drain was not clean
  sample: []
recovered:
  description: The tasks of killed workers that were put back and may run twice, as from M(backstep.workers.task_move).
  type: list
  elements: dict
  returned: with O(broker_url) and O(drain.on_timeout=requeue), when workers were killed
  sample: []
still:
  description: How far a drain is that is not over. C(release), C(waited) and C(left) (seconds since it began, and until
    its deadline), C(running) (the workers that have a task) and C(counts) (how many there were before).
  type: dict
  returned: with O(part_seconds), when the drain takes longer
  sample: {"release": "2.3.0-11d0a7b2", "waited": 10.0, "left": 290.0, "running": [], "counts": [[2.0, 3]]}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.backstep.workers.plugins.module_utils._host.moving import drain_host, resume_host
from ansible_collections.backstep.workers.plugins.module_utils._module import run
from ansible_collections.backstep.workers.plugins.module_utils._pool_args import (
    DRAIN_OPTIONS,
    POOL_OPTIONS,
    PROGRESS_OPTIONS,
    open_host,
    part_of,
)


def work(module: AnsibleModule) -> dict[str, Any]:
    """Drain, or take tasks again."""
    params = module.params
    common = {"release": params["release"], "rollout": params["rollout"], "check_mode": module.check_mode}
    if params["state"] == "running":
        return resume_host(open_host(params), **common)
    seconds, policy = params["drain"]["timeout"], params["drain"]["on_timeout"]
    return drain_host(open_host(params), seconds=seconds, policy=policy, part=part_of(params), **common)


def main() -> None:
    """Wire options to work. The broker's options are the action plugin's: no worker host needs a client library."""
    module = AnsibleModule(
        argument_spec={
            **POOL_OPTIONS,
            **DRAIN_OPTIONS,
            **PROGRESS_OPTIONS,
            "state": {"type": "str", "default": "drained", "choices": ["drained", "running"]},
            "release": {"type": "str", "default": ""},
            "rollout": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    run(module, lambda: work(module))


if __name__ == "__main__":
    main()
