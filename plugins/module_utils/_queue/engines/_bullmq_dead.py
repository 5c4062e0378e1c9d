# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What BullMQ keeps of a job that has failed: its hash, where the app doesn't have it removed."""

from __future__ import annotations

from . import _bullmq_scripts as scripts

# ARGV: queue, cursor, count -> {next cursor, for each {id, name, enqueued, died, mark, error, worker, expires}}.
# The stack of each attempt begins with what it failed with, its class included; the last one counts.
LIST_DEAD = (
    scripts.COMMON
    + r"""
local page = redis.call('ZSCAN', base .. 'failed', ARGV[2], 'COUNT', ARGV[3])
local rows = {}
for i = 1, #page[2], 2 do
  local id = page[2][i]
  local job = redis.call('HMGET', base .. id, 'name', 'timestamp', 'failedReason', 'stacktrace', 'pb', 'opts')
  if job[1] then
    local readable, stacks = pcall(cjson.decode, job[4] or '[]')
    local stack = readable and type(stacks) == 'table' and stacks[#stacks] or job[3] or ''
    local known, opts = pcall(cjson.decode, job[6] or '{}')
    local remove = known and type(opts) == 'table' and opts.removeOnFail
    local age = type(remove) == 'table' and tonumber(remove.age)
    local died = tonumber(page[2][i + 1]) / 1000
    local enqueued = tonumber(job[2] or '')
    rows[#rows + 1] = {
      id, job[1], enqueued and string.format('%.3f', enqueued / 1000) or '', string.format('%.3f', died),
      page[2][i + 1], string.match(tostring(stack), '^[^\n]*'), job[5] or '',
      age and string.format('%.0f', died + age) or '',
    }
  end
end
return {page[1], rows}
"""
)
