#!/usr/bin/python
# SPDX-FileCopyrightText: Backstep contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_info
short_description: Count a pool's tasks by state, and tell which workers take them
version_added: 0.1.0
description:
  - Reads the state of queues, the workers that are registered, what they execute, and whether the queues are paused.
  - Changes nothing in the broker, and loads no task's payload.
  - A broker that can't be read is a failure. It is never reported as empty.
author:
  - Backstep contributors (@backstep)
extends_documentation_fragment:
  - backstep.workers.pool
  - backstep.workers.broker
attributes:
  diff_mode:
    support: none
options:
  queues:
    description:
      - The queues to count. An item may be a list of queues that one process listens to.
      - Empty means every queue that the broker knows.
    type: list
    elements: raw
    default: []
  prove_rights:
    description:
      - Whether to also prove that the broker's user may pause and move tasks. What this writes is gone within
        the same step.
      - Not done in check mode.
    type: bool
    default: false
  names:
    description:
      - Whether to also tell the tasks by their names. Each of them is looked at for that, within the broker.
      - RabbitMQ has no way to look. There, the first 10,000 tasks of each queue are taken for a moment and put back,
        which counts as a delivery of each, and the names of the others aren't told. In a quorum queue, which limits
        deliveries, none is taken, and no name told.
    type: bool
    default: false
  forecast:
    description:
      - Whether to also tell which tasks would be lost with a worker that is killed.
    type: bool
    default: false
  details:
    description:
      - Whether to also tell which tasks are dead, by kind, and who has parked what is parked. It looks at each of them.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: See what waits
  backstep.workers.queue_info:
    engine: rq
    broker_url: redis://redis.example.org:6379/0
    queues: [mail, reports]
  register: broker
  delegate_to: localhost
"""

RETURN = r"""
queues:
  description: >-
    By queue the number of tasks that are C(waiting), C(scheduled), C(executing), C(retrying), C(dead), C(parked),
    C(abandoned) (held
    by a worker that is gone) and C(deferred), C(oldest_waiting_seconds), and C(workers) that listen. What the
    engine can't tell is null.
  type: dict
  returned: success
  sample: {"mail": {"waiting": 12, "executing": 4, "dead": 0, "oldest_waiting_seconds": 0.8, "workers": 4}}
