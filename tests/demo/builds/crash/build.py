# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A build that needs a setting which the config doesn't have: it exits at boot."""

from __future__ import annotations

from configparser import ConfigParser

from good import GoodBuild  # type: ignore[import-not-found]  # stands beside this file in a release


class Build(GoodBuild):  # type: ignore[misc]  # see above
    """Has a sender, if somebody has set one."""

    def before_work(self, settings: ConfigParser) -> None:
        """Fails: nobody has."""
        print(f"sending as {settings['letters']['sender']}")
