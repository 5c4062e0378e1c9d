#!/usr/bin/python
# SPDX-FileCopyrightText: Backstep contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_pause
short_description: Have queues hand out nothing, for a while, under one's name
version_added: 0.1.0
description:
  - A pause is a lease with an owner and an expiry. It can't outlive its expiry, whatever becomes of the owner.
  - A pause that a person made stays as it is, whether it was there before the lease or came during it.
  - RQ can only pause a whole Redis database; see O(reach). Its idle workers take one more task each before they see
    the pause; see O(wait).
  - An engine without a pause that ends by itself is refused (all but RQ, so far); see M(backstep.workers.worker_drain).
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
    description: The queues to pause. An item may be a list of queues that one process listens to.
    type: list
    elements: raw
    required: true
  state:
    description:
      - V(paused) takes the lease, or extends one that O(owner) holds.
      - V(resumed) gives it back. Nothing happens when nobody holds it.
    type: str
    default: paused
    choices: [paused, resumed]
  owner:
    description: Who pauses, and why, for whoever finds the queues paused.
    type: str
    required: true
  expires_in:
    description: Seconds until the pause ends by itself.
    type: int
    default: 600
  reach:
    description:
      - V(queue) refuses a pause that would stop other queues as well, and names them.
      - V(broker) accepts that.
    type: str
    default: queue
    choices: [queue, broker]
  wait:
    description:
      - How many seconds to wait until every worker has seen the pause; it is a failure when one hasn't by then.
        V(0) doesn't wait.
      - Idle workers are sent a canary task, so that the one more task that they take is no real one.
    type: float
    default: 0.0
"""

EXAMPLES = r"""
- name: Pause during the maintenance of the database
  backstep.workers.queue_pause:
    engine: rq
    broker_url: redis://redis.example.org:6379/0
    queues: [mail]
    owner: ana, database maintenance
    expires_in: 900
    wait: 60
  delegate_to: localhost
"""

RETURN = r"""
pause:
  description: >-
    The pause now. C(paused), C(by_person) (somebody else than Backstep made it), C(owner), C(since) and
    C(expires_in) (seconds) of the lease.
  type: dict
  returned: success
  sample: {"paused": true, "by_person": false, "owner": "ana", "since": 1795243024.0, "expires_in": 900.0}
one_more:
  description: The idle workers that may each take one more task in spite of the pause.
  type: list
  elements: str
  returned: success
  sample: ["mail/2.4.0-3fa9c1d2/w1/1/4711"]
actions:
  description: What was done, or would be done in check mode. C(action) is C(pause), C(extend) or C(resume).
  type: list
  elements: dict
  returned: success
  sample: [{"action": "pause", "owner": "ana", "expires_in": 900}]
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
from ansible_collections.backstep.workers.plugins.module_utils._queue.effects import note
from ansible_collections.backstep.workers.plugins.module_utils._queue.pausing import settle
from ansible_collections.backstep.workers.plugins.module_utils._rollout.effects import PAUSE
from ansible_collections.backstep.workers.plugins.module_utils._waiting.deadline import Deadline


def work(module: AnsibleModule) -> dict[str, Any]:
    """Pause or resume, and wait when asked to."""
    params = module.params
    with open_broker(params) as engine:
        before = engine.pause_state()
        if params["state"] == "resumed":
            done = engine.resume(params["owner"], module.check_mode)
            actions = [{"action": "resume", "owner": params["owner"]}] if done.changed else []
        else:
            note(engine, unit_in(params, module.check_mode), PAUSE, params["owner"], {"owner": params["owner"]})
            done = engine.pause(
                queue_names(params["queues"]), params["owner"], params["expires_in"], params["reach"], module.check_mode
            )
            verb = "pause" if done.changed else "extend"
            actions = [{"action": verb, "owner": params["owner"], "expires_in": params["expires_in"]}]
        one_more = done.one_more
        if params["state"] == "paused" and params["wait"] > 0 and not module.check_mode:
            settle(engine, Deadline(params["wait"]).wait_until, params["wait"])
            one_more = ()
        result = {"changed": done.changed, "actions": actions, "pause": as_result(engine.pause_state())}
    held_now = {"owner": params["owner"] if params["state"] == "paused" else None}
    return {**result, "one_more": one_more, "diff": {"before": {"owner": before.owner}, "after": held_now}}


def main() -> None:
    """Wire options to work."""
    module = AnsibleModule(
        argument_spec={
            **BROKER_OPTIONS,
            **EFFECT_OPTIONS,
            "queues": {"type": "list", "elements": "raw", "required": True},
            "state": {"type": "str", "default": "paused", "choices": ["paused", "resumed"]},
            "owner": {"type": "str", "required": True},
            "expires_in": {"type": "int", "default": 600},
            "reach": {"type": "str", "default": "queue", "choices": ["queue", "broker"]},
            "wait": {"type": "float", "default": 0.0},
        },
        supports_check_mode=True,
    )
    run(module, lambda: work(module))


if __name__ == "__main__":
    main()
