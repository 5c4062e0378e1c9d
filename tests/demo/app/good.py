# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What builds of the app differ in, as the good one has it."""

from __future__ import annotations

from configparser import ConfigParser


class GoodBuild:
    """Takes tasks from the queues that it is given."""

    takes_tasks = True

    def queues(self, given: list[str]) -> list[str]:
        """The queues to listen to."""
        return given

    def before_work(self, settings: ConfigParser) -> None:
        """What comes before the worker is started."""
