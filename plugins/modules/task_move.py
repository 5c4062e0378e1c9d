#!/usr/bin/python
# SPDX-FileCopyrightText: Backstep contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: task_move
short_description: Park tasks out of the workers' reach, put them back, or take them back from dead workers
version_added: 0.1.0
description:
  - Moves tasks inside the broker, in small atomic batches. Their payloads are neither read nor changed.
  - Killed at any moment, every task is in exactly one place, and the same call finishes the rest.
  - Parked tasks keep their id, order, due time and time to live, and are in no worker's reach until they are replayed.
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
      - V(park) takes tasks out of the workers' reach.
      - V(replay) puts parked tasks back where they were, waiting ones in front in their old order. With O(states=dead)
        it puts dead tasks back as waiting ones.
      - V(recover) takes back what the workers O(workers_gone) held, and what no living worker holds any more, such as
        a task that was handed to a worker in the very moment in which it was told to stop.
    type: str
    required: true
    choices: [park, replay, recover]
  queues:
    description: The queues to look into. An item may be a list of queues that one process listens to.
    type: list
    elements: raw
    required: true
  states:
    description:
      - Which tasks to move. The default is V(waiting) and V(scheduled) and V(retrying) for O(operation=park),
        and V(parked) for O(operation=replay).
      - V(dead) can be parked and replayed.
    type: list
    elements: str
    choices: [waiting, scheduled, retrying, dead, parked]
  ids:
    description: Move only tasks with these ids. Empty doesn't restrict.
    type: list
    elements: str
    default: []
  tasks:
    description: Move only tasks of these names. Empty doesn't restrict.
    type: list
    elements: str
    default: []
  enqueued_after:
    description: Move only tasks that were enqueued after this time, for example V(2026-11-21T03:00:00Z).
    type: str
  enqueued_before:
    description: Move only tasks that were enqueued before this time.
    type: str
  limit:
    description: Move at most so many tasks. The oldest are replayed first.
    type: int
  owner:
    description: Who parks the tasks. Needed with O(operation=park).
    type: str
  reason:
    description: Why the tasks are parked, for whoever finds them.
    type: str
    default: ''
  workers_gone:
    description:
      - The names of workers whose processes are proven dead, with all their children, for O(operation=recover).
      - A name that ends with a slash stands for all workers whose names begin with it, such as those of a release on
        a host.
      - A task of a worker that is still alive would run twice.
    type: list
    elements: str
    default: []
  releases:
    description:
      - Dead tasks only. Those that failed in a worker of one of these releases.
      - RQ and BullMQ note whose worker it was. With another engine none is chosen then; use O(died_after).
    type: list
    elements: str
    default: []
  error:
    description: Dead tasks only. Those whose error, on one line (such as V(KeyError)), has this in it.
    type: str
    default: ''
  died_after:
    description: Dead tasks only. Those that failed for the last time after this time, such as V(2026-11-21T03:00:00Z).
    type: str
  died_before:
    description: Dead tasks only. Those that failed for the last time before this time.
    type: str
  run:
    description:
      - Dead tasks only, for O(operation=replay). The name of this run. What a run is about to put back is noted in the
        broker, for seven days. Called again with the same name, it goes on where it was cut short, and puts no task
        back twice, not even one that has failed again since.
      - The default is a name of its own, which is returned.
    type: str
  rate:
    description: Dead tasks only, for O(operation=replay). At most so many tasks per second.
    type: float
  canary:
    description:
      - Dead tasks only, for O(operation=replay). Put so many back first, and the others only when these have ended
        well.
    type: int
    default: 0
  canary_seconds:
    description: How long the tasks of O(canary) may take, the time that they wait included.
    type: float
    default: 300
  max_failed:
    description:
      - Dead tasks only, for O(operation=replay). When more than so many of those that were put back have failed again,
        the rest is left where it is. Those that failed again are parked, so that nobody puts them back by mistake.
    type: int
    default: 0
  to:
    description:
      - What becomes of tasks with O(operation=recover). V(waiting) has them run again.
      - V(dead) treats them as failed, with the retries that they have left; where the engine has no dead tasks, it
        parks them.
    type: str
    default: waiting
    choices: [waiting, dead]