workers:
  description: >-
    The registered workers. C(name), C(parsed) (C(pool), C(release), C(host), C(index), C(pid), or null),
    C(queues), C(state),
    C(pid), C(hostname), C(birth) and C(last_heartbeat) (epoch seconds), C(current_task), C(finished), C(failed) (null
    where the engine doesn't count failures), C(connected).
  type: list
  elements: dict
  returned: success
  sample: [{"name": "mail/2.4.0-3fa9c1d2/w1/1/4711", "queues": ["mail"], "state": "idle", "finished": 12, "failed": 0}]
executing:
  description: Tasks that workers hold. C(id), C(task) (its name), C(queue), C(worker), C(started) (epoch seconds).
  type: list
  elements: dict
  returned: success
  sample: [{"id": "6f1c", "task": "mail.send", "queue": "mail", "started": 1795243024.3}]
tasks:
  description: >-
    Every task by its name, sorted by C(queue), C(state) (V(executing) stands for V(abandoned) too) and C(task) (the
    name, or null for those that don't tell it); C(count), and C(oldest) (when the oldest was enqueued, in epoch
    seconds, or null).
  type: list
  elements: dict
  returned: with O(names=true)
  sample: [{"queue": "mail", "state": "waiting", "task": "mail.send", "count": 12, "oldest": 1795243024.3}]
paused:
  description: >-
    The pause. C(paused), C(by_person) (somebody else than Backstep made it), C(owner), C(since) and C(expires_in)
    (seconds) of the lease.
  type: dict
  returned: success
  sample: {"paused": false, "by_person": false, "owner": null, "since": null, "expires_in": null}
capabilities:
  description: >-
    What this engine's mechanisms are like. C(pause_scope) (V(process), V(queue), V(broker) or V(none)),
    C(pause_survives_worker_restart), C(pause_survives_broker_restart), C(quiet_can_be_undone),
    C(uncountable_states) (the states that are null), C(counts_failures), C(kill_effect) (what SIGKILL does to an
    executing task, which it V(loses), V(repeats) or V(sticks)), C(stuck_seconds) (until what a killed worker had
    taken comes back by itself, or null), C(unknown_task) (V(dead), V(lost), V(retried), V(done) or
    V(parked)),
    C(put_back) (what is replayed or recovered goes V(first) or V(last)).
  type: dict
  returned: success
  sample: {"pause_scope": "broker", "uncountable_states": [], "kill_effect": "sticks", "unknown_task": "parked"}
server:
  description:
    - The broker. C(version), C(role), C(address) (of the server that answered, under Sentinel the master), C(uptime)
      (seconds; null where that isn't told), C(time) (epoch seconds).
  type: dict
  returned: success
  sample: {"version": "7.0.15", "role": "master", "address": "10.0.0.7:6379", "uptime": 86400}
asked:
  description: When the broker was asked, by the clock of the machine that has asked it (epoch seconds).
  type: float
  returned: success
  sample: 1795243024.3
gates:
  description: The gates in this broker, by their tasks' names, as from M(backstep.workers.task_gate).
  type: dict
  returned: success
  sample: {"mail.tasks.send_invoice": {"open": 10.0, "by": "ana", "reason": "new in 2.4.0", "retired": false}}
routes:
  description: >-
    The routes in this broker, by their queues, also those that are over, as from M(backstep.workers.queue_route).
  type: dict
  returned: success
  sample: {}
effects:
  description: >-
    What rollouts have done to the queues and nobody has ended yet, of all pools, the newest first. C(unit) (C(pool),
    C(rollout), C(leaves), C(leads_to)), C(kind) (V(park), V(gate), V(pause) or V(route)), C(what), C(inverse) and C(at)
    (epoch seconds). M(backstep.workers.queue_effects) ends them.
  type: list
  elements: dict
  returned: success
  sample: []
dead:
  description: >-
    The dead tasks by kind, as from M(backstep.workers.task_move). C(queue), C(task), C(error) (its kind), C(release)
    (or null), C(count), C(first), C(last) and C(expires) (epoch seconds, or null).
  type: list
  elements: dict
  returned: with O(details=true)
  sample: []
parked_by:
  description: Who has parked what is parked. Owners, gates, and the names of workers that did so by themselves.
  type: list
  elements: str
  returned: with O(details=true)
  sample: [rollout 12]
lost_when_killed:
  description:
    - Names of the tasks that are lost when a worker is killed while it executes them, as the living workers say it.
      Empty where none lives, and where the engine loses none.
  type: list
  elements: str
  returned: with O(forecast=true)
  sample: [mail.send]
actions:
  description: Always empty, as this module changes nothing.
  type: list
  elements: dict
  returned: success
  sample: []
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.backstep.workers.plugins.module_utils._broker_args import (
    BROKER_OPTIONS,
    as_result,
    open_broker,
    queue_names,
)
from ansible_collections.backstep.workers.plugins.module_utils._module import run
from ansible_collections.backstep.workers.plugins.module_utils._queue.effects import noted
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.gating import gates
from ansible_collections.backstep.workers.plugins.module_utils._queue.routing import routes
from ansible_collections.backstep.workers.plugins.module_utils._queue.triage import groups


def work(module: AnsibleModule) -> dict[str, Any]:
    """Read everything."""
    params = module.params
    with open_broker(params) as engine:
        server = engine.check(write=params["prove_rights"] and not module.check_mode)
        queues = queue_names(params["queues"]) if params["queues"] else engine.known_queues()
        return {
            "asked": time.time(),
            "changed": False,
            "actions": [],
            "server": server,
            "queues": {state.queue: as_result(state) for state in engine.queue_states(queues)},
            "workers": [as_result(worker) for worker in engine.workers()],
            "executing": [as_result(task) for task in engine.executing(queues)],
            "paused": as_result(engine.pause_state()),
            "capabilities": as_result(engine.capabilities),
            "gates": {task: as_result(gate) for task, gate in sorted(gates(engine).items())},
            "routes": {queue: as_result(route) for queue, route in sorted(routes(engine).items())},
            "effects": [as_result(effect) for effect in noted(engine)],
            **(_details(engine, queues) if params["details"] else {}),
            **({"tasks": [as_result(some) for some in engine.named_tasks(queues)]} if params["names"] else {}),
            **({"lost_when_killed": engine.lost_when_killed()} if params["forecast"] else {}),
        }


def _details(engine: Engine, queues: list[str]) -> dict[str, Any]:
    return {"dead": groups(engine.dead_tasks(queues)), "parked_by": sorted(engine.parked_by(queues))}


def main() -> None:
    """Wire options to work."""
    module = AnsibleModule(
        argument_spec={
            **BROKER_OPTIONS,
            "queues": {"type": "list", "elements": "raw", "default": []},
            "prove_rights": {"type": "bool", "default": False},
            "names": {"type": "bool", "default": False},
            "forecast": {"type": "bool", "default": False},
            "details": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    run(module, lambda: work(module))


if __name__ == "__main__":
    main()
