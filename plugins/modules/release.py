#!/usr/bin/python
# SPDX-FileCopyrightText: Backstep contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release
short_description: Stage a release of a worker pool on a host and seal it
version_added: 0.1.0
description:
  - A release is code, rendered config, units, environment, queues and process count, stored under one id that is the
    same on every host.
    Changing any of these makes another release.
  - Staging touches nothing that runs. M(backstep.workers.release_switch) switches to a staged release.
  - Templates are rendered and sources are packed on the controller.
author:
  - Backstep contributors (@backstep)
extends_documentation_fragment:
  - backstep.workers.pool
  - backstep.workers.pool.host
attributes:
  diff_mode:
    support: none
options:
  state:
    description:
      - V(planned) renders, checks the source and the host, tells the id and changes nothing. V(staged) also stores
        and seals the release.
    type: str
    default: staged
    choices: [planned, staged]
  version:
    description: The version, as people call it. Letters, digits, C(.), C(_), C(+) and C(-).
    type: str
    required: true
  engine:
    description: The queue library.
    type: str
    required: true
  broker_url:
    description: The URL of the broker, handed to the workers in their environment. User and password are no part of
      the release.
    type: str
    required: true
  queues:
    description:
      - The queues. For each one a worker process of its own is started, as a process that listens to several can lose
        a task with some engines.
      - An item that is a list makes one process that listens to all of these, in this order.
    type: list
    elements: raw
    required: true
  routes:
    description:
      - Whether the workers also listen to the queues to which M(backstep.workers.queue_route) sends tasks for this
        version, before each of their own.
      - With RQ such a queue gets worker processes of its own, as many as the one that it belongs to.
    type: bool
    default: false
  processes:
    description: Worker processes for each item of O(queues).
    type: int
    default: 1
  user:
    description: The user that the workers run as; must exist and not be root.
    type: str
    required: true
  command:
    description:
      - The worker's command as a list. C({queues}), C({worker}), C({app}), C({config}) and C({release}) are filled
        in. An item that is just C({queues})
        becomes one argument a queue, and one that contains C({queue}) is repeated for each. The default is the
        engine's own worker.
    type: list
    elements: str
    default: []
  source:
    description: Where the code comes from.
    type: dict
    required: true
    suboptions:
      directory:
        description: A directory on the controller.
        type: str
      archive:
        description: A tar archive on the controller, or its C(https) URL.
        type: str
      checksum:
        description: The checksum of O(source.archive), as C(sha256:<hex digits>).
        type: str
      git:
        description: A git repository that the controller can clone.
        type: str
      ref:
        description: The branch, tag or commit of O(source.git).
        type: str
      path:
        description: A directory that lies on the worker host already. O(version) vouches for what is in it.
        type: str
  config:
    description: Files to render into the release's C(config) directory, whose path workers find in C(BACKSTEP_CONFIG).
    type: list
    elements: dict
    default: []
    suboptions:
      src:
        description: A template on the controller.
        type: str
      content:
        description: The text itself, instead of O(config[].src).
        type: str
      dest:
        description: The path below C(config).
        type: str
        required: true
      mode:
        description: Permission bits in octal digits. The group is the user's.
        type: str
        default: '0640'
  env:
    description: Environment variables of the workers. May hold secrets, which are stored for root only.
    type: dict
    default: {}
  build:
    description: Commands (each a string, or a list of arguments) that run in C(app) as O(user). There is no shell.
    type: list
    elements: raw
    default: []
  build_timeout:
    description: How many seconds each command may take.
    type: float
    default: 900.0
  rollback_barrier:
    description:
      - Why this release can't be undone (a migration that only goes forward), or empty. Part of the release.
      - Once a host was switched to it, going back to a release from before it is refused, also for the host's guard,
        unless a person asks for it with the option O(backstep.workers.release_switch#module:cross_barrier) of
        M(backstep.workers.release_switch). Before the switch, going back is free.
    type: str
    default: ''
  hooks:
    description:
      - Commands of this release around the steps of a rollout. Part of the release.
      - By step, which is one of V(before_stage), V(after_stage), V(before_switch), V(after_switch),
        V(before_confirm), V(after_confirm), V(before_rollback) and V(after_rollback), a list of commands. Each is a
        list of words, or a dictionary with C(command), C(timeout) (seconds, 60 by default), C(where) (V(hosts), which
        is every host, or V(once), which is one of them) and C(chdir) (the release's C(app) by default). There is no
        shell.
      - They run as the user of the workers, with their environment, C(BACKSTEP_FROM), C(BACKSTEP_TO), C(BACKSTEP_HOST),
        C(BACKSTEP_STEP) and C(BACKSTEP_ROLLOUT). Their last lines go to the journal, with the values of the environment
        hidden.
    type: dict
    default: {}
  scheduler:
    description:
      - The one process that runs the pool's schedule (C(rq cron), Celery beat), with C(command) (like O(command)),
        C(host) (the name in the inventory of the one host that runs it) and C(period) (seconds, 60 by default, the
        shortest period of its schedule). Part of the release. Empty means that it has none.
      - On that host M(backstep.workers.release_switch) hands it over with the release.
    type: dict
    default: {}
  once:
    description: Whether hooks that are meant for one host run on this one.
    type: bool
    default: false
  manifest:
    description:
      - How the release tells which tasks it can run. Part of the release; the names are sealed with it.
      - By default the engine's own way, where O(command) starts the engine's own program and the engine has one.
    type: dict
    default: {}
    suboptions:
      tasks:
        description: Their names.
        type: list
        elements: str
      command:
        description:
          - A command that prints their names, one on each line, or at the end a line of JSON, an object whose list
            C(tasks) has them. Code that keeps no register may answer with the list C(unknown) of those of the names in
            C(BACKSTEP_TASKS) (JSON) that it can't run.
          - That object may also have an object C(schedules), with the task's name of each entry of the app's schedule.
          - It runs in C(app) as O(user), with the workers' environment. There is no shell. C({python}) is the workers'
            interpreter, C({command}) the arguments of their command.
        type: raw
      ask:
        description: Whether to ask in the engine's own way.
        type: bool
        default: true
      versions:
        description:
          - By a task's name, the version of its arguments that this release enqueues, or a list of the versions that it
            can run, of which it enqueues the last. A task that isn't here has version 1.
        type: dict
        default: {}
  tasks:
    description:
      - What the queues hold, by name, as in RV(backstep.workers.queue_info#module:tasks). With O(state=staged) it is
        a failure when the release doesn't know one that waits, is scheduled or will be tried again.
    type: list
    elements: dict
    default: []
  retired:
    description: Names that no task may have any more. With O(state=staged) it is a failure when the release has one.
    type: list
    elements: str
    default: []
  now:
    description: The broker's clock (epoch seconds), to tell how old O(tasks) are.
    type: float
  min_free_mib:
    description: How many MiB must be free on the host. The default is three times the size of the source.
    type: int
    default: 0
  rollout:
    description: The number of the rollout that holds the lease of this host. Needed with O(state=staged).
    type: int
    default: 0
  to:
    description: With O(state=planned), the release that a rollback would be asked for.
    type: str
    default: ''
  drill:
    description:
      - For a release that is made to fail. C(kind) (V(crash), V(never_consumes) or V(late)), C(of) (the stored
        release that all but its command is from) and C(seconds) (after which V(late) fails). It is never confirmed.
      - Then only O(version), O(engine) and O(broker_url) count of the other options, and the latter two have to be
        those of C(of).
    type: dict
    default: {}
  prepared:
    description: What the controller has prepared. Filled in by this module's own controller side.
    type: dict
    suboptions:
      id:
        description: The id of the release.
        type: str
      identity:
        description: What the id is a digest of.
        type: dict
      broker:
        description: The broker's URL without user and password.
        type: str
      broker_variable:
        description: The variable in which the engine's worker expects the URL.
        type: str
      extends:
        description: What is put before the values of variables, each a name, a separator of one character and a text.
        type: list
        elements: str
        default: []
      manifest:
        description: How the release tells which tasks it can run.
        type: dict
        default: {}
      manifest_program:
        description: The text of the engine's program that asks.
        type: str
        default: ''
      archive:
        description: Where the packed source lies on the host.
        type: str
      program:
        description: Where the host program lies on the host.
        type: str
      program_digest:
        description: The SHA-256 of the host program.
        type: str
      bytes:
        description: The size of the source.
        type: int
"""

EXAMPLES = r"""
- name: Stage version 2.4.0
  backstep.workers.release:
    pool: mail
    host: "{{ inventory_hostname }}"
    rollout: 12
    version: 2.4.0
    engine: rq
    broker_url: redis://:{{ vault_redis_password }}@redis.example.org:6379/0
    queues: [mail, newsletter]
    processes: 4
    user: mail
    source:
      directory: /srv/build/mail
    config:
      - src: templates/settings.py.j2
        dest: settings.py
    build:
      - python3 -m venv venv
      - venv/bin/pip install --no-index --find-links /srv/wheels -r requirements.txt
"""

RETURN = r"""
release:
  description: The id.
  type: str
  returned: success
  sample: 2.4.0-3fa9c1d2
actions:
  description: What was done, or would be done with O(state=planned) or in check mode.
  type: list
  elements: dict
  returned: success
  sample: [{"action": "build", "release": "2.4.0-3fa9c1d2"}, {"action": "seal", "release": "2.4.0-3fa9c1d2"}]
queues:
  description: The queues that it listens to, a list for each kind of worker process.
  type: list
  elements: list
  returned: success
  sample: [["mail"], ["newsletter"]]
hooks:
  description: How each hook has ended, as from M(backstep.workers.release_hooks).
  type: list
  elements: dict
  returned: with O(state=staged)
  sample: []
unknown_tasks:
  description: >-
    Which of O(tasks) the release doesn't know. C(release), C(tasks) (their names, or null when nobody can tell),
    C(problem) (why nobody can) and C(schedules) (which entries of its schedule C(begin), C(end), and are of tasks that
    it doesn't know itself, C(unknown)).
  type: dict
  returned: with O(state=staged)
  sample: {"release": "2.4.0-3fa9c1d2", "tasks": [], "problem": ""}
pool_state:
  description: The pool on this host, as from M(backstep.workers.release_info).
  type: dict
  returned: with O(state=planned)
  sample: {"current": "2.3.0-11d0a7b2"}
refused:
  description: Why the release can't be deployed to this host, because it is quarantined here; empty when it can.
  type: str
  returned: with O(state=planned)
  sample: ""
tells_tasks:
  description: Whether the release can be asked which tasks it can run.
  type: bool
  returned: with O(state=planned)
  sample: true
supervisor:
  description: Which version of the supervisor answers.
  type: str
  returned: with O(state=planned)
  sample: supervisord 4.3.0
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.backstep.workers.plugins.module_utils._host.drilling import drilled
from ansible_collections.backstep.workers.plugins.module_utils._host.staging import plan_host, read_program, stage_host
from ansible_collections.backstep.workers.plugins.module_utils._module import run
from ansible_collections.backstep.workers.plugins.module_utils._pool_args import POOL_OPTIONS, open_host
from ansible_collections.backstep.workers.plugins.module_utils._release_args import RELEASE_OPTIONS, content_of, spec_of


def work(module: AnsibleModule) -> dict[str, Any]:
    """Plan, or stage."""
    params = module.params
    host, prepared = open_host(params), params["prepared"]
    spec, content = spec_of(params), content_of(params)
    if params["drill"]:
        spec, content = drilled(host, spec, content, params["drill"])
    if params["state"] == "planned" or module.check_mode:
        needed = params["min_free_mib"] * 2**20 or 3 * (prepared["bytes"] or 0)
        return plan_host(
            host,
            spec,
            program_digest=prepared["program_digest"],
            broker_url=params["broker_url"],
            needed_bytes=needed,
            wish=params["to"],
            once=params["once"],
        )
    return stage_host(
        host,
        spec,
        content,
        rollout=params["rollout"],
        program=read_program(prepared["program"]),
        broker_url=params["broker_url"],
        once=params["once"],
        tasks=params["tasks"],
        retired=params["retired"],
        now=params["now"],
    )


def main() -> None:
    """Wire options to work."""
    module = AnsibleModule(argument_spec={**POOL_OPTIONS, **RELEASE_OPTIONS}, supports_check_mode=True)
    run(module, lambda: work(module))


if __name__ == "__main__":
    main()
