# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one place where a module's work becomes ``exit_json`` or ``fail_json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from ._rollout.errors import BackstepError, refused_by_system

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule


def run(module: AnsibleModule, work: Callable[[], dict[str, Any]]) -> None:
    """Do ``work`` and leave the module with its result.

    :param work: returns the module's result (``changed``, ``actions``, ...) or raises a ``BackstepError``.
    """
    try:
        result = work()
    except BackstepError as error:
        module.fail_json(**error.result())
    except OSError as error:
        module.fail_json(**refused_by_system(error, "This step could not be done").result())
    module.exit_json(**result)
