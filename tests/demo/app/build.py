# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The good build."""

from __future__ import annotations

from good import GoodBuild as Build  # type: ignore[import-not-found]  # stands beside this file in a release

__all__ = ["Build"]
