# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A build with a slip of the pen in the name of its queue."""

from __future__ import annotations

from good import GoodBuild  # type: ignore[import-not-found]  # stands beside this file in a release


class Build(GoodBuild):  # type: ignore[misc]  # see above
    """Waits where no task comes."""

    def queues(self, given: list[str]) -> list[str]:
        """Another one."""
        return ["lettres"]
