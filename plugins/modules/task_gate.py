#!/usr/bin/python
# SPDX-FileCopyrightText: Backstep contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: task_gate
short_description: Let workers execute only a share of the tasks of one name, and park the others
version_added: 0.1.0
description:
  - A gate is kept in the broker, as durably as a task, and holds for all workers there until it is set again.
  - What a gate doesn't let pass is parked by the worker that has taken it, whole and in its order. When the gate opens
    further, what passes then is put back. Nothing is lost, and nothing else that is parked is moved.
  - A task passes by its id alone, so all workers agree, and what passes at 10 % passes at 20 % as well.
  - It doesn't return before every living worker of the queues keeps to the gate. What a worker has taken already, also
    ahead, it still executes.
  - Workers of Celery, Dramatiq, RQ and Sidekiq that Backstep has deployed keep gates, unless C(KEEP_GATES) is V(no) in
    their environment. Those of BullMQ, Redis Streams and plain RabbitMQ are programs of the app's own, and do once they
    ask a file that each release gets (C(docs/engines.md)). If any worker of the queues doesn't, a gate that would hold
    something is refused.
  - A rollback closes gates before it does anything else; see O(on_rollback). They stay so until somebody opens them.
author:
  - Backstep contributors (@backstep)
extends_documentation_fragment:
  - backstep.workers.pool
  - backstep.workers.broker
  - backstep.workers.effects
attributes:
  diff_mode:
    support: full
options:
  operation:
    description:
      - V(set) sets how many per cent pass (O(open)).
      - V(remove) takes the gate away, so that all tasks pass.
      - V(retire) closes the gate for good. The name is never to be used again, which is refused from then on. A release
        that has a task of this name isn't deployed any more.
      - V(reinstate) takes back what was retired by mistake; the gate stays closed until it is set or removed.
      - V(close) closes all gates that a rollback closes (O(on_rollback=close)), whatever their names are.
    type: str
    default: set
    choices: [set, remove, retire, reinstate, close]
  task:
    description: The tasks' name, as M(backstep.workers.queue_info) tells it. Required but for O(operation=close).
    type: str
  open:
    description: How many per cent of these tasks pass, from V(0) to V(100), in steps of a hundredth.
    type: float
  queues:
    description:
      - The queues in which these tasks are, whose workers have to keep to the gate.
      - An item may be a list of queues that one process listens to.
    type: list
    elements: raw
    required: true
  on_rollback:
    description:
      - What a rollback of a pool in this broker does to the gate. V(close) is for a task that is being introduced,
        V(keep) for one that is held for other reasons.
    type: str
    default: close
    choices: [close, keep]
  owner:
    description: Who sets it, for whoever finds it.
    type: str
    required: true
  reason:
    description: Why, for whoever finds it. It is noted with each task that is parked.
    type: str
    default: ''
  wait:
    description: How many seconds workers have to tell that they keep to the gate; it is a failure when one doesn't.
    type: float
    default: 30.0
"""

EXAMPLES = r"""
- name: Let a tenth of the new tasks through
  backstep.workers.task_gate:
    engine: celery
    broker_url: redis://redis.example.org:6379/0
    queues: [mail]
    task: mail.tasks.send_invoice
    open: 10
    owner: ana
    reason: new in 2.4.0
  delegate_to: localhost

- name: See to it that nobody uses this name again
  backstep.workers.task_gate:
    engine: celery
    broker_url: redis://redis.example.org:6379/0
    queues: [mail]
    operation: retire
    task: mail.tasks.send_fax
    owner: ana
    reason: gone with 3.0
  delegate_to: localhost
"""

RETURN = r"""
gates:
  description: >-
    All gates in this broker, by their tasks' names. C(open) (per cent), C(by), C(at) (epoch seconds), C(reason),
    C(on_rollback), C(retired).
  type: dict
  returned: success
  sample: {"mail.tasks.send_invoice": {"open": 10.0, "by": "ana", "reason": "new in 2.4.0", "retired": false}}
moved:
  description: >-
    The tasks that were put back, or would be. C(count), C(by_queue), C(ids) (at most 1,000 of them), C(cut) (whether
    there are more), C(before) and C(after) (how many were, and are, in which state), C(tasks) (by name).
  type: dict
  returned: success
  sample: {"count": 2, "by_queue": {"mail": 2}, "ids": ["6f1c", "7a2d"], "cut": false}
actions:
  description: >-
    What was done, or would be done in check mode. C(action) is C(gate), with C(task), C(open) and C(before) (per cent),
    or C(replay), with C(queue) and C(count).
  type: list
  elements: dict
  returned: success
  sample: [{"action": "gate", "task": "mail.tasks.send_invoice", "before": 0.0, "open": 10.0}]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.backstep.workers.plugins.module_utils._broker_args import (
    BROKER_OPTIONS,
    as_result,
    open_broker,
    queue_names,
)
from ansible_collections.backstep.workers.plugins.module_utils._effect_args import EFFECT_OPTIONS, unit_in
from ansible_collections.backstep.workers.plugins.module_utils._gate_args import wished
from ansible_collections.backstep.workers.plugins.module_utils._module import run
from ansible_collections.backstep.workers.plugins.module_utils._queue.effects import note_gates
from ansible_collections.backstep.workers.plugins.module_utils._queue.gating import gates, set_gates
from ansible_collections.backstep.workers.plugins.module_utils._rollout.gates import share_of
from ansible_collections.backstep.workers.plugins.module_utils._waiting.deadline import Deadline


def work(module: AnsibleModule) -> dict[str, Any]:
    """Set gates, and put back what passes."""
    params, dry_run = module.params, module.check_mode
    with open_broker(params) as engine:
        now = engine.check(write=not dry_run)["time"]
        wish = wished(params, gates(engine), now)
        note_gates(engine, unit_in(params, dry_run), wish)
        wait = Deadline(params["wait"]).wait_until
        done = set_gates(engine, queue_names(params["queues"]), wish, wait, dry_run)
    before, after = ({task: share_of(found.get(task)) for task in wish} for found in (done.before, done.after))
    changed = [task for task in wish if done.before.get(task) != done.after.get(task)]
    set_to = [{"action": "gate", "task": task, "before": before[task], "open": after[task]} for task in changed]
    put_back = [{"action": "replay", "queue": queue, "count": n} for queue, n in done.moved.by_queue.items()]
    return {
        "changed": done.changed,
        "actions": set_to + put_back,
        "gates": {task: as_result(gate) for task, gate in sorted(done.after.items())},
        "moved": {**as_result(done.moved), "count": done.moved.count, "cut": done.moved.cut},
        "diff": {"before": before, "after": after},
    }


def main() -> None:
    """Wire options to work."""
    operations = ["set", "remove", "retire", "reinstate", "close"]
    module = AnsibleModule(
        argument_spec={
            **BROKER_OPTIONS,
            **EFFECT_OPTIONS,
            "operation": {"type": "str", "default": "set", "choices": operations},
            "task": {"type": "str"},
            "open": {"type": "float"},
            "queues": {"type": "list", "elements": "raw", "required": True},
            "on_rollback": {"type": "str", "default": "close", "choices": ["close", "keep"]},
            "owner": {"type": "str", "required": True},
            "reason": {"type": "str", "default": ""},
            "wait": {"type": "float", "default": 30.0},
        },
        required_if=[
            ("operation", "set", ("task", "open")),
            *(("operation", one, ("task",)) for one in operations[1:4]),
        ],
        supports_check_mode=True,
    )
    run(module, lambda: work(module))


if __name__ == "__main__":
    main()