"""

EXAMPLES = r"""
- name: Park the tasks that the old release doesn't know
  backstep.workers.task_move:
    engine: rq
    broker_url: redis://redis.example.org:6379/0
    operation: park
    queues: [mail]
    tasks: [mail.tasks.send_with_attachment]
    owner: rollback to 2.4.0
  delegate_to: localhost

- name: Put ten of them back
  backstep.workers.task_move:
    engine: rq
    broker_url: redis://redis.example.org:6379/0
    operation: replay
    queues: [mail]
    limit: 10
  delegate_to: localhost

- name: See what a bad release left dead (with check mode, nothing is moved)
  backstep.workers.task_move:
    engine: rq
    broker_url: redis://redis.example.org:6379/0
    operation: replay
    queues: [mail]
    states: [dead]
    releases: [2.5.0-1c0ffee]
  check_mode: true
  delegate_to: localhost

- name: Put it back, five tasks first, and then twenty per second
  backstep.workers.task_move:
    engine: rq
    broker_url: redis://redis.example.org:6379/0
    operation: replay
    queues: [mail]
    states: [dead]
    releases: [2.5.0-1c0ffee]
    canary: 5
    rate: 20
    run: after-2.5.0
  delegate_to: localhost
"""

RETURN = r"""
moved:
  description: >-
    How many tasks were moved, or would be. C(count), C(by_queue), C(before) and C(after) (tasks by the state that they
    were in and are in), C(ids) (at most 1000), C(cut) (whether there are more), C(vanished) (parked ids whose tasks
    somebody has deleted), C(tasks) (the same by C(queue), C(state) (that they were in), C(task) (their name, or null),
    with C(count) and C(oldest), when the oldest was enqueued, in epoch seconds, or null).
  type: dict
  returned: with O(operation=park) and O(operation=replay)
  sample: {"count": 1, "by_queue": {"mail": 1}, "before": {"waiting": 1}, "after": {"parked": 1}, "ids": ["6f1c"]}
dead:
  description: >-
    The dead tasks that were chosen, by C(queue), C(task) (their name, or null), C(error) (its kind, or ""), C(release)
    (in whose workers they failed, or null), with C(count), C(first) and C(last) (when they died, in epoch seconds, or
    null) and C(expires) (when the engine drops the first of them, unless the app has set another time; null when it
    keeps them). In check mode there is a warning, too, where some are dropped within a day.
  type: list
  elements: dict
  returned: with O(states=dead)
  sample:
    - {"queue": "mail", "task": "mail.tasks.send", "error": "KeyError", "release": "2.5.0-1c0ffee", "count": 3,
       "first": 1795230000.5, "last": 1795230060.25, "expires": null}
listed:
  description: The first 1000 of these by their C(id), with C(task), C(queue), C(release) and C(worker), or null.
  type: list
  elements: dict
  returned: with O(states=dead)
  sample: [{"id": "6f1c", "task": "mail.tasks.send", "queue": "mail", "release": "2.5.0-1c0ffee", "worker": null}]
run:
  description: The name of the run, to go on with.
  type: str
  returned: with O(operation=replay) and O(states=dead)
  sample: 20261121-030000-1c0ffe
