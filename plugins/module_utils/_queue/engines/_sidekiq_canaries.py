# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Canary tasks of Sidekiq: sent, found again, and taken back with their traces.

The workers' reporter notes how a canary has ended, and executes none whose note has run out or was taken back.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence

from ..engine import CANARY_PREFIX, CanaryOutcome
from . import _sidekiq_scripts as scripts
from ._redis import RedisLink, text

# How many of the tasks that are next a canary is looked for among: it was put in front of them.
_NEAR = 1000

# ARGV: how near, then keys of canaries -> for each: state, worker or "".
_OUTCOMES = r"""
local found = {}
for i = 2, #ARGV do
  local note = redis.call('HMGET', ARGV[i], 'raw', 'queue', 'state', 'worker')
  if note[3] then
    found[#found + 1] = {note[3], note[4] or ''}
  else
    local waits = note[1] and redis.call('LPOS', 'queue:' .. note[2], note[1], 'RANK', -1, 'MAXLEN', ARGV[1])
    found[#found + 1] = {waits and 'waiting' or 'gone', ''}
  end
end
return found
"""

# ARGV: key of a canary -> nothing. Only the first to withdraw it takes it from its worker's counts.
_WITHDRAW = r"""
local note = redis.call('HMGET', ARGV[1], 'raw', 'queue', 'state', 'worker')
if not note[1] then return end
redis.call('DEL', ARGV[1])
if not note[3] then redis.call('LREM', 'queue:' .. note[2], -1, note[1]) end
local worker = 'backstep:sidekiq:worker:' .. (note[4] or '')
if (note[3] == 'finished' or note[3] == 'failed') and redis.call('EXISTS', worker) == 1 then
  redis.call('HINCRBY', worker, note[3], -1)
end
"""


def _key(known_as: str) -> str:
    return f"{scripts.OURS}canary:{known_as}"


def send(link: RedisLink, queue: str, task: str, count: int, seconds: int) -> list[str]:
    """As ``Engine.send_canary``."""
    ids = [f"{CANARY_PREFIX}{uuid.uuid4().hex}" for _number in range(count)]
    now = float(link.ask("TIME")[0])
    commands: list[tuple[object, ...]] = []
    for known_as in ids:
        # The reporter knows a canary by how this begins. A worker without one drops a class that it doesn't know.
        task_fields = {"class": task, "args": [], "queue": queue, "retry": False, "created_at": now, "enqueued_at": now}
        raw = json.dumps({"jid": known_as, **task_fields}, separators=(",", ":"))
        commands += [("HSET", _key(known_as), "raw", raw, "queue", queue), ("EXPIRE", _key(known_as), seconds)]
        commands.append(("RPUSH", f"queue:{queue}", raw))
    link.ask_all(commands)
    return ids


def outcomes(link: RedisLink, ids: Sequence[str]) -> list[CanaryOutcome]:
    """As ``Engine.canaries``."""
    answers = link.run(_OUTCOMES, _NEAR, *map(_key, ids)) if ids else []
    return [
        CanaryOutcome(known_as, text(state), text(worker) or None) for known_as, (state, worker) in zip(ids, answers)
    ]


def withdraw(link: RedisLink, ids: Sequence[str]) -> None:
    """As ``Engine.withdraw``."""
    for known_as in ids:
        link.run(_WITHDRAW, _key(known_as))
