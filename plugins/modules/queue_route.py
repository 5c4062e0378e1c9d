#!/usr/bin/python
# SPDX-FileCopyrightText: Backstep contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_route
short_description: Send a share of a queue's tasks to the workers of one version
version_added: 0.1.0
description:
  - A route says which share of a queue's tasks, or of those of some names, producers put into the queue
    C(<queue>.for-<version>). Workers of a release that was deployed with C(pool_routes) listen to that of their
    version, too.
  - It is a lease with an owner and an expiry, and kept in the broker. Producers that ask for it send by it within one
    second. For Celery, RQ and Dramatiq there is a small file that does that; see docs/engines.md.
  - Which share really gets there depends on who else takes from the plain queue; see O(measure).
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
  queues:
    description: The queues, as the app names them. An item may be a list of queues that one process listens to.
    type: list
    elements: raw
    required: true
  state:
    description:
      - V(present) makes the route, or changes or extends one that O(owner) has. It is refused where no living worker
        listens, and where another owner's is not over.
      - V(absent) takes it away, and moves what lies in the queue of that version back; see O(move). With O(version),
        a route to another version stays, and what lies in the queue of this one is moved even if there was no route.
    type: str
    default: present
    choices: [present, absent]
  version:
    description: The version to whose workers tasks go, as C(pool_version) was. Needed with O(state=present).
    type: str
  share:
    description: Which share of the tasks goes there, in per cent.
    type: float
    default: 100.0
  tasks:
    description: Route only tasks of these names. Empty means all.
    type: list
    elements: str
    default: []
  owner:
    description:
      - Who routes, for whoever finds it. Needed with O(state=present).
      - With O(state=absent), another owner's route that isn't over is refused; without it, whoever's is taken away.
    type: str
  expires_in:
    description: Seconds until the route ends by itself.
    type: int
    default: 3600
  move:
    description:
      - With O(state=absent), move what lies in the queue of that version to the plain one. Waiting tasks go in front of
        what waits there, or behind it on RabbitMQ, in their old order.
      - What its workers have taken, ahead too, is not moved. They may put it back when they stop, so ask for this once
        more when they have, with O(version).
      - An engine that can't move them (RV(backstep.workers.queue_info#module:capabilities)) refuses while there are
        any; the route is taken away all the same.
    type: bool
    default: true
  measure:
    description:
      - For how many seconds to count afterwards who begins tasks of these queues. V(0) doesn't.
      - In check mode nothing but this is done.
    type: float
    default: 0.0
"""

EXAMPLES = r"""
- name: Send a tenth of the mails to the workers of 2.5.0, and see what they get of them
  backstep.workers.queue_route:
    engine: celery
    broker_url: redis://redis.example.org:6379/0
    queues: [mail]
    version: 2.5.0
    share: 10
    owner: ana, trying 2.5.0
    measure: 60
  delegate_to: localhost

- name: Take that back
  backstep.workers.queue_route:
    engine: celery
    broker_url: redis://redis.example.org:6379/0
    queues: [mail]
    version: 2.5.0
    state: absent
  delegate_to: localhost
"""

RETURN = r"""
routes:
  description: >-
    The routes of O(queues) now, by queue. C(to) (the queue), C(version), C(share) (per cent), C(tasks), C(by), C(at)
    and C(until) (epoch seconds by the broker's clock).
  type: dict
  returned: success
  sample: {"mail": {"to": "mail.for-2.5.0", "version": "2.5.0", "share": 10.0, "tasks": [], "by": "ana",
                    "at": 1795243024.0, "until": 1795246624.0}}
moved:
  description: What was moved back, or would be, as from M(backstep.workers.task_move).
  type: dict
  returned: success
  sample: {"count": 2, "by_queue": {"mail.for-2.5.0": 2}, "before": {"waiting": 2}, "after": {"waiting": 2}}
effective:
  description: >-
    Who has begun tasks within O(measure). C(releases) (task starts by release, canaries left out), C(share) (of
    O(version), in per cent; null when there were fewer than 20, or a worker has ended meanwhile). Null without
    O(measure), and where no version is known.
  type: dict
  returned: success
  sample: {"releases": {"2.4.0-3fa9c1d2": 271, "2.5.0-1c0ffee5": 36}, "share": 11.7}
actions:
  description: What was done, or would be done in check mode. C(action) is C(route), C(extend), C(end_route) or C(move).
  type: list
  elements: dict
  returned: success
  sample: [{"action": "route", "queue": "mail", "to": "mail.for-2.5.0", "share": 10.0}]
"""

from collections.abc import Mapping
from time import sleep
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
from ansible_collections.backstep.workers.plugins.module_utils._queue.effects import note_routes
from ansible_collections.backstep.workers.plugins.module_utils._queue.routing import end_routes, measure, set_routes
from ansible_collections.backstep.workers.plugins.module_utils._rollout.routes import Route, route_of


def work(module: AnsibleModule) -> dict[str, Any]:
    """Make routes or take them away, and measure when asked to."""
    params, dry_run = module.params, module.check_mode
    queues, version, owner = queue_names(params["queues"]), params["version"], params["owner"]
    with open_broker(params) as engine:
        now = engine.check(write=not dry_run)["time"]
        unit = unit_in(params, dry_run)
        if params["state"] == "absent":
            note_routes(engine, unit, dict.fromkeys(queues), now, version)
            done = end_routes(
                engine, queues, now, sleep, version=version, owner=owner, move=params["move"], dry_run=dry_run
            )
        else:
            terms = (version, params["share"], params["tasks"], owner, now, params["expires_in"])
            wish = [route_of(queue, *terms) for queue in queues]
            note_routes(engine, unit, {route.queue: route for route in wish}, now)
            done = set_routes(engine, wish, now, dry_run)
        told = measure(engine, queues, version, sleep, params["measure"]) if version and params["measure"] > 0 else None
    before, after = _told(done.before), _told(done.after)
    return {
        "changed": done.changed,
        "actions": done.actions,
        "routes": after,
        "moved": {**as_result(done.moved), "count": done.moved.count, "cut": done.moved.cut},
        "effective": told,
        "diff": {"before": before, "after": after},
    }


def _told(routes: Mapping[str, Route]) -> dict[str, Any]:
    return {queue: as_result(route) for queue, route in routes.items()}


def main() -> None:
    """Wire options to work."""
    module = AnsibleModule(
        argument_spec={
            **BROKER_OPTIONS,
            **EFFECT_OPTIONS,
            "queues": {"type": "list", "elements": "raw", "required": True},
            "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
            "version": {"type": "str"},
            "share": {"type": "float", "default": 100.0},
            "tasks": {"type": "list", "elements": "str", "default": []},
            "owner": {"type": "str"},
            "expires_in": {"type": "int", "default": 3600},
            "move": {"type": "bool", "default": True},
            "measure": {"type": "float", "default": 0.0},
        },
        required_if=[("state", "present", ("version", "owner"))],
        supports_check_mode=True,
    )
    run(module, lambda: work(module))


if __name__ == "__main__":
    main()