recovered:
  description: >-
    The tasks that were taken back. Each may have run in part and may run twice. C(id), C(task) (its name), C(queue),
    C(worker), C(to) (V(waiting), V(scheduled) or V(dead); V(lost) when the worker had the only copy), C(started).
  type: list
  elements: dict
  returned: with O(operation=recover)
  sample: [{"id": "6f1c", "task": "mail.tasks.send", "queue": "mail", "to": "waiting", "started": true}]
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: dict
  returned: success
  sample: [{"action": "park", "queue": "mail", "count": 2}]
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
from ansible_collections.backstep.workers.plugins.module_utils._module import run
from ansible_collections.backstep.workers.plugins.module_utils._move_args import (
    DEAD_OPTIONS,
    are_only_dead,
    move_dead,
    selection_of,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.effects import note_park
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import (
    DEAD,
    PARKED,
    RECOVER_SECONDS,
    RETRYING,
    SCHEDULED,
    WAITING,
    Engine,
)
from ansible_collections.backstep.workers.plugins.module_utils._waiting.deadline import Deadline

STATES = {"park": (WAITING, SCHEDULED, RETRYING), "replay": (PARKED,)}


def work(module: AnsibleModule) -> dict[str, Any]:
    """Move what is selected."""
    with open_broker(module.params) as engine:
        engine.check(write=not module.check_mode)
        operate = _recover if module.params["operation"] == "recover" else _move
        result = operate(engine, module.params, module.check_mode)
    for line in result.pop("soon", []):
        module.warn(line)
    return result


def _move(engine: Engine, params: dict[str, Any], dry_run: bool) -> dict[str, Any]:
    verb, queues, more = params["operation"], queue_names(params["queues"]), dict[str, Any]()
    if are_only_dead(params):
        moved, more = move_dead(engine, queues, params, dry_run)
    elif verb == "park":
        selection = selection_of(params, STATES[verb])
        note_park(engine, unit_in(params, dry_run), queues, selection)
        moved = engine.park(queues, selection, params["owner"], params["reason"], dry_run)
    else:
        moved = engine.replay(queues, selection_of(params, STATES[verb]), dry_run)
    actions = [{"action": verb, "queue": queue, "count": count} for queue, count in moved.by_queue.items()]
    return {
        "changed": moved.count > 0,
        "actions": actions,
        "moved": {**as_result(moved), "count": moved.count, "cut": moved.cut},
        "diff": {"before": moved.before, "after": moved.after},
        **more,
    }


def _recover(engine: Engine, params: dict[str, Any], dry_run: bool) -> dict[str, Any]:
    queues = queue_names(params["queues"])
    beginnings = tuple(name for name in params["workers_gone"] if name.endswith("/"))
    known = {worker.name for worker in engine.workers()} | {task.worker or "" for task in engine.executing(queues)}
    gone = {*params["workers_gone"], *(name for name in known if name.startswith(beginnings))}
    wait = Deadline(RECOVER_SECONDS).wait_until
    tasks = engine.recover(queues, gone, params["to"], wait, dry_run)
    return {
        "changed": bool(tasks),
        "actions": [{"action": "recover", "id": task.id, "queue": task.queue, "to": task.to} for task in tasks],
        "recovered": [as_result(task) for task in tasks],
        "diff": {
            "before": {task.id: f"held by {task.worker or 'nobody'}" for task in tasks},
            "after": {task.id: task.to for task in tasks},
        },
    }


def main() -> None:
    """Wire options to work."""
    names = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            **BROKER_OPTIONS,
            **EFFECT_OPTIONS,
            "operation": {"type": "str", "required": True, "choices": [*STATES, "recover"]},
            "queues": {"type": "list", "elements": "raw", "required": True},
            "states": {"type": "list", "elements": "str", "choices": [WAITING, SCHEDULED, RETRYING, DEAD, PARKED]},
            "ids": names,
            "tasks": names,
            "enqueued_after": {"type": "str"},
            "enqueued_before": {"type": "str"},
            "limit": {"type": "int"},
            "owner": {"type": "str"},
            "reason": {"type": "str", "default": ""},
            "workers_gone": names,
            "to": {"type": "str", "default": WAITING, "choices": [WAITING, DEAD]},
            **DEAD_OPTIONS,
        },
        required_if=[("operation", "park", ("owner",))],
        supports_check_mode=True,
    )
    run(module, lambda: work(module))


if __name__ == "__main__":
    main()
