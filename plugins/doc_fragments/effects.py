# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations


class ModuleDocFragment:
    """Documentation of what modules share that can be part of a rollout."""

    DOCUMENTATION = r"""
options:
  part_of:
    description:
      - The rollout that this is a part of; the role fills it in. What is done is noted in the broker before, with all
        that undoing it takes, and M(backstep.workers.queue_effects) ends it with the rollout's other effects.
      - C(pool), C(rollout) (its number), C(leaves) and C(leads_to) (lists of releases).
    type: dict
"""
