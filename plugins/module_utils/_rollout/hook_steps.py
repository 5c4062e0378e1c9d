# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps that a release can have hooks for, in the order in which a rollout comes by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

BEFORE_STAGE = "before_stage"
AFTER_STAGE = "after_stage"
BEFORE_SWITCH = "before_switch"
AFTER_SWITCH = "after_switch"
BEFORE_CONFIRM = "before_confirm"
AFTER_CONFIRM = "after_confirm"
BEFORE_ROLLBACK = "before_rollback"
AFTER_ROLLBACK = "after_rollback"
STEPS = (
    BEFORE_STAGE,
    AFTER_STAGE,
    BEFORE_SWITCH,
    AFTER_SWITCH,
    BEFORE_CONFIRM,
    AFTER_CONFIRM,
    BEFORE_ROLLBACK,
    AFTER_ROLLBACK,
)

DONE = "done"


def hook_mark(step: str, number: int) -> str:
    """How a hook of a release that has run well is remembered."""
    return f"{step} {number}"


def marks_of(ran: Mapping[str, Sequence[str]], steps: tuple[str, ...]) -> dict[str, list[str]]:
    """The marks of some steps alone, by release: the hooks of the others are run anew."""
    kept = {release: [mark for mark in marks if mark.startswith(steps)] for release, marks in ran.items()}
    return {release: marks for release, marks in kept.items() if marks}
