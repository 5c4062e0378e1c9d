#!/usr/bin/python
# SPDX-FileCopyrightText: Backstep contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout
short_description: Decide for the whole fleet what a rollout does next
version_added: 0.1.0
description:
  - Runs on the controller, once for all hosts, and reads what the hosts have answered to the other modules. It
    changes no host.
  - The role P(backstep.workers.pool#role) calls it between its steps. It is no use on its own.
author:
  - Backstep contributors (@backstep)
options:
  operation:
    description:
      - V(plan) decides whether and how a rollout is done. V(note) enters answers into the record of the rollout.
        V(observe) puts together what was seen of the queues, and which tasks need care, for the journals.
        V(dead) sorts tasks that have died in it by the rules for them; without a plan it only shows them.
        V(stands) says which release each host is on. V(end) shows how the rollout ended and writes the report.
        V(status) shows the pool. V(metrics) writes its metrics. V(drill) says what a drill deploys, or refuses it.
        V(drilled) judges a drill and shows how it ended. V(report) writes the report of the last rollout from the
        journals alone.
    type: str
    required: true
    choices: [plan, note, observe, dead, stands, end, status, metrics, report, drill, drilled]
  pool:
    description: The name of the pool.
    type: str
    required: true
  kind:
    description: What kind of rollout to plan.
    type: str
    default: deploy
    choices: [deploy, rollback]
  all_hosts:
    description: All the hosts of the pool, whatever the run is limited to.
    type: list
    elements: str
    default: []
  partial:
    description: Whether a run on part of the pool is wanted.
    type: bool
    default: false
  skip:
    description: Hosts of the pool that are left out, by name.
    type: list
    elements: str
    default: []
  cross_barrier:
    description: Whether a rollback may lead out of a release that declares that it can't be undone.
    type: bool
    default: false
  alert:
    description: The alert that asks for a rollback, with C(id), C(release), C(at) (epoch seconds) and C(reason). Empty
      means that a person does.
    type: dict
    default: {}
  watch_window:
    description: For how many seconds after a release became the current one O(alert) may take the pool out of it.
    type: float
    default: 3600.0
  waves:
    description: How many hosts are switched together, as numbers or percentages.
    type: list
    elements: raw
    default: []
  engine:
    description: The queue library. Only for a deploy.
    type: str
    default: ''
  command:
    description: The worker's command, where it is not the engine's default. Only for a deploy.
    type: list
    elements: str
    default: []
  drain_timeout:
    description:
      - How many seconds tasks may take to end. A deploy is refused when the engine's workers would cut them off before,
        or give them out again.
    type: float
    default: 0.0
  mode:
    description: Whether the new release is started beside the old one (V(overlap)), or after it (V(replace)).
    type: str
    default: overlap
  drain_policy:
    description:
      - What becomes of tasks that take longer. V(requeue) is refused when some of them would be lost, as the answer of
        M(backstep.workers.queue_info) with O(backstep.workers.queue_info#module:forecast=true) in O(broker) says; with
        V(kill) the plan names them.
    type: str
    default: abort
  visibility_timeout:
    description: After how many seconds the engine gives a task out again that was taken and not acknowledged, where the
      app sets that. 0 means the engine's default.
    type: float
    default: 0.0
  min_consuming:
    description: How many worker processes have to consume each queue at every moment, as a number or a percentage of
      those that the pool will have. Empty or 0 means none.
    type: raw
    default: ''
  queues:
    description: The queues, as in C(pool_queues), or as M(backstep.workers.release) returns them.
    type: list
    elements: raw
    default: []
  processes:
    description: Worker processes for each item of O(queues).
    type: int
    default: 1
  confirm_timeout:
    description: After how many seconds the guard takes a host back.
    type: float
    default: 600.0
  lease_timeout:
    description: How many seconds the lease of a host outlives the last step.
    type: float
    default: 300.0
  hooks:
    description: The hooks of the release that is deployed, as for M(backstep.workers.release).
    type: dict
    default: {}
  scheduler:
    description: The scheduler of the release that is deployed, as for M(backstep.workers.release).
    type: dict
    default: {}
  wave_seconds:
    description: How many seconds proving one wave may take, at most.
    type: float
    default: 0.0
  answers:
    description: The variable in which each host's answer was registered, for O(operation=plan), O(operation=status)
      and O(operation=metrics).
    type: str
    default: ''
  broker:
    description: The answer of M(backstep.workers.queue_info). With O(operation=note) it is one more look at the queues.
    type: dict
    default: {}
  plan:
    description: The plan that O(operation=plan) has returned.
    type: dict
    default: {}
  record:
    description: The record of the rollout so far.
    type: dict
    default: {}
  hosts:
    description: The hosts whose answers are to be entered.
    type: list
    elements: str
    default: []
  steps:
    description: The answers to enter, with C(name), C(variable), C(key) (what a good answer has) and C(judges) (whether
      one that isn't good speaks against the rollout).
    type: list
    elements: dict
    default: []
  verdicts:
    description: The variable in which each host's health verdict was registered.
    type: str
    default: ''
  touches:
    description: Whether the hosts are changed by these steps.
    type: bool
    default: false
  wave:
    description: Which of the O(waves) these steps were, from 1, to say where the rollout is; V(0) is what comes before
      the first. Without it nothing is said.
    type: int
  recovered:
    description: The tasks that were taken back from workers that are gone, from M(backstep.workers.task_move).
    type: list
    elements: dict
    default: []
  stranded:
    description: V(leave) when queues that hold tasks may be left without a consumer.
    type: str
    default: leave
  leave_queues:
    description: Queues that may be left without a consumer, whatever they hold.
    type: list
    elements: str
    default: []
  parking:
    description: What was done about tasks that the release doesn't know to which the pool goes. C(named), the
      answer of M(backstep.workers.queue_info), C(told), what hosts say of them, and C(parked), the answers of
      M(backstep.workers.task_move), and C(listened), the queues that it listens to.
    type: dict
    default: {}
  dead:
    description: The answer of M(backstep.workers.task_move) about tasks that died, for O(operation=dead). With
      O(operation=end), C(died), C(held), C(rescheduled) (such answers) and C(since).
    type: dict
    default: {}
  effects:
    description: What the rollout has done to the queues, for O(operation=end). C(closed), the answer of
      M(backstep.workers.task_gate), C(unrouted), those of M(backstep.workers.queue_route), and C(ended), that of
      M(backstep.workers.queue_effects).
    type: dict
    default: {}
  dead_rules:
    description: The rules for tasks that died in a rollout that went back, with C(tasks) and C(then).
    type: list
    elements: dict
    default: []
  unknown:
    description: The names of tasks that the release doesn't know to which the pool went back, for O(operation=dead).
    type: list
    elements: str
    default: []
  report_dir:
    description: The directory on the controller that the report is written to. Empty means none.
    type: str
    default: ''
  status_file:
    description: A file on the controller that the status is also written to, as JSON. Empty means none.
    type: str
    default: ''
  metrics_file:
    description: The file on the controller that O(operation=metrics) writes, in Prometheus's text format.
    type: str
    default: ''
  journals:
    description: The variable in which each host's journal was registered, for the report.
    type: str
    default: ''
  drill:
    description:
      - With O(operation=drill) and O(operation=plan), C(kind), or nothing for a deploy that is to go well. With
        O(operation=drilled), what O(operation=drill) has returned.
    type: dict
    default: {}
  allowed:
    description: Whether the pool allows drills.
    type: bool
    default: false
  production:
    description: Whether it is a production pool.
    type: bool
    default: false
  production_too:
    description: Whether it is to be drilled even so.
    type: bool
    default: false
  bake:
    description: How many seconds a release has to stay up, for O(operation=drill).
    type: float
    default: 0.0
  ended:
    description: What O(operation=end) has returned, for O(operation=drilled).
    type: dict
    default: {}
  asked:
    description: The controller's clock before the hosts were asked for their journals, in epoch seconds, to tell clocks
      that differ. Only with O(operation=report).
    type: float
"""

EXAMPLES = r"""
- name: Decide what to do
  backstep.workers.rollout:
    operation: plan
    pool: mail
    kind: rollback
    answers: pool__looked
  run_once: true
"""

RETURN = r"""
plan:
  description: What the rollout will do. C(needed), C(rollout) (its number), C(release), C(hosts), C(waves), C(owner),
    C(alert) (for which alert, or empty), C(stays) (why that alert takes the pool nowhere, or empty) and more.
  type: dict
  returned: with O(operation=plan)
  sample: {"needed": true, "rollout": 12, "release": "2.4.0-3fa9c1d2", "hosts": ["w1", "w2"]}
record:
  description: The record of the rollout. C(verdict), C(reasons), C(touched) and C(hosts).
  type: dict
  returned: with O(operation=plan), O(operation=note) and O(operation=end)
  sample: {"verdict": "good", "reasons": "", "touched": ["w1"]}
queues:
  description: O(queues), those that the releases listen to which run now, and those of where these would go back to.
  type: list
  elements: str
  returned: with O(operation=plan)
  sample: ["mail"]
observed:
  description: What O(backstep.workers.rollout_lease#module:observed) takes. C(course), lists of equal length, with
    C(at) (epoch seconds), C(waiting) (tasks by queue), C(states) (tasks by state), C(finished) and C(failed) (tasks by
    release, since the first of them), null where that was not known; C(care), the C(tasks) that need care by their
    ids, and how many C(more) there are; C(noticed), when the verdict was not good (epoch seconds, or null).
  type: dict
  returned: with O(operation=observe)
  sample: {"course": {}, "care": {"tasks": [], "more": 0}, "noticed": null}
by_rule:
  description: Names of tasks that have died, by what is to become of them. C(reschedule), C(hold) and C(fail).
  type: dict
  returned: with O(operation=dead) and a plan
  sample: {"reschedule": ["mail.tasks.send"], "hold": [], "fail": []}
stands:
  description: By host, the release that it is on, empty for none, or null where it isn't known, or is about to change.
  type: dict
  returned: with O(operation=stands)
  sample: {"w1": "2.3.0-11d0a7b2", "w2": null}
drill:
  description: What is drilled. C(kind), C(of) (a release), C(version), C(seconds) and C(scheduler).
  type: dict
  returned: with O(operation=drill)
  sample: {"kind": "crash", "of": "2.3.0-11d0a7b2", "version": "drill-12", "seconds": 15.0, "scheduler": {}}
given:
  description: What takes the place of what a deploy is given.
  type: dict
  returned: with O(operation=drill)
  sample: {"version": "drill-12", "hooks": {}}
passed:
  description: Whether the way back came by itself, brought every host back, and lost nothing.
  type: bool
  returned: with O(operation=drilled)
  sample: true
problems:
  description: Why it has not passed.
  type: list
  elements: str
  returned: with O(operation=drilled)
  sample: []
times:
  description:
    - In seconds, how long it took to C(detect), to C(decide) and to C(restore), and the C(gap) in which no host of the
      pool had workers of a good release. What is not known is null.
  type: dict
  returned: with O(operation=drilled)
  sample: {"detect": 3.2, "decide": 1.1, "restore": 4.0, "gap": 0.0}
ok:
  description: Whether the pool is where it was asked to be, or whether all that was asked for its status has answered.
  type: bool
  returned: with O(operation=end), O(operation=status) and O(operation=metrics)
  sample: true
message:
  description: How it ended and why, in one line.
  type: str
  returned: with O(operation=end)
  sample: "Pool mail went back to 2.3.0-11d0a7b2. Why: w1: canary: no worker finished a task"
silent:
  description: Who gave no answer.
  type: list
  elements: str
  returned: with O(operation=status) and O(operation=metrics)
  sample: []
event:
  description: How it ended, for M(backstep.workers.rollout_notification). C(id), C(what), C(pool), C(rollout), C(from),
    C(to), C(now), C(verdict), C(reason), C(hosts), C(by), C(at), C(next) and C(report).
  type: dict
  returned: with O(operation=end)
  sample: {"id": "mail-12", "what": "went_back", "pool": "mail", "rollout": 12}
artifact:
  description: What a run leaves as C(backstep) with M(ansible.builtin.set_stats), as a hint for what comes after it.
  type: dict
  returned: with O(operation=end)
  sample: {"schema": 1, "pool": "mail", "rollout": 12, "what": "went_back", "ended": 1795230000.5, "ok": false,
           "from": "2.3.0-11d0a7b2", "to": "2.4.0-3fa9c1d2", "now": "2.3.0-11d0a7b2", "report": ""}
text:
  description: What was shown, line by line.
  type: list
  elements: str
  returned: with O(operation=plan), O(operation=end), O(operation=status), and O(operation=dead) without a plan
  sample: ["Pool mail: 2.3.0-11d0a7b2 -> 2.4.0-3fa9c1d2 on 3 hosts"]
"""
