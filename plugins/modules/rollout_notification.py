#!/usr/bin/python
# SPDX-FileCopyrightText: Backstep contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_notification
short_description: Send the notifications of a rollout's end that are due
version_added: 0.1.0
description:
  - Runs on the controller, once for all hosts. It sends what C(pool_notify) says, a task's variable, with
    C(pool_event) filled in. What earlier runs could not send, as the hosts have noted it, is sent again.
  - It never fails for one that can't be sent, and waits a minute at most for all.
  - The role P(backstep.workers.pool#role) calls it. It is no use on its own.
author:
  - Backstep contributors (@backstep)
options:
  pool:
    description: The name of the pool.
    type: str
    required: true
  looks:
    description: The variables in which each host's answers to M(backstep.workers.release_info) were registered, the
      latest last.
    type: list
    elements: str
    default: []
  ended:
    description: How this run has ended, as from M(backstep.workers.rollout). Empty when it has moved nothing.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Send notifications
  backstep.workers.rollout_notification:
    pool: mail
    looks: [pool__looked]
  register: notified
  run_once: true
  no_log: true
"""

RETURN = r"""
notices:
  description: What was tried, for M(backstep.workers.rollout_notice). C(id), C(rollout), C(event), C(left) (the names
    of those that were not sent), C(tries), C(first) (epoch seconds) and C(why).
  type: list
  elements: dict
  returned: success
  sample: [{"id": "mail-12", "rollout": 12, "event": {}, "left": [], "tries": 1, "first": 1795243024.3, "why": ""}]
hosts:
  description: The hosts that are to note it.
  type: list
  elements: str
  returned: success
  sample: [w1, w2, w3]
text:
  description: What was shown, line by line.
  type: list
  elements: str
  returned: success
  sample: ["notification mail-12: sent to chat"]
"""
