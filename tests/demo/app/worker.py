# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts one worker of the demo's app: ``worker.py NAME QUEUE...``.

It first reports, under its name, which release it is and which config it has read: what the demo believes in the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from configparser import ConfigParser
from pathlib import Path

import consumer  # type: ignore[import-not-found]  # stands beside this file in a release
import redis

from build import Build  # type: ignore[import-not-found]  # stands beside this file in a release


def main() -> None:
    """Report, then work until told to stop."""
    name, *queues = sys.argv[1:]
    raw = (Path(os.environ["BACKSTEP_CONFIG"]) / "letters.ini").read_bytes()
    settings = ConfigParser()
    settings.read_string(raw.decode())
    report = {"release": os.environ["BACKSTEP_RELEASE"], "config": hashlib.sha256(raw).hexdigest()}
    with redis.Redis.from_url(os.environ["LEDGER_URL"]) as notes:
        notes.hset(os.environ["REPORTS"], name, json.dumps(report))
    build = Build()
    build.before_work(settings)
    consumer.work(name, build.queues(queues), build.takes_tasks)


if __name__ == "__main__":
    main()
