#!/usr/bin/python
# SPDX-FileCopyrightText: Backstep contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_info
short_description: Tell what a pool's releases on a host are, and what really runs
version_added: 0.1.0
description:
  - Returns the state of a pool on a host as its journal adds up to, and the workers as the processes themselves
    report them.
  - Can watch the workers of a release for some seconds and return evidence for RV(evidence).
author:
  - Backstep contributors (@backstep)
extends_documentation_fragment:
  - backstep.workers.pool
  - backstep.workers.pool.host
attributes:
  diff_mode:
    support: none
options:
  events:
    description:
      - How many of the last events of the journal to return. What was seen of the queues in rollouts before the last
        one is left out of them.
    type: int
    default: 0
  verify:
    description: Whether to check every good release, and the units of the current one, byte for byte.
    type: bool
    default: false
  to:
    description: The release that a rollback would be asked for; empty, or V(previous), means the last good one.
    type: str
    default: ''
  tasks:
    description: Names of tasks that O(known_by) may not know. Empty means that it isn't asked.
    type: list
    elements: str
    default: []
  known_by:
    description: Which release to ask for O(tasks), the one to which a rollback would go, or the current one.
    type: str
    default: target
    choices: [target, current]
  watch:
    description: The release whose workers to watch. Empty means not to watch.
    type: str
    default: ''
  seconds:
    description: How many seconds each worker of O(watch) has to stay up.
    type: float
    default: 0.0
"""

EXAMPLES = r"""
- name: See what runs
  backstep.workers.release_info:
    pool: mail
    host: "{{ inventory_hostname }}"
    verify: true
  register: mail
"""

RETURN = r"""
pool_state:
  description: >-
    The pool on this host. C(current), C(current_state), C(since) (epoch seconds), C(running) (processes by the
    release that they
    report), C(processes), C(link), C(releases), C(good) (the latest first), C(rollout), C(guard_armed),
    C(guard_seconds_left) (until it takes the host back, or null), C(lease),
    C(scheduler) (C(release) and C(pid) of the one that runs here, C(host) and C(period) of the one that should; null
    where there is none), C(draining) (releases that were left with tasks to end), C(reaped) (those of which every
    process has ended since), C(last_token),
    C(rollback) (C(target), C(needed), C(problem)), C(tells_tasks) (whether that target or the current release can be
    asked which tasks it can run), C(queues) (that the current release listens to), C(back_queues) (that the target
    listens to), C(problems), C(clock) (epoch seconds), C(last_events) (when the journal noted the last
    C(confirmed), C(rolled_back), C(rollback_failed) and C(guard_fired), epoch seconds) and C(events).
  type: dict
  returned: success
  sample: {"current": "2.4.0-3fa9c1d2", "current_state": "good", "running": {"2.4.0-3fa9c1d2": 4}}
unknown_tasks:
  description: >-
    Which of O(tasks) the release can't run. C(release), C(tasks) (their names, or null when nobody can tell),
    C(problem) (why nobody can), C(changed) (those of them that it knows with other arguments, with the version in which
    the current release enqueues them, or, where the current one is asked, those stored after it) and C(since) (since
    when the current release is the current one, epoch seconds, or null).
  type: dict
  returned: when O(tasks) is given
  sample:
    {"release": "2.3.0-11d0a7b2", "tasks": ["mail.send_later"], "problem": "", "changed": {}, "since": 1795230000.5}
evidence:
  description: >-
    What watching showed. C(outcome) is V(ok) or V(failed), C(problems) says why, C(processes) lists C(index),
    C(worker), C(pid),
    C(state), C(uptime) (seconds), C(restarts) and C(reports) (a release), C(scheduler) is the same of the scheduler, or
    null. C(unreachable) says why this host has no connection to the broker, and is empty when it has one.
  type: dict
  returned: when O(watch) is given
  sample: {"host": "w1", "release": "2.4.0-3fa9c1d2", "bake": 10.0, "outcome": "ok", "problems": []}
actions:
  description: Always empty, as this module changes nothing.
  type: list
  elements: dict
  returned: success
  sample: []
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.backstep.workers.plugins.module_utils._host.info import as_started, describe_host, watch
from ansible_collections.backstep.workers.plugins.module_utils._host.manifest import stranded_tasks
from ansible_collections.backstep.workers.plugins.module_utils._host.reaching import unreachable
from ansible_collections.backstep.workers.plugins.module_utils._module import run
from ansible_collections.backstep.workers.plugins.module_utils._pool_args import POOL_OPTIONS, open_host


def work(module: AnsibleModule) -> dict[str, Any]:
    """Look, and watch when asked to."""
    params = module.params
    host = open_host(params)
    result: dict[str, Any] = {"changed": False, "actions": []}
    if params["watch"] and not module.check_mode:
        seen = watch(host, params["watch"], params["seconds"], as_started(host, params["watch"]))
        result["evidence"] = {**seen, "unreachable": unreachable(host, params["watch"])}
    result["pool_state"] = describe_host(host, events=params["events"], verify=params["verify"], wish=params["to"])
    if params["tasks"]:
        of_current = params["known_by"] == "current"
        result["unknown_tasks"] = stranded_tasks(host, result["pool_state"], params["tasks"], of_current)
    return result


def main() -> None:
    """Wire options to work."""
    module = AnsibleModule(
        argument_spec={
            **POOL_OPTIONS,
            "events": {"type": "int", "default": 0},
            "verify": {"type": "bool", "default": False},
            "to": {"type": "str", "default": ""},
            "tasks": {"type": "list", "elements": "str", "default": []},
            "known_by": {"type": "str", "default": "target", "choices": ["target", "current"]},
            "watch": {"type": "str", "default": ""},
            "seconds": {"type": "float", "default": 0.0},
        },
        supports_check_mode=True,
    )
    run(module, lambda: work(module))


if __name__ == "__main__":
    main()
