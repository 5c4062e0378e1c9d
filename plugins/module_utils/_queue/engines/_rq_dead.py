# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What RQ keeps of a task that has failed: its registry's score, its hash, and the last of its results."""

from __future__ import annotations

import base64
import binascii
import zlib

_LARGEST = 1024 * 1024

# ARGV: queue, cursor, count -> {next cursor, for each {id, name, enqueued, died, mark, error, worker, expires}}.
# A result's id is its time by the broker's clock (XADD gives it). What is kept for ever has the score -1.
LIST_DEAD = """
local page = redis.call('ZSCAN', 'rq:failed:' .. ARGV[1], ARGV[2], 'COUNT', ARGV[3])
local rows = {}
for i = 1, #page[2], 2 do
  local id, score = page[2][i], tonumber(page[2][i + 1])
  local job = redis.call('HMGET', 'rq:job:' .. id, 'description', 'enqueued_at', 'created_at', 'worker_name',
    'exc_info', 'ended_at')
  if job[3] then
    local last = redis.call('XREVRANGE', 'rq:results:' .. id, '+', '-', 'COUNT', 1)[1] or {'', {}}
    local result = {}
    for n = 1, #last[2], 2 do result[last[2][n]] = last[2][n + 1] end
    local ms = string.match(last[1], '^%d+')
    local worker = (result.worker_name or '') ~= '' and result.worker_name or job[4]
    rows[#rows + 1] = {
      id, string.match(job[1] or '', '^([%w_]+%.[%w_%.]+)%(') or '', job[2] and job[2] ~= '' and job[2] or job[3],
      ms and string.format('%.3f', ms / 1000) or '', ms and last[1] or job[6] or '',
      result.exc_string or job[5] or '', worker or '', score and score > 0 and page[2][i + 1] or '',
    }
  end
end
return {page[1], rows}
"""


def traceback_of(stored: bytes) -> str:
    """A traceback as RQ has stored it: compressed, in a result also as base64; "" when it is neither."""
    for raw in (_decoded(stored), stored):
        try:
            return zlib.decompressobj().decompress(raw, _LARGEST).decode("utf-8", "replace")
        except zlib.error:
            continue
    return ""


def _decoded(stored: bytes) -> bytes:
    try:
        return base64.b64decode(stored, validate=True)
    except binascii.Error:
        return b""
