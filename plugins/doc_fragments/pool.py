# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations


class ModuleDocFragment:
    """Documentation that several modules share."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    support: full
    description: Can run in C(check_mode) and tell what it would do without changing anything.
  diff_mode:
    support: none
    description: Will return details on what has changed (or would be changed in check mode) when in diff mode.
  idempotent:
    support: full
    description: When run twice in a row with the same options, the second run changes nothing.
"""

    HOST = r"""
options:
  pool:
    description: The name of the pool, with the characters C(a-z), C(0-9), C(-) and C(_).
    type: str
    required: true
  root:
    description:
      - The directory below which everything of the pool lies on the host.
      - The default is C(/opt/backstep/) and the name of the pool.
    type: path
  host:
    description: The name of this host, usually C(inventory_hostname). It becomes part of the names of its workers.
    type: str
    required: true
  supervisor:
    description: What keeps the workers running on this host.
    type: str
    default: systemd
    choices: [systemd, supervisord]
  supervisor_socket:
    description: The path of supervisord's socket. Only read with O(supervisor=supervisord).
    type: path
    default: /var/run/supervisor.sock
  supervisor_conf_dir:
    description:
      - The directory of unit files or program sections.
      - The default is C(/etc/systemd/system) or C(/etc/supervisor/conf.d).
    type: path
  step_timeout:
    description:
      - After how many seconds without an answer the host counts as unreachable, beyond those that the step itself may
        wait, for example for a drain. It isn't asked again in the same run. V(0) waits for ever.
      - Read on the controller only.
    type: float
    default: 120.0
requirements:
  - Python 3.9 or newer on the worker host; nothing but its standard library.
"""

    DRAIN = r"""
options:
  drain:
    description: How the tasks that are executing are brought to their end.
    type: dict
    default: {}
    suboptions:
      timeout:
        description: How many seconds they may take.
        type: float
        default: 300.0
      on_timeout:
        description:
          - What becomes of tasks that take longer.
          - V(abort) gives up the step, kills nothing, and has the release take tasks again.
          - V(leave) lets them go on next to whatever comes next.
          - V(kill) kills them; what becomes of them is up to the engine.
          - V(requeue) kills them; they are put back into their queues and may run twice.
          - Where there is nothing left to give up, V(abort) means V(leave), and V(requeue) on the way back in replace
            mode.
        type: str
        default: abort
        choices: [abort, requeue, kill, leave]
"""

    PROGRESS = r"""
options:
  part_seconds:
    description:
      - After how many seconds of a drain the call ends although it isn't over, with RV(still). V(0) means not before.
      - The controller's side of this module sets it, asks again until the drain is over, and shows in between how far
        it is.
    type: float
    default: 0.0
  goes_on:
    description: Whether the call before has begun this drain, whose deadline then holds. Set by the controller's side.
    type: bool
    default: false
  engine:
    description: The engine of the pool. Needed with O(broker_url).
    type: str
    default: ''
  broker_url:
    description: The URL of the broker. With it the controller, which has to reach it, tells tasks and not only workers.
    type: str
    default: ''
  queues:
    description: The queues of the pool. Needed with O(broker_url).
    type: list
    elements: raw
    default: []
"""
