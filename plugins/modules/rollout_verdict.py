#!/usr/bin/python
# SPDX-FileCopyrightText: Backstep contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_verdict
short_description: Judge whether a release works on a host
version_added: 0.1.0
description:
  - Puts together what the host saw and what the broker sees, and returns a verdict as data.
  - V(unknown) is what it is when something could not be found out. It is never good.
  - Workers to which no task comes by itself are sent canary tasks until each has finished one. Canaries that nobody
    takes are
    withdrawn, and canaries are in no count of tasks.
  - Fails only on input that can't be used. A broker that doesn't answer makes the verdict V(unknown).
author:
  - Backstep contributors (@backstep)
extends_documentation_fragment:
  - backstep.workers.pool
  - backstep.workers.broker
attributes:
  diff_mode:
    support: none
  idempotent:
    support: partial
    details:
      - Reports a change whenever it had to send canaries.
options:
  pool:
    description: The name of the pool.
    type: str
    required: true
  release:
    description: The id of the release to judge.
    type: str
    required: true
  host:
    description: The name of the host, as it stands in the names of its workers.
    type: str
    required: true
  queues:
    description: >-
      What the workers have to listen to, where O(evidence) doesn't say what is sealed with the release. An item is a
      queue, or the list of queues of one kind of process, in order.
    type: list
    elements: raw
    required: true
  evidence:
    description:
      - What the host saw, as M(backstep.workers.release_info) returns it. Empty when the host could not be asked.
    type: dict
    default: {}
  baseline:
    description: >-
      What the workers of the release before have C(finished) and C(failed), in tasks. Empty when nothing is
      known.
    type: dict
    default: {}
  must_know:
    description:
      - Whether tasks that its workers have parked, as they don't know them, make a release bad. With engines whose
        workers do that, as RV(backstep.workers.queue_info#module:capabilities) tells.
      - On a way back they say nothing against it, as producers may be ahead of it.
    type: bool
    default: false
  observe:
    description:
      - Whether to also count the tasks of the queues while the workers are proven, once a second at most, for the
        report. What can't be counted then speaks neither for a release nor against it.
    type: bool
    default: false
  health:
    description: What is demanded.
    type: dict
    default: {}
    suboptions:
      canary_task:
        description: >-
          The name of a task without arguments for the canary. Empty means one that any worker of the engine
          can run.
        type: str
        default: ''
      canary_timeout:
        description: In how many seconds each worker has to have registered and finished a task.
        type: float
        default: 30.0
      failure_margin:
        description: By how much the share of failed tasks may be above that of the release before, from 0 to 1.
        type: float
        default: 0.1
      failure_min_tasks:
        description: Judge failures from so many tasks on.
        type: int
        default: 5
"""

EXAMPLES = r"""
- name: Judge the new release
  backstep.workers.rollout_verdict:
    engine: rq
    broker_url: redis://redis.example.org:6379/0
    pool: mail
    release: 2.4.0-3fa9c1d2
    host: w1
    queues: [mail]
    evidence: "{{ watched.evidence }}"
    baseline: {finished: 1000, failed: 2}
    health:
      canary_timeout: 60
  register: judged
  delegate_to: localhost
"""

RETURN = r"""
verdict:
  description: V(good), V(bad) or V(unknown); V(unchecked) in check mode.
  type: str
  returned: success
  sample: bad
reason:
  description: Why, in a sentence.
  type: str
  returned: success
  sample: "queues: mail/2.4.0-3fa9c1d2/w1/1/4711 listens to mial instead of mail"
probes:
  description: >-
    What the verdict rests on. C(name) (V(alive), V(version), V(queues), V(canary), V(failures)), C(outcome),
    C(reason), C(facts).
  type: list
  elements: dict
  returned: success
  sample: [{"name": "alive", "outcome": "good", "reason": "2 processes ran for 10.0 s", "facts": {"bake": 10.0}}]
observed:
  description: >-
    What was seen of the queues. C(at) (epoch seconds), C(queues) (tasks by queue and state; null when the broker gave
    no answer), C(workers) (by name a release and the tasks finished and failed; those that have changed since the one
    before).
  type: list
  elements: dict
  returned: with O(observe=true), not in check mode
  sample: [{"at": 1795243024.3, "queues": {"mail": {"waiting": 12}}, "workers": {}}]
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: dict
  returned: success
  sample: [{"action": "send_canary", "task": "os.getpid", "count": 2}]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.backstep.workers.plugins.module_utils._broker_args import (
    BROKER_OPTIONS,
    as_result,
    open_broker,
    queue_names,
)
from ansible_collections.backstep.workers.plugins.module_utils._module import run
from ansible_collections.backstep.workers.plugins.module_utils._queue.observer import Observer
from ansible_collections.backstep.workers.plugins.module_utils._queue.proving import Proof, Trial
from ansible_collections.backstep.workers.plugins.module_utils._queue_args import queue_groups
from ansible_collections.backstep.workers.plugins.module_utils._rollout.rates import tally
from ansible_collections.backstep.workers.plugins.module_utils._rollout.verdict import Limits, judge
from ansible_collections.backstep.workers.plugins.module_utils._waiting.deadline import Deadline

POLL_SECONDS = 0.2


def work(module: AnsibleModule) -> dict[str, Any]:
    """Observe what is still to be observed, then judge."""
    params, health = module.params, module.params["health"]
    evidence = params["evidence"]
    limits = Limits(
        release=params["release"],
        # What the host has sealed with the release, also where that isn't what the pool's variables say by now.
        queues=tuple(tuple(group) for group in evidence.get("queues") or queue_groups(params["queues"])),
        baseline=tally(params["baseline"]),
        failure_margin=health["failure_margin"],
        failure_min_tasks=health["failure_min_tasks"],
        must_know=params["must_know"],
    )
    with open_broker(params) as engine:
        canary = health["canary_task"] or engine.default_canary
        trial = Trial(
            params["pool"], params["release"], params["host"], limits.queues, evidence.get("processes") or [],
            canary, health["canary_timeout"], limits.must_know,
        )  # fmt: skip
        observer = Observer(engine, params["pool"], queue_names(params["queues"])) if params["observe"] else None
        if module.check_mode:
            actions = [{"action": "send_canary", "task": canary}]
            reason = "Nothing is judged in check mode."
            return {"changed": False, "actions": actions, "verdict": "unchecked", "reason": reason, "probes": []}
        proof = Proof(engine, trial, observer.look if observer else None)
        # A host that has seen it fail needs no further proof, and a release that fails gets no more tasks from us.
        failed = evidence.get("outcome") == "failed"
        deadline = Deadline(health["canary_timeout"])
        broker = None if failed else proof.run(lambda predicate: deadline.wait_until(predicate, POLL_SECONDS))
        if observer:
            observer.finish()
    actions = [{"action": "send_canary", "task": canary, "count": proof.sent}] if proof.sent else []
    seen = {"observed": observer.looks} if observer else {}
    return {"changed": bool(actions), "actions": actions, **as_result(judge(evidence, broker, limits)), **seen}


def main() -> None:
    """Wire options to work."""
    module = AnsibleModule(
        argument_spec={
            **BROKER_OPTIONS,
            "pool": {"type": "str", "required": True},
            "release": {"type": "str", "required": True},
            "host": {"type": "str", "required": True},
            "queues": {"type": "list", "elements": "raw", "required": True},
            "evidence": {"type": "dict", "default": {}},
            "baseline": {"type": "dict", "default": {}},
            "must_know": {"type": "bool", "default": False},
            "observe": {"type": "bool", "default": False},
            "health": {
                "type": "dict",
                "default": {},
                "apply_defaults": True,
                "options": {
                    "canary_task": {"type": "str", "default": ""},
                    "canary_timeout": {"type": "float", "default": 30.0},
                    "failure_margin": {"type": "float", "default": 0.1},
                    "failure_min_tasks": {"type": "int", "default": 5},
                },
            },
        },
        supports_check_mode=True,
    )
    run(module, lambda: work(module))


if __name__ == "__main__":
    main()
