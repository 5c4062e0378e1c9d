# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of RQ workers (``RQ_CONFIG``) whose Redis is under Sentinel, for which RQ has no URL."""

from __future__ import annotations

import json
import os

SENTINEL = json.loads(os.environ["SENTINEL"])
