# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a step on a host is to be taken."""

from __future__ import annotations

from dataclasses import dataclass

from .._rollout import plans


@dataclass(frozen=True)
class Slice:
    """Which part of a drain one call is: the controller calls again and again, and shows in between how far it is.

    :param seconds: after how many the call ends though the drain goes on; 0: not before the drain is over.
    :param goes_on: whether the call before has begun it. Its deadline is then the one that the journal has, and what
        was begun is not begun again.
    """

    seconds: float = 0.0
    goes_on: bool = False


WHOLE = Slice()


@dataclass(frozen=True)
class Terms:
    """How a step is to be taken.

    :param mode: ``overlap`` or ``replace``.
    :param drain_seconds: how long tasks may take to end.
    :param drain_policy: ``abort``, ``requeue``, ``kill`` or ``leave``.
    :param confirm_seconds: after how many seconds without confirmation the guard takes the host back.
    :param keep: good releases to keep besides the current one.
    :param once: whether hooks that are meant for one host run on this one.
    :param part: of a drain on the way.
    """

    mode: str = plans.OVERLAP
    drain_seconds: float = 300.0
    drain_policy: str = plans.ABORT
    confirm_seconds: float = 600.0
    keep: int = 3
    once: bool = False
    part: Slice = WHOLE
