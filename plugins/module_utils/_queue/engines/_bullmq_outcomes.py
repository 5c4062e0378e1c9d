# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What BullMQ's workers have done of late, told by the jobs that are kept: it counts nothing by worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ..engine import CANARY_PREFIX
from ._bullmq_scripts import COMMON
from ._redis import RedisLink, text

# Of so many tasks of a queue that finished last it is told who has finished them.
_LOOKED_AT = 1000

# ARGV: queue, count, how canaries begin -> {workers of the tasks that finished last, workers of those that have failed
# since the first of these}. Not counted is a failed one of which nothing would be kept had it finished.
_OUTCOMES = (
    COMMON
    + """
local count, since, finished, failed = tonumber(ARGV[2]), nil, {}, {}
local function is_canary(id) return string.sub(id, 1, #ARGV[3]) == ARGV[3] end
local done = redis.call('ZREVRANGE', base .. 'completed', 0, count - 1, 'WITHSCORES')
for i = 1, #done, 2 do
  since = tonumber(done[i + 1])
  if not is_canary(done[i]) then finished[#finished + 1] = redis.call('HGET', base .. done[i], 'pb') or '' end
end
local function look(id)
  local worker, reason, options, begun = unpack(
    redis.call('HMGET', base .. id, 'pb', 'failedReason', 'opts', 'processedOn'))
  local removed = options and string.find(options, '"removeOnComplete":[t0]')
  if worker and reason and not removed and not is_canary(id) and (tonumber(begun or '') or since) >= since then
    failed[#failed + 1] = worker
  end
end
if since then
  local ended = redis.call('ZREVRANGEBYSCORE', base .. 'failed', '+inf', since, 'LIMIT', 0, count)
  for _, id in ipairs(ended) do look(id) end
  for _, id in ipairs(redis.call('ZRANGE', base .. 'delayed', 0, count - 1)) do look(id) end
end
return {finished, failed}
"""
)


class Outcomes(NamedTuple):
    """Tasks of some queues by the worker that has executed them last."""

    finished: Counter[str]
    failed: Counter[str]
    """Those to be tried again too."""
    kept: frozenset[str]
    """The queues that keep finished tasks: of the others it can't be told which share of the tasks has failed."""


def outcomes(link: RedisLink, queues: Sequence[str]) -> Outcomes:
    """Look at the tasks of these queues that ended last."""
    found = Outcomes(Counter(), Counter(), frozenset())
    for queue in queues:
        finished, failed = link.run(_OUTCOMES, queue, _LOOKED_AT, CANARY_PREFIX)
        found.finished.update(map(text, finished))
        found.failed.update(map(text, failed))
        found = found._replace(kept=found.kept | {queue} if finished else found.kept)
    return found
