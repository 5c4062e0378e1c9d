#!/usr/bin/python
# SPDX-FileCopyrightText: Backstep contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_effects
short_description: End what rollouts have done to the queues, as a whole, by where the pool stands
version_added: 0.1.0
description:
  - What a rollout does to the queues (tasks that it parks, gates, pauses, routes) is noted in the broker before it is
    done, with all that undoing it takes.
  - If the whole pool stands where the rollout began, it has failed, and all of it is undone, the newest first. If the
    whole pool is on another release, it is kept. While hosts differ, or aren't known, it stays noted.
  - Nothing rests on the run that has done it, so what a dead run has left is ended by the next one.
author:
  - Backstep contributors (@backstep)
extends_documentation_fragment:
  - backstep.workers.pool
  - backstep.workers.broker
attributes:
  diff_mode:
    support: full
options:
  pool:
    description: The pool's name.
    type: str
    required: true
  stands:
    description: >-
      By host of the pool, the release that it is on; empty for none. Null where that isn't known.
    type: dict
    required: true
  queues:
    description: The pool's queues. An item may be a list of queues that one process listens to.
    type: list
    elements: raw
    required: true
  wait:
    description: How many seconds workers have to tell that they keep to a gate that is set back.
    type: float
    default: 30.0
"""

EXAMPLES = r"""
- name: End what an interrupted rollout has done to the queues
  backstep.workers.queue_effects:
    engine: celery
    broker_url: redis://redis.example.org:6379/0
    queues: [mail]
    pool: mail
    stands: {w1: 2.3.0-11d0a7b2, w2: 2.3.0-11d0a7b2}
  delegate_to: localhost
"""

RETURN = r"""
ended:
  description: >-
    What has become of each. C(rollout), C(kind) (V(park), V(gate), V(pause) or V(route)), C(what), C(fate) (V(kept),
    V(undone), or V(open): hosts differ or aren't known, and it stays noted) and C(said) (what undoing it came to).
  type: list
  elements: dict
  returned: success
  sample: [{"rollout": 12, "kind": "park", "what": "mail.send", "fate": "undone", "said": "50 task(s) put back"}]
actions:
  description: What was done, or would be done in check mode. C(action) is C(keep) or C(undo).
  type: list
  elements: dict
  returned: success
  sample: [{"action": "undo", "kind": "park", "what": "mail.send"}]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.backstep.workers.plugins.module_utils._broker_args import (
    BROKER_OPTIONS,
    open_broker,
    queue_names,
)
from ansible_collections.backstep.workers.plugins.module_utils._module import run
from ansible_collections.backstep.workers.plugins.module_utils._queue.effects import end
from ansible_collections.backstep.workers.plugins.module_utils._rollout.effects import KEPT, OPEN
from ansible_collections.backstep.workers.plugins.module_utils._waiting.deadline import Deadline


def work(module: AnsibleModule) -> dict[str, Any]:
    """End them."""
    params = module.params
    wait = Deadline(params["wait"]).wait_until
    with open_broker(params) as engine:
        found = end(engine, queue_names(params["queues"]), params["pool"], params["stands"], wait, module.check_mode)
    ended = [one for one in found if one.fate != OPEN]
    return {
        "changed": bool(ended),
        "actions": [
            {"action": "keep" if one.fate == KEPT else "undo", "kind": one.effect.kind, "what": one.effect.what}
            for one in ended
        ],
        "ended": [
            {
                "rollout": one.effect.unit.rollout,
                "kind": one.effect.kind,
                "what": one.effect.what,
                "fate": one.fate,
                "said": one.said,
            }
            for one in found
        ],
        "diff": {"before": {"noted": len(found)}, "after": {"noted": len(found) - len(ended)}},
    }


def main() -> None:
    """Wire options to work."""
    module = AnsibleModule(
        argument_spec={
            **BROKER_OPTIONS,
            "pool": {"type": "str", "required": True},
            "stands": {"type": "dict", "required": True},
            "queues": {"type": "list", "elements": "raw", "required": True},
            "wait": {"type": "float", "default": 30.0},
        },
        supports_check_mode=True,
    )
    run(module, lambda: work(module))


if __name__ == "__main__":
    main()
