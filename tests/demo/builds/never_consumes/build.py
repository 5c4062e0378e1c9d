# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A build that starts, registers, stays up, and takes nothing."""

from __future__ import annotations

from good import GoodBuild  # type: ignore[import-not-found]  # stands beside this file in a release


class Build(GoodBuild):  # type: ignore[misc]  # see above
    """Hears nothing."""

    takes_tasks = False
